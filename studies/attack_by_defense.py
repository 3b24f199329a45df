"""Attacks against defences: a backdoor, a feature collision and gradient matching, with and without each defence.

    mithridate study studies.attack_by_defense:digits
    mithridate study studies.attack_by_defense:access
    mithridate study studies.attack_by_defense:small

`small` expects CIFAR-10 in data/cifar10 (train.parquet and test.parquet in Hugging Face layout), or where the
environment variable MITHRIDATE_CIFAR10 says. Its gradient matching, its mixup cells and its clean victims are those of
`studies.witches_brew:medium`: in the same results folder they are found there.

References: Gu, Dolan-Gavitt, Garg. "BadNets". arXiv 1708.06733. Shafahi et al. "Poison Frogs!". NeurIPS 2018.
arXiv 1804.00792. Geiping et al. "Witches' Brew". ICLR 2021. arXiv 2009.02276. Borgnia et al. "Strong Data Augmentation
Sanitizes Poisoning and Backdoor Attacks Without an Accuracy Tradeoff". ICASSP 2021. arXiv 2011.09527.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, small_recipe
from mithridate.experiments.scenarios import BLACK, GREY, scenario
from studies.witches_brew import cifar10

Stacks = Sequence[tuple[mi.Defense, ...]]

DEFENSES: Stacks = (
    (mi.Mixup(),),
    (mi.Cutmix(),),
    (mi.Cutout(),),
    (mi.Maxup(),),
    (mi.Noise(),),
    (mi.SpectralSignatures(contamination=0.02),),
    (mi.PartitionVote(),),
)
SGD_HEAD = (mi.Noise(scale=0),)
"""No defence at all, but a head that is trained by SGD as under any augmentation, and not solved to convergence."""


def digits() -> list[mi.Trial]:
    """Returns the whole grid on digits, each defence static and, where it can say something, adaptive; half an hour.

    A vote is met by the static attacker alone: crafting through its ten parts would cost more than all the rest. So are
    most defences against gradient matching, which moves no target here even without one. A patch backdoor has nothing
    to adapt: its poison does not depend on any model.
    """
    recipe = digits_recipe()
    trials = plan_audit(
        [
            Panel(
                attack=mi.BadNets(),
                threat=replace(mi.BadNets.threat, budget=0.02),
                scenario=scenario("from-scratch", recipe),
                defenses=tuple(DEFENSES),
                trials=12,  # 12 of 12 against 0 of 12 is shown among up to a hundred comparisons
                clean_victims=3,
            ),
            Panel(
                attack=mi.PoisonFrogs(steps=400),
                threat=mi.PoisonFrogs.threat,
                scenario=scenario("transfer", recipe),
                defenses=(*DEFENSES, SGD_HEAD),
                adaptive=True,
                clean_victims=3,
            ),
            Panel(
                attack=mi.WitchesBrew(steps=100, surrogates=2),
                threat=mi.ThreatModel(budget=0.05, ball=mi.Linf(eps=32 / 255)),
                scenario=scenario("from-scratch", recipe),
                defenses=tuple(DEFENSES),
                adaptive=True,
                clean_victims=3,
            ),
        ],
        mi.Digits(),
    )
    return [trial for trial in trials if not trial.adaptive or _telling(trial)]


def _telling(trial: mi.Trial) -> bool:
    """Whether an adaptive cell of `digits` is run."""
    (defense,) = trial.defenses
    if trial.defenses == SGD_HEAD:
        return False
    if isinstance(trial.attack, mi.WitchesBrew):
        return isinstance(defense, (mi.Mixup, mi.Cutmix))
    return not isinstance(defense, mi.PartitionVote)


def access() -> list[mi.Trial]:
    """Returns what the attacker's knowledge is worth on digits: feature collision against frozen features and gradient
    matching against fine-tuning, each as white, grey and black box; some minutes.
    """
    recipe = digits_recipe()
    panels = {
        "transfer": {"attack": mi.PoisonFrogs(steps=400), "threat": mi.PoisonFrogs.threat},
        "fine-tuning": {
            "attack": mi.WitchesBrew(steps=100, surrogates=2),
            "threat": mi.ThreatModel(budget=0.05, ball=mi.Linf(eps=32 / 255)),
        },
    }
    return plan_audit(
        [
            Panel(scenario=scenario(name + access, recipe), clean_victims=3, **settings)
            for name, settings in panels.items()
            for access in ("", GREY, BLACK)
        ],
        mi.Digits(),
    )


def small() -> list[mi.Trial]:
    """Returns the standard small setting on CIFAR-10: 20 paired targets, and 20 backdoors; about three CPU hours.

    Gradient matching at eps 16, feature collision on frozen features, a patch backdoor; each without defence and under
    mixup, CutMix and spectral signatures.
    """
    recipe = small_recipe()
    defenses = tuple(stack for stack in DEFENSES if isinstance(stack[0], (mi.Mixup, mi.Cutmix, mi.SpectralSignatures)))
    settings = {"defenses": defenses, "trials": 20, "clean_victims": 8}
    return plan_audit(
        [
            Panel(
                attack=mi.WitchesBrew(steps=250, surrogates=2),
                threat=mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=16 / 255)),
                scenario=scenario("from-scratch", recipe),
                **settings,
            ),
            Panel(
                attack=mi.PoisonFrogs(),
                threat=mi.PoisonFrogs.threat,
                scenario=scenario("transfer", recipe),
                **settings | {"defenses": (*defenses, SGD_HEAD)},
            ),
            Panel(
                attack=mi.BadNets(),
                threat=replace(mi.BadNets.threat, budget=0.02),
                scenario=scenario("from-scratch", recipe),
                **settings,
            ),
        ],
        cifar10(per_class=500),
    )
