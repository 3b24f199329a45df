"""Inverting Gradients: iterations of one search, its recording included, beside straightforward code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

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
from benchmarks.reference.inverting import invert_by_hand, invert_plain, start
from benchmarks.reference.pixels import CLASSES, ordinary, synthetic
from mithridate.core.models import Normalize, build
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.client import Client
from mithridate.inversion.leak import Leak


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and one batch."""

    model: str
    batch: int
    steps: int
    least: float | None = None
    """Times as fast as the straightforward version, asked on a CPU."""

    @property
    def name(self) -> str:
        return f"{self.model}, {self.batch} image{'s' * (self.batch > 1)}"


CASES = (
    Case(model="convnet", batch=1, steps=2000, least=1.5),
    Case(model="convnet", batch=8, steps=300),
    Case(model="lenet", batch=1, steps=2000),
    Case(model="resnet18:width=16", batch=1, steps=300),
)


def leak_of(setup: Setup, case: Case) -> Leak:
    """The gradient of synthetic images on an untrained network with fixed normalisation."""
    images, labels = (tensor.to(setup.device) for tensor in synthetic(case.batch, seed=0))
    name = f"{case.model.partition(':')[0]}:width=4" if setup.small else case.model
    network = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), build(name, CLASSES, (3, 32, 32), seed=0)).to(
        setup.device
    )
    return Client(batch=case.batch).share(network.eval(), images / 255, labels, seed=0)


def arms(setup: Setup, case: Case) -> list[Arm]:
    """Ways to search; all begin at the same noise and take as many steps."""
    leak = leak_of(setup, case)
    attack = InvertingGradients(steps=case.steps)
    goal, begin = leak.tensors, start((case.batch, *leak.shape)).to(setup.device)
    labels = leak.labels

    def ours() -> str:
        return f"distance {attack.reconstruct(leak, seed=0).value:.4f}"

    def by_hand(loop: Callable[..., float], *, folding: bool = False, **kind: bool) -> Callable[[], str]:
        def work() -> str:
            network = copy.deepcopy(leak.model) if folding else ordinary(leak.model)
            return f"distance {loop(network.eval(), goal, labels, begin, case.steps, **kind):.4f}"

        return work

    ways = {
        "inputs only, fp32 NCHW": by_hand(invert_by_hand),
        "inputs only, fp32 NCHW, BatchNorm folded at every pass": by_hand(invert_by_hand, folding=True),
        "inputs only, fp32 channels last": by_hand(invert_by_hand, channels_last=True),
    }
    if setup.bf16:
        ways["inputs only, bf16 channels last"] = by_hand(invert_by_hand, bf16=True, channels_last=True)
    return [
        Arm(name="mithridate", role="mithridate", work=ours),
        Arm(name="plain fp32 NCHW", role="straightforward", work=by_hand(invert_plain)),
        *(Arm(name=name, role="variant", work=work) for name, work in ways.items()),
    ]


def run(setup: Setup) -> Report:
    """Time every case."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for case in CASES:
        case = replace(case, steps=4) if setup.small else case
        found = race(
            setup,
            case.name,
            arms(setup, case),
            unit=f"iterations per {setup.clock} second",
            value=lambda seconds, steps=case.steps: steps / seconds,
        )
        rows += found
        claims += faster_than_straightforward(found, case.least if setup.device == "cpu" else None)
        claims += near_the_best(found)
    settings = {
        "images": "32x32x3 synthetic",
        "network": "untrained, BatchNorm with running statistics",
        "search": f"signed Adam, total variation, {', '.join(f'{case.name}: {case.steps} steps' for case in CASES)}",
        "recording": "mithridate's time includes the recording of its objective, once per search",
    }
    return Report(name="inversion", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))
