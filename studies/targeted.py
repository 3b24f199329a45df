"""The targeted clean-label attacks under one threat model each: MetaPoison, feature collisions and their successors.

    mithridate study studies.targeted:metapoison
    mithridate study studies.targeted:transfer
    mithridate study studies.targeted:end_to_end
    mithridate study studies.targeted:packed
    mithridate study studies.targeted:grid
    mithridate study studies.targeted:paper --device cuda

All but `grid` expect CIFAR-10 in data/cifar10 (train.parquet and test.parquet in Hugging Face layout), or where the
environment variable MITHRIDATE_CIFAR10 says.

References: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison". NeurIPS 2020. arXiv 2004.00225. Shafahi et al.
"Poison Frogs!". NeurIPS 2018. arXiv 1804.00792. Zhu et al. "Transferable Clean-Label Poisoning Attacks on Deep Neural
Nets". ICML 2019. arXiv 1905.05897. Aghakhani et al. "Bullseye Polytope". EuroS&P 2021. arXiv 2005.00191. Geiping et al.
"Witches' Brew". ICLR 2021. arXiv 2009.02276.
"""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, small_recipe
from mithridate.experiments.scenarios import GREY, scenario
from mithridate.experiments.transfer import plan_transfer
from studies.witches_brew import cell, cifar10

META = mi.ThreatModel(budget=0.01, ball=mi.Recolor(eps=0.04) + mi.Linf(eps=8 / 255))
"""MetaPoison's own: eps 8 and recolouring by 4 %."""


def metapoison() -> list[mi.Trial]:
    """Returns MetaPoison and gradient matching under MetaPoison's threat model in the small setting, two CPU hours.

    50 of 5,000 images; 8 surrogates, K = 2, 60 steps, all poisons in one batch; 10 targets x 2 victims.
    """
    data, recipe = cifar10(per_class=500), small_recipe()
    attacks = (mi.MetaPoison(), mi.RandomNoise(), mi.WitchesBrew())
    clean = cell(data, recipe, mi.NoAttack(), META, targets=10, victims=8)
    return clean + [trial for attack in attacks for trial in cell(data, recipe, attack, META, targets=10, victims=2)]


def transfer() -> list[mi.Trial]:
    """Returns the attacks on frozen features on the same 20 targets, 25 poisons among 2,500 images; half a CPU hour.

    At eps 8/255, where the attacks are usually compared, and at the 0.1 of the polytope papers; with the victims'
    features (white box) and, at 0.1, with two sets of features of the attacker's own (grey box).
    """
    recipe = small_recipe()
    cells = [("transfer", 8 / 255, 1), ("transfer", 0.1, 1), ("transfer" + GREY, 0.1, 2)]
    panels = []
    for place, eps, surrogates in cells:
        attacks = (
            mi.PoisonFrogs(surrogates=surrogates),
            mi.ConvexPolytope(surrogates=surrogates),
            mi.BullseyePolytope(surrogates=surrogates),
        )
        threat = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=eps), poison_class="intended")
        panels += [Panel(attack=attack, threat=threat, scenario=scenario(place, recipe)) for attack in attacks]
    return plan_audit(panels, cifar10(per_class=500))


def end_to_end() -> list[mi.Trial]:
    """Returns watermarked poisons against victims that fine-tune all weights, 10 targets; half a CPU hour.

    The watermark alone, feature collision from it (the many-poison mode of Poison Frogs), and MetaPoison from it with
    eps 8 around the blend and K = 4. 3 % of 2,500 images, any image allowed.
    """
    recipe = small_recipe()
    threat = mi.ThreatModel(budget=0.03, ball=mi.AnyImage(), poison_class="intended")
    attacks = (
        mi.Watermark(opacity=0.3),
        mi.PoisonFrogs(watermark=0.3),
        mi.MetaPoison(watermark=0.3, search=mi.Linf(eps=8 / 255), inner_steps=4, surrogates=4, steps=30),
    )
    place = scenario("fine-tuning", recipe)
    panels = [Panel(attack=attack, threat=threat, scenario=place, trials=10) for attack in attacks]
    return plan_audit(panels, cifar10(per_class=500))


def packed() -> list[mi.Trial]:
    """Returns one target of `metapoison` with packed batches and with batches as drawn, 8 victims each; CPU hours.

    2 surrogates and 20 steps: as drawn, each step differentiates some thirty batches of every surrogate.
    """
    data, recipe = cifar10(per_class=500), small_recipe()
    attack = mi.MetaPoison(surrogates=2, steps=20)
    attacks = (attack, replace(attack, batches="as-drawn"))
    clean = cell(data, recipe, mi.NoAttack(), META, targets=1, victims=8)
    return clean + [trial for attack in attacks for trial in cell(data, recipe, attack, META, targets=1, victims=8)]


def grid() -> list[mi.Trial]:
    """Returns a transfer grid on digits: two surrogates and both, two victims, three scenarios; a CPU hour."""
    recipe = digits_recipe()
    wide = replace(recipe, model="convnet-wide")
    panel = Panel(
        attack=mi.BullseyePolytope(steps=300),
        threat=mi.ThreatModel(budget=0.02, ball=mi.Linf(eps=64 / 255), poison_class="intended"),
        scenario=scenario("transfer", recipe),
        trials=8,
        clean_victims=3,
    )
    return plan_transfer(
        panel, mi.Digits(), victims=(recipe, wide), surrogates=(recipe, wide, mi.Mixed((recipe, wide)))
    )


def paper() -> list[mi.Trial]:
    """Returns the papers' size: 50,000 images, ResNet-18, 1 % poison, 10 targets x 8 victims. Made for a GPU.

    Gradient matching at eps 16 is `studies.witches_brew:paper`; here are gradient matching at eps 8 and MetaPoison with
    its 24 surrogates, and the controls of both.
    """
    data, recipe = cifar10(), mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    eight = mi.ThreatModel(budget=0.01, ball=mi.Linf(eps=8 / 255))
    cells = (
        (mi.WitchesBrew(steps=250, restarts=8, surrogates=1), eight),
        (mi.RandomNoise(), eight),
        (mi.MetaPoison(surrogates=24), META),
        (mi.RandomNoise(), META),
        (mi.NoAttack(), META),
    )
    return [trial for attack, threat in cells for trial in cell(data, recipe, attack, threat, targets=10, victims=8)]
