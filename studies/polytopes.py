"""Convex and Bullseye Polytope: several poisons around the target in feature space, for victims the attacker lacks.

    mithridate study studies.polytopes:small
    mithridate study studies.polytopes:medium
    mithridate study studies.polytopes:paper --device cuda

`small` takes five minutes of two cores, `medium` a CPU hour, `paper` hours of a GPU. CIFAR-10 is expected as for
`studies.witches_brew`.

References: Zhu, Huang, Li, Taylor, Studer, Goldstein. "Transferable Clean-Label Poisoning Attacks on Deep Neural Nets".
ICML 2019. arXiv 1905.05897. Aghakhani, Meng, Wang, Kruegel, Vigna. "Bullseye Polytope". EuroS&P 2021. arXiv 2005.00191.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import fast_recipe, small_recipe
from mithridate.experiments.scenarios import GREY, scenario
from studies.targeted import transfer
from studies.witches_brew import cifar10

THREAT = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=0.1), poison_class="intended")
"""The papers' own eps."""


def small() -> list[mi.Trial]:
    """Returns both attacks with the victim's features and with two sets of the attacker's own: 9 targets."""
    return plan_audit(_panels(fast_recipe(small_recipe()), trials=9, surrogates=2), cifar10(per_class=500))


def medium() -> list[mi.Trial]:
    """Returns `studies.targeted:transfer`: both beside feature collision, 20 targets, at two strengths."""
    return transfer()


def paper() -> list[mi.Trial]:
    """Returns both on ResNet-18 and all of CIFAR-10, four surrogates, 50 targets."""
    recipe = mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    return plan_audit(_panels(recipe, trials=50, surrogates=4), cifar10())


def _panels(recipe: mi.Recipe, trials: int, surrogates: int) -> list[Panel]:
    return [
        Panel(
            attack=attack(surrogates=members),
            threat=THREAT,
            scenario=scenario(place, recipe),
            trials=trials,
            clean_victims=3,
        )
        for place, members in (("transfer", 1), ("transfer" + GREY, surrogates))
        for attack in (mi.ConvexPolytope, mi.BullseyePolytope)
    ]
