"""Strong augmentation: mixup, CutMix, Cutout and MaxUp as defences against a patch backdoor and gradient matching.

    mithridate study studies.strong_augmentation:small
    mithridate study studies.strong_augmentation:medium
    mithridate study studies.strong_augmentation:paper --device cuda

`small` takes eight minutes of two cores, `medium` two CPU hours, `paper` a day of a GPU. CIFAR-10 is expected as for
`studies.witches_brew`.

Reference: Borgnia, Cherepanova, Fowl, Ghiasi, Geiping, Goldblum, Goldstein, Gupta. "Strong Data Augmentation Sanitizes
Poisoning and Backdoor Attacks Without an Accuracy Tradeoff". ICASSP 2021. arXiv 2011.09527.
"""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.defenses import brewed, patched
from studies.witches_brew import cifar10

AUGMENTED: tuple[tuple[mi.Defense, ...], ...] = ((mi.Mixup(),), (mi.Cutmix(),), (mi.Cutout(),), (mi.Maxup(),))


def small() -> list[mi.Trial]:
    """Returns a patch backdoor under mixup and CutMix: 3 poisons x 5 victims, part of `studies.defenses:backdoor`."""
    return plan_audit([patched(fast_recipe(small_recipe()), *AUGMENTED[:2])], cifar10(per_class=500))


def medium() -> list[mi.Trial]:
    """Returns gradient matching and the backdoor under all four."""
    panels = [brewed(*AUGMENTED), patched(fast_recipe(small_recipe()), *AUGMENTED)]
    return plan_audit(panels, cifar10(per_class=500))


def paper() -> list[mi.Trial]:
    """Returns both on ResNet-18 and all of CIFAR-10: a patch on 10 % of a class, gradient matching at eps 16."""
    recipe = mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    matching = Panel(
        attack=mi.WitchesBrew(steps=250, restarts=8, surrogates=1),
        threat=mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=16 / 255)),
        scenario=scenario("from-scratch", recipe),
        defenses=AUGMENTED,
        trials=10,
        victims=8,
    )
    marked = patched(recipe, *AUGMENTED)
    return plan_audit([matching, replace(marked, threat=replace(marked.threat, budget=0.01))], cifar10())
