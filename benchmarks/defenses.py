"""What defences cost: training with each of them beside plain training and beside straightforward code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.cases import data_of
from benchmarks.measure import (
    Arm,
    Claim,
    Ratio,
    Report,
    Row,
    Setup,
    asked,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
    row_of,
)
from benchmarks.reference.immunising import train_immune
from benchmarks.reference.pixels import CLASSES, ordinary
from benchmarks.reference.schooling import Schooling
from mithridate.core.data import ImageData
from mithridate.core.models import Normalize, build
from mithridate.core.training import Recipe
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.defenses.adversarial_poisoning import AdversarialPoisoning
from mithridate.poisoning.defenses.adversarial_training import AdversarialTraining
from mithridate.poisoning.defenses.cutmix import Cutmix
from mithridate.poisoning.defenses.dp_instahide import DPInstaHide
from mithridate.poisoning.defenses.dp_sgd import DPSGD
from mithridate.poisoning.defenses.epic import Epic
from mithridate.poisoning.defenses.gradient_shaping import GradientShaping
from mithridate.poisoning.defenses.maxup import Maxup
from mithridate.poisoning.defenses.mixup import Mixup

IMAGES = 500
"""Training images: four batches of 125."""
EPS = 16 / 255


@dataclass(frozen=True, kw_only=True)
class Case:
    """One defence on one network."""

    name: str
    defense: Defense
    options: str = ""
    """Of the network, beside its width."""


CASES = (
    Case(name="mixup", defense=Mixup()),
    Case(name="cutmix", defense=Cutmix()),
    Case(name="maxup", defense=Maxup(warmup=0)),
    Case(name="adversarial-training", defense=AdversarialTraining()),
    Case(name="adversarial-poisoning", defense=AdversarialPoisoning(eps=EPS)),
    Case(name="adversarial-poisoning, feature collision", defense=AdversarialPoisoning(inner="feature-collision")),
    Case(name="adversarial-poisoning, patches", defense=AdversarialPoisoning(inner="patch")),
    Case(name="gradient-shaping", defense=GradientShaping()),
    Case(name="dp-instahide", defense=DPInstaHide()),
    Case(name="dp-sgd, GroupNorm", defense=DPSGD(), options="norm=group"),
    Case(name="epic, 2 epochs", defense=Epic(start=0, every=0.5, stop=1)),
)


def run(setup: Setup) -> Report:
    """Train one epoch with and without each defence, interleaved."""
    data = data_of(setup, 20 if setup.small else IMAGES)
    school = Schooling(epochs=1, batch_size=10 if setup.small else 125)
    rows: list[Row] = []
    claims: list[Claim] = []
    for case in CASES:
        found = race(
            setup,
            f"training with {case.name}",
            arms(setup, case, data, school),
            unit=f"images per {setup.clock} second",
            value=lambda seconds: len(data) / seconds,
        )
        rows += found
        claims += faster_than_straightforward(found, None)
        claims += near_the_best(found, None)
        ours, plain = row_of(found, "mithridate"), row_of(found, "control")
        if ours is not None and plain is not None:
            ratio = Ratio.of(ours.by_round, plain.by_round)
            claims.append(asked(f"{case.name}: times the cost of plain training", ratio, None, "x"))
    settings = {"images": f"32x32x3 synthetic, {len(data)}", "batch": school.batch_size, "epochs": school.epochs}
    return Report(name="defenses", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def arms(setup: Setup, case: Case, data: ImageData, school: Schooling) -> list[Arm]:
    """The defended recipe, the plain one, and for adversarial poisoning loops by hand."""
    model = setup.spec("convnet")
    if case.options:
        model += f"{',' if ':' in model else ':'}{case.options}"
    epochs = 2 if isinstance(case.defense, Epic) else school.epochs  # it drops rows between epochs
    recipe = Recipe(model=model, epochs=epochs, batch_size=school.batch_size, transforms=())
    defended = case.defense(recipe)
    found = [
        Arm(name="mithridate", role="mithridate", work=lambda: _note(defended.fit([data], [0]).history)),
        Arm(name="plain training", role="control", work=lambda: _note(recipe.fit([data], [0]).history)),
    ]
    if case.defense != AdversarialPoisoning(eps=EPS):
        return found

    def by_hand(**how: bool) -> Callable[[], str]:
        def work() -> str:
            network = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), build(model, CLASSES, data.shape, seed=0))
            made = network.to(data.device) if how.get("bf16") else ordinary(network.to(data.device))
            loss = train_immune(made, data.images, data.labels, replace(school), EPS, **how)
            return f"loss {loss:.3f}"

        return work

    found += [
        Arm(name="plain fp32 NCHW", role="straightforward", work=by_hand()),
        Arm(name="inputs only, fp32 NCHW", role="variant", work=by_hand(plain=False)),
    ]
    if setup.bf16:
        folding = by_hand(plain=False, bf16=True)
        found.append(Arm(name="inputs only, bf16, BatchNorm folded at every pass", role="variant", work=folding))
    return found


def _note(history: dict[str, list]) -> str:
    return f"loss {torch.tensor(history['loss'][0][-1]):.3f}"
