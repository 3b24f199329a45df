"""Gradient matching on CIFAR-10 against its controls: the paper's setting for a GPU, and a small one for a CPU.

    mithridate study studies.witches_brew:small
    mithridate study studies.witches_brew:medium
    mithridate study studies.witches_brew:fp32
    mithridate study studies.witches_brew:paper --device cuda

CIFAR-10 is expected in data/cifar10 (train.parquet and test.parquet in Hugging Face layout), or where the environment
variable MITHRIDATE_CIFAR10 says.

Reference: Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein. "Witches' Brew: Industrial Scale Data Poisoning via
Gradient Matching". ICLR 2021. arXiv 2009.02276.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario


def cifar10(per_class: int | None = None) -> mi.DataSource:
    """Returns CIFAR-10, or the first images of each class of it."""
    return mi.Parquet(os.environ.get("MITHRIDATE_CIFAR10", "data/cifar10"), per_class=per_class)


def cell(
    data: mi.DataSource,
    recipe: mi.Recipe,
    attack: mi.Attack,
    threat: mi.ThreatModel,
    *,
    targets: int,
    victims: int,
    defenses: Sequence[mi.Defense] = (),
) -> list[mi.Trial]:
    """Returns the trials of one cell: the same targets, from the seeds, as in every other cell."""
    return [
        mi.Trial(
            data=data,
            learner=recipe,
            attack=attack,
            threat=threat,
            defenses=tuple(defenses),
            victims=victims,
            seed=seed,
        )
        for seed in range(targets)
    ]


def small() -> list[mi.Trial]:
    """Returns nine targets at eps 32 against victims of the fast recipe, beside noise; seven minutes of two cores.

    Part of `studies.defenses:gradient_matching`.
    """
    panel = Panel(
        attack=mi.WitchesBrew(steps=250, surrogates=2),
        threat=mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=32 / 255)),
        scenario=scenario("from-scratch", fast_recipe(small_recipe())),
        trials=9,
        clean_victims=3,
    )
    return plan_audit([panel], cifar10(per_class=500))


def paper() -> list[mi.Trial]:
    """Returns the setting of the authors' CIFAR-10 scripts: ResNet-18, 1 % poison, eps 16, 10 targets x 8 victims.

    8 restarts of 250 steps, one surrogate, 40 epochs, batch 128. Made for a GPU: each target trains 16 victims.
    """
    data, recipe = cifar10(), mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    threat = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=16 / 255))
    brew = mi.WitchesBrew(steps=250, restarts=8, surrogates=1)
    attacks = (brew, mi.RandomNoise(), mi.NoAttack())
    return [
        trial for attack in attacks for trial in cell(data, recipe, attack, threat, targets=10, victims=8)
    ]  # 80 victims a cell, 8 in all for no-attack, whose victims all targets share


def medium() -> list[mi.Trial]:
    """Returns the standard small setting: 500 images per class, `convnet`, 2 % poison, 20 paired targets; CPU hours.

    At eps 16 and, since a small set gives small effects, at eps 32; the poisons of eps 16 under mixup as well.
    """
    data = cifar10(per_class=500)
    recipe = mi.Recipe(model="convnet", epochs=40, batch_size=125)  # 5,000 images: 40 equal batches
    brew = mi.WitchesBrew(steps=250, surrogates=2)
    low, high = (mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=eps / 255)) for eps in (16, 32))
    mixup = (mi.Mixup(),)
    return [  # no attack has no dose: the same clean victims answer for all targets of both
        *cell(data, recipe, mi.NoAttack(), low, targets=20, victims=8),
        *cell(data, recipe, brew, low, targets=20, victims=1),
        *cell(data, recipe, mi.RandomNoise(), low, targets=20, victims=1),
        *cell(data, recipe, brew, high, targets=20, victims=1),
        *cell(data, recipe, mi.RandomNoise(), high, targets=20, victims=1),
        *cell(data, recipe, mi.NoAttack(), low, targets=20, victims=2, defenses=mixup),
        *cell(data, recipe, brew, low, targets=20, victims=1, defenses=mixup),
    ]


def fp32() -> list[mi.Trial]:
    """Returns the first 8 targets of `medium` at eps 32 once more, crafted in float32: does bf16 cost success?

    The victims train as in `medium`, so the two differ in how the poison was computed and nothing else.
    """
    recipe = mi.Recipe(model="convnet", epochs=40, batch_size=125)
    brew = mi.WitchesBrew(steps=250, surrogates=2, precision="fp32")
    high = mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=32 / 255))
    return cell(cifar10(per_class=500), recipe, brew, high, targets=8, victims=1)
