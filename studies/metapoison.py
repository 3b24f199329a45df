"""MetaPoison: poison that unrolls a few steps of training, beside random changes under the same threat model.

    mithridate study studies.metapoison:small
    mithridate study studies.metapoison:medium
    mithridate study studies.metapoison:paper --device cuda

`small` takes six minutes of two cores, `medium` two CPU hours, `paper` a day of a GPU. CIFAR-10 is expected as for
`studies.witches_brew`.

Reference: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison: Practical General-purpose Clean-label Data Poisoning".
NeurIPS 2020. arXiv 2004.00225.
"""

from __future__ import annotations

import mithridate as mi
from mithridate.experiments.presets import fast_recipe, small_recipe
from studies import targeted
from studies.witches_brew import cell, cifar10


def small() -> list[mi.Trial]:
    """Returns 50 poisons of 5,000 images against victims of the fast recipe: 9 targets, 4 surrogates, 30 steps."""
    data, recipe = cifar10(per_class=500), fast_recipe(small_recipe())
    clean = cell(data, recipe, mi.NoAttack(), targeted.META, targets=9, victims=3)
    attacks = (mi.MetaPoison(surrogates=4, steps=30), mi.RandomNoise())
    return clean + [
        trial for attack in attacks for trial in cell(data, recipe, attack, targeted.META, targets=9, victims=1)
    ]


def medium() -> list[mi.Trial]:
    """Returns `studies.targeted:metapoison`: 8 surrogates, 60 steps, 10 targets x 2 victims."""
    return targeted.metapoison()


def paper() -> list[mi.Trial]:
    """Returns ResNet-18, all of CIFAR-10, 1 % poison, 24 surrogates, 60 steps, 10 targets x 8 victims."""
    data, recipe = cifar10(), mi.Recipe(model="resnet18", epochs=40, batch_size=128)
    attacks = (mi.MetaPoison(surrogates=24), mi.RandomNoise(), mi.NoAttack())
    return [trial for attack in attacks for trial in cell(data, recipe, attack, targeted.META, targets=10, victims=8)]
