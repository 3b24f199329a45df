"""Adversarial poisoning: training that poisons its own batches, as a defence.

    mithridate study studies.adversarial_poisoning:small
    mithridate study studies.adversarial_poisoning:medium
    mithridate study studies.adversarial_poisoning:paper --device cuda

`small` takes six minutes of two cores, `medium` CPU hours, `paper` days of a GPU. All but `small`, which takes digits,
expect CIFAR-10 as `studies.witches_brew` does.

Reference: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You Robust(er): How to
Adversarially Train against Data Poisoning". 2021. arXiv 2102.13624.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import scenario
from studies.defenses import IMMUNE, adaptive, brewed, marked
from studies.witches_brew import cifar10


def small() -> list[mi.Trial]:
    """Returns a patch backdoor on digits under patches and under gradient matching, 12 poisons.

    Part of `studies.defenses:digits`.
    """
    defenses = ((mi.AdversarialPoisoning(),), (mi.AdversarialPoisoning(inner="patch"),))
    return plan_audit([marked(digits_recipe(), *defenses)], mi.Digits())


def medium() -> list[mi.Trial]:
    """Returns gradient matching at eps 32 on CIFAR-10 small, static and adaptive: 16 targets."""
    static = plan_audit([brewed((IMMUNE,))], cifar10(per_class=500))
    return [*static, *(trial for trial in adaptive() if trial.defenses == (IMMUNE,))]


def paper() -> list[mi.Trial]:
    """Returns gradient matching at eps 16 on ResNet-18 and all of CIFAR-10, 10 targets x 8 victims."""
    panel = Panel(
        attack=mi.WitchesBrew(steps=250, restarts=8, surrogates=1),
        threat=mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=16 / 255)),
        scenario=scenario("from-scratch", mi.Recipe(model="resnet18", epochs=40, batch_size=128)),
        defenses=((mi.AdversarialPoisoning(eps=16 / 255),),),
        trials=10,
        victims=8,
        adaptive=True,
    )
    return plan_audit([panel], cifar10())
