"""What a shared gradient gives away of CIFAR-10 images: by network, batch size, attack and defence.

    mithridate study studies.inverting_gradients:small
    mithridate study studies.inverting_gradients:medium
    mithridate study studies.inverting_gradients:paper --device cuda
    mithridate study studies.inverting_gradients:cosine
    mithridate study studies.inverting_gradients:attacks
    mithridate study studies.inverting_gradients:defenses

All but `defenses`, which takes digits, expect CIFAR-10 in data/cifar10 (train.parquet and test.parquet in Hugging Face
layout), or where the environment variable MITHRIDATE_CIFAR10 says. Images are drawn from the test set, on which no
network was trained.

References: Geiping, Bauermeister, Dröge, Moeller. "Inverting Gradients". NeurIPS 2020. arXiv 2003.14053. Zhu, Liu, Han.
"Deep Leakage from Gradients". NeurIPS 2019. arXiv 1906.08935. Yin et al. "See through Gradients". CVPR 2021. arXiv
2104.07586.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mithridate as mi
from mithridate.experiments.presets import digits_recipe, small_recipe
from studies.witches_brew import cifar10

CASES = 10
"""Batches in each cell, the same ones in every cell of equal size."""
SEARCH: dict[str, Any] = {"steps": 2000, "total_variation": 1e-2}
"""The published range of the total variation is 1e-6 to 0.1; on images like these 1e-2 was best of 1e-4, 1e-2, 0.1 on
three images of two untrained networks, which are among those of the study."""
NOISES = (0.001, 0.01, 0.1)
"""Noise in units of the clip."""


def networks() -> dict[str, mi.Recipe]:
    """The networks, untrained and trained on 5,000 images: the usual small one, and one that is smooth everywhere."""
    convnet = small_recipe()
    lenet = replace(convnet, model="lenet", learning_rate=0.02, epochs=20)
    trained = {"convnet": convnet, "lenet": lenet}
    return {f"untrained {name}": replace(recipe, epochs=0) for name, recipe in trained.items()} | trained


def cell(
    recipe: mi.Recipe, attack: mi.Inversion, batch: int = 1, data: mi.DataSource | None = None, **settings: Any
) -> list[mi.LeakTrial]:
    """One cell: so many batches, attacked alike, of CIFAR-10 unless other data are given."""
    images = cifar10(per_class=500) if data is None else data
    common = {"data": images, "recipe": recipe, "attack": attack, "client": mi.Client(batch=batch)} | settings
    return [mi.LeakTrial(**common, seed=seed) for seed in range(CASES)]


def small() -> list[mi.LeakTrial]:
    """Returns single images on the four networks: part of `cosine`; five minutes of two cores."""
    attack = mi.InvertingGradients(**SEARCH)
    return [trial for recipe in networks().values() for trial in cell(recipe, attack)]


def medium() -> list[mi.LeakTrial]:
    """Returns `cosine`, `attacks` and `defenses`; two CPU hours."""
    return [*cosine(), *attacks(), *defenses()]


def paper() -> list[mi.LeakTrial]:
    """Returns single images of CIFAR-10 on an untrained and a trained ResNet-18: 24,000 iterations; a GPU hour.

    The published number of restarts, 1, and total variations from 1e-6 to 1e-1.
    """
    trained = replace(small_recipe(), model="resnet18")
    return [
        trial
        for recipe in (replace(trained, epochs=0), trained)
        for weight in (1e-6, 1e-4, 1e-2, 1e-1)
        for trial in cell(recipe, mi.InvertingGradients(steps=24_000, total_variation=weight))
    ]


def cosine() -> list[mi.LeakTrial]:
    """Returns Inverting Gradients on batches of 1, 4 and 8 and under three strengths of noise; an hour of one core."""
    attack = mi.InvertingGradients(**SEARCH)
    trials: list[mi.LeakTrial] = []
    for recipe in networks().values():
        for batch in (1, 4, 8):
            trials += cell(recipe, attack, batch)
        for noise in NOISES:
            trials += cell(recipe, attack, defenses=(mi.ClipAndNoise(noise=noise),))
    return trials


def attacks() -> list[mi.LeakTrial]:
    """Returns the other attacks on the same single images; a quarter of an hour of one core."""
    modern = mi.InvertingGradientsModern(**SEARCH)
    trials: list[mi.LeakTrial] = []
    for name, recipe in networks().items():
        trials += cell(recipe, modern)
        if "lenet" in name:
            for line_search in (False, True):
                trials += cell(recipe, mi.DeepLeakage(steps=100, line_search=line_search))
        else:
            trials += cell(recipe, mi.GradInversion(**SEARCH))
    perceptron = replace(small_recipe(), model="mlp", learning_rate=0.03, epochs=20)
    for recipe in (replace(perceptron, epochs=0), perceptron):
        for batch in (1, 4, 8):
            trials += cell(recipe, mi.AnalyticLinear(), batch, distinct=True)
    return trials


def defenses() -> list[mi.LeakTrial]:
    """Returns every defence on pairs of digits, against attackers who do not know it and who do; ten core-minutes.

    Without a defence the attack is nearly exact there. On CIFAR-10 in batches of 4 it reaches
    nothing that a defence could take away.
    """
    attack = mi.InvertingGradients(steps=1000)
    recipe = replace(digits_recipe(), model="lenet", learning_rate=0.3)
    defended: Sequence[mi.LeakDefense] = (
        mi.ClipAndNoise(noise=0.001),
        mi.ClipAndNoise(noise=0.01),
        mi.ClipAndNoise(noise=0.1),
        mi.Sparsify(keep=0.1),
        mi.Quantize(bits=4),
        mi.Mixing(),
        mi.LocalSteps(steps=4, rate=0.3),
        mi.LargerBatch(factor=4),
    )
    data = mi.Digits()
    trials = cell(recipe, attack, 2, data=data)
    for defense in defended:
        for adaptive in (False, True):
            trials += cell(recipe, attack, 2, data=data, defenses=(defense,), adaptive=adaptive)
    return trials
