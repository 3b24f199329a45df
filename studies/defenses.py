"""Every defence of the papers against the attacks they were made for, static and adaptive.

    mithridate study studies.defenses:gradient_matching
    mithridate study studies.defenses:adaptive
    mithridate study studies.defenses:backdoor
    mithridate study studies.defenses:filters
    mithridate study studies.defenses:digits

All but `digits` expect CIFAR-10 in data/cifar10 (train.parquet and test.parquet in Hugging Face layout), or where the
environment variable MITHRIDATE_CIFAR10 says: 500 images per class, victims of the fast recipe. In one results folder
they share their poisons, surrogates and clean victims.

References: Geiping et al. "Witches' Brew". ICLR 2021. arXiv 2009.02276. Geiping et al. "What Doesn't Kill You Makes You
Robust(er)". 2021. arXiv 2102.13624. Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks
Without an Accuracy Tradeoff". ICASSP 2021. arXiv 2011.09527. Borgnia et al. "DP-InstaHide". 2021. arXiv 2103.02079.
Hong et al. "On the Effectiveness of Mitigating Data Poisoning Attacks with Gradient Shaping". 2020. arXiv 2002.11497.
Yang, Liu, Mirzasoleiman. "Not All Poisons are Created Equal". ICML 2022. arXiv 2210.09671.
"""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.witches_brew import cifar10

EPS = 32 / 255
"""Where gradient matching moves about half of its targets in so small a setting; at 16/255 it moves every fifth."""
IMMUNE = mi.AdversarialPoisoning(eps=EPS)
"""As strong as the attack, as in its paper."""


FILTERS = (
    (mi.SpectralSignatures(contamination=0.02),),
    (mi.ActivationClustering(contamination=0.02),),
    (mi.DeepKNN(contamination=0.02),),
    (mi.Epic(),),
)
TRAINING = (
    (mi.Mixup(),),
    (mi.Cutmix(),),
    (mi.DPInstaHide(),),
    (mi.GradientShaping(),),
)
"""Defences that change how a model is trained; the costly ones are named where they are run."""
TRUSTED = 100
"""Clean rows for those that need some."""


def gradient_matching() -> list[mi.Trial]:
    """Returns gradient matching under each defence with its controls: 16 paired targets; hours."""
    cheap = (*TRAINING, (mi.Epic(),), (mi.SpectralSignatures(contamination=0.02),))
    return plan_audit([brewed(*cheap), brewed((IMMUNE,))], cifar10(per_class=500))


def adaptive() -> list[mi.Trial]:
    """Returns gradient matching that knows the defence: mixup, CutMix, adversarial poisoning; hours."""
    panel = replace(brewed((mi.Mixup(),), (mi.Cutmix(),), (IMMUNE,)), adaptive=True)
    return [trial for trial in plan_audit([panel], cifar10(per_class=500)) if trial.adaptive]


def backdoor() -> list[mi.Trial]:
    """Returns a patch backdoor under each defence: 3 poisons, 5 victims of each; an hour."""
    recipe, patches = fast_recipe(small_recipe()), (mi.AdversarialPoisoning(inner="patch"),)
    wrapping = ((mi.PartitionVote(),), (mi.Strip(),))
    defenses = (*TRAINING, patches, *FILTERS, *wrapping, (mi.FineTuning(),), (mi.FinePruning(),))
    return plan_audit([patched(recipe, *defenses)], cifar10(per_class=500))


def filters() -> list[mi.Trial]:
    """Returns two attacks on frozen features under each filter: 20 targets; half an hour."""
    attacks = {mi.PoisonFrogs(): mi.PoisonFrogs.threat, mi.BullseyePolytope(): mi.BullseyePolytope.threat}
    chosen = tuple(stack for stack in FILTERS if stack[0].kind == "filter")  # a solved head has no epochs
    panels = [
        Panel(
            attack=attack,
            threat=threat,
            scenario=scenario("transfer", small_recipe()),
            defenses=chosen,
            clean_victims=3,
        )
        for attack, threat in attacks.items()
    ]
    return plan_audit(panels, cifar10(per_class=500))


def digits() -> list[mi.Trial]:
    """Returns a patch backdoor on digits under every defence, 12 poisons; an hour."""
    recipe = digits_recipe()
    private = replace(recipe, model="mlp", epochs=30, transforms=())  # some runs of convnet:norm=group do not train
    defenses = (
        *TRAINING,
        (mi.DPInstaHide(sampler="shuffled"),),
        (mi.Maxup(),),
        (mi.AdversarialTraining(),),
        (mi.AdversarialPoisoning(),),
        (mi.AdversarialPoisoning(inner="patch"),),
        (mi.AdversarialPoisoning(inner="feature-collision"),),
        *FILTERS,
        (mi.PartitionVote(),),
        (mi.Strip(),),
        (mi.FineTuning(),),
        (mi.FinePruning(),),
    )
    panels = [marked(recipe, *defenses), marked(private, (mi.DPSGD(),), (mi.GradientShaping(),))]
    return plan_audit(panels, mi.Digits())


def patched(recipe: mi.Recipe, *defenses: tuple[mi.Defense, ...]) -> Panel:
    """A patch backdoor on photographs: 3 poisons, 5 victims each."""
    return replace(marked(recipe, *defenses), trials=3, victims=5)


def marked(recipe: mi.Recipe, *defenses: tuple[mi.Defense, ...]) -> Panel:
    """A patch backdoor: 12 poisons."""
    return Panel(
        attack=mi.BadNets(),
        threat=replace(mi.BadNets.threat, budget=0.02),
        scenario=scenario("from-scratch", recipe),
        defenses=defenses,
        trials=12,
        clean_victims=3,
        trusted=TRUSTED,
    )


def brewed(*defenses: tuple[mi.Defense, ...]) -> Panel:
    """Gradient matching at eps 32: 16 targets."""
    return Panel(
        attack=mi.WitchesBrew(steps=250, surrogates=2),
        threat=mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=EPS)),
        scenario=scenario("from-scratch", fast_recipe(small_recipe())),
        defenses=defenses,
        trials=16,
        clean_victims=3,
    )
