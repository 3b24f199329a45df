"""DP-InstaHide: k images mixed and Laplace noise added, as a defence against poison, with its guarantee.

    mithridate study studies.dp_instahide:small
    mithridate study studies.dp_instahide:medium
    mithridate study studies.dp_instahide:paper --device cuda

`small` takes four minutes of two cores, `medium` CPU hours, `paper` a day of a GPU. All but `small`, which takes
digits, expect CIFAR-10 as `studies.witches_brew` does.

Reference: Borgnia, Geiping, Cherepanova, Fowl, Gupta, Ghiasi, Huang, Goldblum, Goldstein. "DP-InstaHide: Provably
Defusing Poisoning and Backdoor Attacks with Differentially Private Data Augmentations". 2021. arXiv 2103.02079.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.defenses import brewed, marked, patched
from studies.witches_brew import cifar10

HIDDEN: tuple[tuple[mi.Defense, ...], ...] = ((mi.DPInstaHide(),), (mi.DPInstaHide(sampler="shuffled"),))


def small() -> list[mi.Trial]:
    """Returns a patch backdoor on digits under both samplers, 12 poisons; part of `studies.defenses:digits`."""
    return plan_audit([marked(digits_recipe(), *HIDDEN)], mi.Digits())


def medium() -> list[mi.Trial]:
    """Returns gradient matching and a patch backdoor on CIFAR-10 small."""
    panels = [brewed(HIDDEN[0]), patched(fast_recipe(small_recipe()), *HIDDEN)]
    return plan_audit(panels, cifar10(per_class=500))


def paper() -> list[mi.Trial]:
    """Returns gradient matching at eps 16 on ResNet-18 and all of CIFAR-10, 10 targets x 8 victims, k = 4."""
    panel = Panel(
        attack=mi.WitchesBrew(steps=250, restarts=8, surrogates=1),
        threat=mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=16 / 255)),
        scenario=scenario("from-scratch", mi.Recipe(model="resnet18", epochs=40, batch_size=128)),
        defenses=HIDDEN,
        trials=10,
        victims=8,
    )
    return plan_audit([panel], cifar10())
