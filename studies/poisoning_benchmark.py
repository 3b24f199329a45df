"""The setting in which attacks are usually compared: eps 8/255, 1 % of the images, transfer and from scratch.

    mithridate study studies.poisoning_benchmark:small
    mithridate study studies.poisoning_benchmark:medium
    mithridate study studies.poisoning_benchmark:paper --device cuda

`small` takes six minutes of two cores, `medium` a night of a CPU, `paper` days of a GPU. CIFAR-10 is expected as for
`studies.witches_brew`. Features are pretrained on the other half of CIFAR-10 instead of CIFAR-100.

Reference: Schwarzschild, Goldblum, Gupta, Dickerson, Goldstein. "Just How Toxic is Data Poisoning? A Unified Benchmark
for Backdoor and Data Poisoning Attacks". ICML 2021. arXiv 2006.12557.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import fast_recipe, small_recipe
from mithridate.experiments.scenarios import GREY, scenario
from studies.witches_brew import cifar10

EPS = 8 / 255
SETUPS = 100
"""Targets of `medium` and `paper`."""
ON_FEATURES: tuple[mi.Attack, ...] = (mi.PoisonFrogs(), mi.ConvexPolytope(), mi.BullseyePolytope())


def small() -> list[mi.Trial]:
    """Returns three attacks on frozen features, white box, 12 setups."""
    return plan_audit(_transfer(fast_recipe(small_recipe()), ("transfer",), setups=12), cifar10(per_class=500))


def medium() -> list[mi.Trial]:
    """Returns 100 setups on frozen features, white and grey box, and 20 from scratch, in the small setting."""
    recipe = fast_recipe(small_recipe())
    panels = _transfer(recipe, ("transfer", "transfer" + GREY), setups=SETUPS)
    return plan_audit([*panels, *_from_scratch(recipe, setups=20)], cifar10(per_class=500))


def paper() -> list[mi.Trial]:
    """Returns 100 setups of each on ResNet-18 and all of CIFAR-10."""
    recipe = mi.Recipe(model="resnet18", epochs=200, batch_size=128)
    panels = _transfer(recipe, ("transfer", "transfer" + GREY), setups=SETUPS)
    return plan_audit([*panels, *_from_scratch(recipe, setups=SETUPS)], cifar10())


def _transfer(recipe: mi.Recipe, places: tuple[str, ...], setups: int) -> list[Panel]:
    threat = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=EPS), poison_class="intended")
    return [
        Panel(attack=attack, threat=threat, scenario=scenario(place, recipe), trials=setups, clean_victims=3)
        for place in places
        for attack in ON_FEATURES
    ]


def _from_scratch(recipe: mi.Recipe, setups: int) -> list[Panel]:
    threat = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=EPS))
    attacks: tuple[mi.Attack, ...] = (mi.WitchesBrew(steps=250, surrogates=2), *ON_FEATURES)
    return [
        Panel(attack=attack, threat=threat, scenario=scenario("from-scratch", recipe), trials=setups, clean_victims=3)
        for attack in attacks
    ]
