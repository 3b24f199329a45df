"""Attacks other than gradient matching: time of a step, or of some poisons, beside straightforward code.

A new attack is one more entry of `CASES`: a name, what is asked of it, and a function that makes its arms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cases import in_folding_layers, in_ordinary_layers, prepared, without_head
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
from benchmarks.reference.collision import Colliding, collide_by_hand, collide_plain
from benchmarks.reference.pixels import folded
from benchmarks.reference.unrolling import (
    Setting,
    Unrolling,
    one_graph,
    step_by_step,
    unroll_by_hand,
    unroll_plain,
)
from mithridate.core.balls import AnyImage, Linf
from mithridate.core.models import last_linear
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.metapoison import MetaPoison
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel


class Ways(NamedTuple):
    """Arms of a case."""

    arms: list[Arm]
    amount: float
    """Units of work, in the case's unit, of one run."""
    flops: float | None = None
    """Floating-point operations that one run needs, where networks take part."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack on one network."""

    name: str
    unit: str
    """What `Ways.amount` counts."""
    ways: Callable[[Setup], Ways]
    least: float | None = None
    """Times as fast as the straightforward version, asked on a CPU with bfloat16 instructions."""
    near: float | None = None
    """Share of the speed of the best way found, asked everywhere."""


# --- feature collision -----------------------------------------------------------------------------------------------


def poison_frogs(model: str, setup: Setup) -> Ways:
    """Many poisons, one target."""
    poisons, steps = (4, 3) if setup.small else (50, 40)
    attack = PoisonFrogs(steps=steps - 1)  # and one evaluation of the finished poison
    threat = ThreatModel(budget=1 / 20, ball=AnyImage())
    task, surrogate = prepared(setup, model, threat, train=20 * poisons, epochs=2)
    rows, target = task.choose(0), task.targets.contiguous()
    base = task.images(rows).contiguous()
    dimension = last_linear(surrogate.fitted.models[0]).in_features
    colliding = Colliding(steps=steps, beta=attack.beta * (dimension / base[0].numel()) ** 2, learning_rate=attack.lr)

    def ours() -> str:
        return f"feature distance {attack.craft(task, surrogate, seed=0).notes['feature_distance']:.3f} of the bases'"

    def by_hand(make: Callable[[], nn.Module], *, bf16: bool, channels_last: bool = True) -> Callable[[], str]:
        return lambda: _distance(
            collide_by_hand(make(), base, target, colliding, bf16=bf16, channels_last=channels_last)
        )

    def separate() -> nn.Module:
        return without_head(in_ordinary_layers(surrogate))

    def folding() -> nn.Module:
        return without_head(in_folding_layers(surrogate))

    ways = {
        "fp32 NCHW, inputs only, target features once": by_hand(separate, bf16=False, channels_last=False),
        "fp32 channels last, BatchNorm folded once": by_hand(lambda: folded(folding()), bf16=False),
    }
    if setup.bf16:
        ways["bf16 channels last, inputs only, target features once"] = by_hand(separate, bf16=True)
        ways["bf16 channels last, BatchNorm folded at every pass"] = by_hand(folding, bf16=True)
        ways["bf16 weights, BatchNorm folded once"] = by_hand(lambda: folded(folding(), torch.bfloat16), bf16=True)
    arms = [
        Arm(name="mithridate", role="mithridate", work=ours),
        Arm(
            name="plain fp32 NCHW",
            role="straightforward",
            work=lambda: _distance(collide_plain(separate(), base, target, colliding)),
        ),
        *(Arm(name=name, role="variant", work=work) for name, work in ways.items()),
    ]
    network = folded(folding())
    images = base[:2].clone().requires_grad_()
    flops = flops_of(lambda: torch.autograd.grad(network(images).sum(), images)) * poisons / 2
    return Ways(arms, steps, steps * flops)


def _distance(found: tuple[Tensor, float]) -> str:
    return f"mean feature distance {found[1]:.3f}"


# --- unrolled training -----------------------------------------------------------------------------------------------


def metapoison(model: str, setup: Setup) -> Ways:
    """Fifty poisons in one batch, two clean batches after it, two surrogates that stay at their epoch."""
    poisons, steps = (4, 2) if setup.small else (50, 4)
    attack = MetaPoison(steps=steps - 1, surrogates=2, inner_rate=0.1)  # and one evaluation of the finished poison
    threat = ThreatModel(budget=1 / 20, ball=Linf(eps=8 / 255))
    task, surrogate = prepared(setup, model, threat, train=20 * poisons, epochs=2)
    rows = task.choose(0)
    clean = task.train.drop(rows).ids[:500]
    setting = Setting(
        task.images(rows).contiguous(),
        task.train.labels_of(rows),
        task.train.floats(clean).contiguous(),
        task.train.labels_of(clean),
        task.targets.contiguous(),
        task.intended,
    )
    unrolling = Unrolling(steps=steps)

    def by_hand(derive: Callable, **kind: bool) -> Callable[[], str]:
        def work() -> str:
            networks = [in_ordinary_layers(surrogate) for _ in range(2)]
            return _meta(unroll_by_hand(networks, setting, unrolling, derive, **kind))

        return work

    kind, best = ("bf16", True) if setup.bf16 else ("fp32", False)
    ways = {
        "fp32 channels last, one graph": by_hand(one_graph, bf16=False),
        f"{kind} channels last, step by step": by_hand(step_by_step, bf16=best),
        f"{kind}, one graph, BatchNorm written out": by_hand(one_graph, bf16=best, written_out=True),
        f"{kind}, step by step, BatchNorm written out": by_hand(step_by_step, bf16=best, written_out=True),
    }
    if setup.bf16:
        ways["bf16 channels last, one graph"] = by_hand(one_graph, bf16=True)
    arms = [
        Arm(
            name="mithridate",
            role="mithridate",
            work=lambda: f"meta-loss {attack.craft(task, surrogate, seed=0).notes['meta_loss']:.2f}",
        ),
        Arm(
            name="plain fp32 NCHW",
            role="straightforward",
            work=lambda: _meta(unroll_plain([in_ordinary_layers(surrogate) for _ in range(2)], setting, unrolling)),
        ),
        *(Arm(name=name, role="variant", work=work) for name, work in ways.items()),
    ]
    return Ways(arms, 2 * steps)


def _meta(found: tuple[Tensor, float]) -> str:
    return f"meta-loss {found[1]:.2f}"


# --- attacks that search nothing -------------------------------------------------------------------------------------


def unsearched(attack: Attack, plain: Callable[[Task], object], setup: Setup) -> Ways:
    """An attack that only changes pixels, a hundred rows at a time."""
    poisons, repeats = (4, 1) if setup.small else (100, 50)
    threat = replace(attack.threat, budget=1 / 10)
    task, surrogate = prepared(setup, "convnet", threat, train=10 * poisons, epochs=0)
    return Ways(
        [
            Arm(name="mithridate", role="mithridate", work=lambda: _repeat(repeats, _craft, attack, task, surrogate)),
            Arm(name="plain", role="straightforward", work=lambda: _repeat(repeats, plain, task)),
        ],
        repeats,
    )


def _repeat(times: int, function: Callable[..., object], *arguments: object) -> None:
    for _ in range(times):
        function(*arguments)


def _craft(attack: Attack, task: Task, surrogate: Learner) -> None:
    attack.craft(task, surrogate, seed=0)


def _patched(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Paste an 8 x 8 checkerboard and relabel."""
    rows = task.candidates[torch.randperm(len(task.candidates))[: task.limit].to(task.candidates.device)]
    images = task.train.images[rows].clone()
    index = torch.arange(8, device=images.device)
    images[:, :, -8:, -8:] = (255 * (1 - (index[:, None] + index) % 2)).to(torch.uint8)
    return rows, images, task.intended[:1].expand(len(rows))


def _noisy(task: Task) -> tuple[Tensor, Tensor]:
    """Add or subtract 16 at every pixel."""
    rows = task.candidates[torch.randperm(len(task.candidates))[: task.limit].to(task.candidates.device)]
    images = task.train.images[rows].float()
    noise = 16 * torch.randn(images.shape).sign().to(images.device)
    return rows, (images + noise).clamp(0, 255).round().to(torch.uint8)


# --- the table -------------------------------------------------------------------------------------------------------

CASES = (
    Case(
        name="poison-frogs on convnet-wide",
        unit="step",
        ways=partial(poison_frogs, "convnet-wide"),
        least=3.0,
        near=0.9,
    ),
    Case(name="poison-frogs on convnet", unit="step", ways=partial(poison_frogs, "convnet"), near=0.9),
    *(
        Case(name=f"metapoison on {model}", unit="step and surrogate", ways=partial(metapoison, model), near=0.9)
        for model in ("convnet", "convnet-wide")
    ),
    Case(name="badnets", unit="100 poisons", ways=partial(unsearched, BadNets(), _patched)),
    Case(name="random-noise", unit="100 poisons", ways=partial(unsearched, RandomNoise(), _noisy)),
)


def run(setup: Setup) -> Report:
    """Time every case."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for case in CASES:
        ways = case.ways(setup)
        found = race(
            setup,
            case.name,
            ways.arms,
            unit=f"{setup.clock} milliseconds per {case.unit}",
            value=lambda seconds, ways=ways: 1000 * seconds / ways.amount,
            flops=ways.flops,
        )
        rows += found
        if case.least is not None:
            claims += faster_than_straightforward(found, case.least if setup.claims_bf16 else None)
        if case.near is not None:
            claims += near_the_best(found, case.near)
    settings = {
        "images": "32x32x3 synthetic",
        "poison-frogs": "50 poisons, 1 target; one of mithridate's evaluations is that of the finished 8-bit poison",
        "metapoison": "50 poisons, 1 target, K = 2, batches of 125; surrogates' training is not counted: it is shared",
        "flops": "convolutions and matrix products of a forward pass and a backward pass for the images alone",
    }
    return Report(name="attacks", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))
