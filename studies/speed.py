"""What speed costs: the fast recipe beside the papers', bfloat16 beside float32.

    mithridate study studies.speed:accuracy
    mithridate study studies.speed:survival
    mithridate study studies.speed:digits
    mithridate study studies.speed:precision

CIFAR-10 is expected in data/cifar10 (train.parquet and test.parquet in Hugging Face layout), or where the environment
variable MITHRIDATE_CIFAR10 says. `survival` has the targets of `studies.attack_by_defense:small` and of
`studies.witches_brew:medium`, whose victims are trained with the papers' recipe: case by case, the two can be compared.
"""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.witches_brew import cell, cifar10


def accuracy() -> list[mi.Trial]:
    """Returns clean victims on all of CIFAR-10 under both recipes, `convnet`, 3 each; 35 core-minutes."""
    return [
        mi.Trial(data=cifar10(), threat=mi.ThreatModel(), attack=mi.NoAttack(), learner=recipe, victims=3)
        for recipe in (fast_recipe(mi.Recipe(model="convnet")), mi.Recipe(model="convnet"))
    ]


def survival() -> list[mi.Trial]:
    """Returns the attacks of the small setting against victims of the fast recipe; the attacker knows it.

    Gradient matching at eps 32, where it works with the papers' recipe, on 20 paired targets with its controls, and 6
    backdoors; an hour on one core.
    """
    data, recipe = cifar10(per_class=500), fast_recipe(small_recipe())
    threat = mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=32 / 255))
    attacks = (mi.WitchesBrew(steps=250, surrogates=2), mi.RandomNoise())
    return [
        *cell(data, recipe, mi.NoAttack(), threat, targets=20, victims=8),
        *_backdoors(recipe, data, trials=6),
        *(trial for attack in attacks for trial in cell(data, recipe, attack, threat, targets=20, victims=1)),
    ]


def digits() -> list[mi.Trial]:
    """Returns the backdoor and the feature collision of the digits audit under both recipes; some minutes."""
    return [
        trial
        for recipe in (digits_recipe(), fast_recipe(digits_recipe()))
        for trial in (
            *_backdoors(recipe, mi.Digits(), trials=12),
            *_collisions(recipe, mi.Digits(), mi.PoisonFrogs(steps=400)),
        )
    ]


def precision() -> list[mi.Trial]:
    """Returns feature collision in float32 and in bfloat16 for the same targets: 40 on digits, 20 on CIFAR-10 small."""
    formats = [mi.PoisonFrogs(steps=400, precision=name) for name in ("fp32", "bf16")]
    small = [mi.PoisonFrogs(precision=name) for name in ("fp32", "bf16")]
    return [
        *(t for attack in formats for t in _collisions(digits_recipe(), mi.Digits(), attack, targets=40)),
        *(t for attack in small for t in _collisions(small_recipe(), cifar10(per_class=500), attack)),
    ]


def _backdoors(recipe: mi.Recipe, data: mi.DataSource, *, trials: int) -> list[mi.Trial]:
    panel = Panel(
        attack=mi.BadNets(),
        threat=replace(mi.BadNets.threat, budget=0.02),
        scenario=scenario("from-scratch", recipe),
        trials=trials,
        clean_victims=8,
    )
    return plan_audit([panel], data)


def _collisions(recipe: mi.Recipe, data: mi.DataSource, attack: mi.PoisonFrogs, targets: int = 20) -> list[mi.Trial]:
    place = scenario("transfer", recipe)
    return plan_audit(
        [Panel(attack=attack, threat=mi.PoisonFrogs.threat, scenario=place, trials=targets, clean_victims=3)], data
    )
