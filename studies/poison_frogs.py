"""Poison Frogs: one poison, found by feature collision, against a new last layer on frozen features.

    mithridate study studies.poison_frogs:small
    mithridate study studies.poison_frogs:medium
    mithridate study studies.poison_frogs:paper --device cuda

`small` takes five minutes of two cores, `medium` an hour, `paper` hours of a GPU. CIFAR-10 is expected as for
`studies.witches_brew`.

Reference: Shafahi, Huang, Najibi, Suciu, Studer, Dumitras, Goldstein. "Poison Frogs! Targeted Clean-Label Poisoning
Attacks on Neural Networks". NeurIPS 2018. arXiv 1804.00792.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.targeted import end_to_end
from studies.witches_brew import cifar10


def small() -> list[mi.Trial]:
    """Returns one poison of 2,500 images on frozen features, any image allowed: 20 targets."""
    return plan_audit([_one_shot(fast_recipe(small_recipe()))], cifar10(per_class=500))


def medium() -> list[mi.Trial]:
    """Returns `small` with the full recipe, and watermarked poisons against victims that train all layers."""
    return [*plan_audit([_one_shot(small_recipe())], cifar10(per_class=500)), *end_to_end()]


def paper() -> list[mi.Trial]:
    """Returns all of CIFAR-10: one poison on frozen features, and watermarked ones end to end (0.2 %, 100 images)."""
    recipe = mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    marked = Panel(
        attack=mi.PoisonFrogs(watermark=0.3),
        threat=mi.ThreatModel(budget=0.002, ball=mi.AnyImage(), poison_class="intended"),
        scenario=scenario("fine-tuning", recipe),
        trials=50,
    )
    return plan_audit([_one_shot(recipe, trials=100), marked], cifar10())


def _one_shot(recipe: mi.Recipe, trials: int = 20) -> Panel:
    attack = mi.PoisonFrogs()
    return Panel(
        attack=attack, threat=attack.threat, scenario=scenario("transfer", recipe), trials=trials, clean_victims=3
    )
