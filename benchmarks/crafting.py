"""Witches' Brew: speed of a crafting step beside the double backward pass as one writes it, and other ways by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.cases import Ready, in_folding_layers, in_ordinary_layers, prepared
from benchmarks.ceiling import flops_of
from benchmarks.measure import (
    Arm,
    Claim,
    Report,
    Row,
    Setup,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
)
from benchmarks.reference.matching import (
    Brew,
    Brewing,
    brew_by_hand,
    brew_plain,
    double_backward,
    forward_over_reverse,
)
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import Task, ThreatModel

MODELS = ("convnet", "convnet-wide", "resnet18")
LEAST = {"convnet": 1.0, "convnet-wide": 1.9, "resnet18": 1.9}
"""Asked beside the plain form, on a CPU with bfloat16 instructions."""


def run(setup: Setup) -> Report:
    """Time a step on each network."""
    rows: list[Row] = []
    claims: list[Claim] = []
    poisons = 4 if setup.small else 50
    for model in (name for name in MODELS if name in setup.models):
        steps = _steps(setup, model)
        task, surrogate = prepared(setup, model, ThreatModel(budget=1 / 20), train=20 * poisons, epochs=2)
        brew = brew_of(task)
        found = race(
            setup,
            f"witches-brew on {model}, {poisons} poisons",
            arms_of(setup, model, task, surrogate, steps),
            unit=f"{setup.clock} milliseconds per step",
            value=lambda seconds, steps=steps: 1000 * seconds / steps,
            flops=steps
            * poisons
            * flops_per_poison(in_folding_layers(surrogate), brew.base[:2].clone(), brew.labels[:2]),
        )
        rows += found
        claims += faster_than_straightforward(found, LEAST[model] if setup.claims_bf16 else 1.0) + near_the_best(found)
    settings = {
        "images": "32x32x3 synthetic",
        "poisons": poisons,
        "eps": "16/255",
        "bf16": setup.bf16,
        "counted": "target gradient and every evaluation; one of mithridate's is that of the finished 8-bit poison",
        "flops": "convolutions and matrix products of the double backward pass for the poisons alone",
    }
    return Report(name="crafting", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def _steps(setup: Setup, model: str) -> int:
    if setup.small or setup.device != "cpu":
        return 2 if setup.small else 50
    return 2 if model == "resnet18" else 6


def brew_of(task: Task) -> Brew:
    """The task in the form of the loops by hand, NCHW."""
    rows = task.choose(0)
    base, labels = task.images(rows).contiguous(), task.train.labels_of(rows)
    return Brew(base, labels, task.targets.contiguous(), task.intended)


def arms_of(setup: Setup, model: str, task: Task, surrogate: Ready, steps: int) -> list[Arm]:
    """Ways to craft the same poisons; a CPU skips the slow ones on resnet18."""
    attack = WitchesBrew(steps=steps - 1, surrogates=1)  # and one evaluation of the finished poison
    brew, brewing, fast = brew_of(task), Brewing(steps=steps), setup.bf16
    separate, folding = in_ordinary_layers, in_folding_layers

    def ours() -> str:
        return _note(attack.craft(task, surrogate, seed=0).notes["matching_loss"])

    def plain() -> str:
        return _note(brew_plain(in_ordinary_layers(surrogate), brew, brewing)[1])

    def by_hand(layers: Callable, derive: Callable, *, bf16: bool) -> Callable[[], str]:
        return lambda: _note(brew_by_hand(layers(surrogate), brew, brewing, derive, bf16=bf16)[1])

    ways = {"folded BatchNorm, fp32": by_hand(folding, double_backward, bf16=False)}
    if fast:
        ways["folded BatchNorm, bf16"] = by_hand(folding, double_backward, bf16=True)
    if model != "resnet18" or setup.device != "cpu":
        kind = "bf16" if fast else "fp32"
        ways["ordinary layers, fp32, poisons alone"] = by_hand(separate, double_backward, bf16=False)
        if fast:
            ways["ordinary layers, bf16"] = by_hand(separate, double_backward, bf16=True)
        ways[f"folded BatchNorm, {kind}, forward over reverse"] = by_hand(folding, forward_over_reverse, bf16=fast)
    return [
        Arm(name="mithridate", role="mithridate", work=ours),
        Arm(name="plain fp32 NCHW", role="straightforward", work=plain),
        *(Arm(name=name, role="variant", work=work) for name, work in ways.items()),
    ]


def flops_per_poison(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of one double backward pass, counted on a few images [P, C, H, W] in [0, 1] and their labels [P]."""
    wanted = [torch.ones_like(parameter) for parameter in network.parameters()]
    return flops_of(lambda: double_backward(network, images.clone(), labels, wanted, False)) / len(images)


def _note(loss: float) -> str:
    return f"matching loss {loss:.3f}"
