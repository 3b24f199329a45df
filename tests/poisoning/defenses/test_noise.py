"""Noise as a defence: it changes the recipe, and makes the model bear noise."""

from __future__ import annotations

import numpy as np
import pytest

from mithridate.core import transforms
from mithridate.core.training import Recipe
from mithridate.poisoning.defenses.noise import Noise
from tests.poisoning.cases import quick
from tests.poisoning.defenses.digits import robustness


def test_it_adds_its_transform_after_the_recipes_own() -> None:
    recipe = quick()
    defended = Noise(distribution="gaussian", scale=0.1)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (*recipe.transforms, transforms.Noise(kind="gaussian", scale=0.1))
    assert recipe == quick()
    assert Noise().seen_by_attacker(recipe) == Noise()(recipe)


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="scale is -1"):
        Noise(scale=-1)
    with pytest.raises(ValueError, match="kind is 'pink'"):
        Noise(distribution="pink")


@pytest.mark.effect
def test_a_model_trained_on_noise_bears_noise() -> None:
    """What it is for: the same change at test time costs the defended model less accuracy than the plain one."""
    recipe = Recipe(epochs=10, batch_size=64, transforms=(), precision="fp32")
    change = transforms.Noise(scale=64 / 255)
    pairs = [
        (robustness(recipe, change, seed), robustness(Noise(scale=48 / 255)(recipe), change, seed)) for seed in range(3)
    ]
    gaps = [defended[1] - plain[1] for plain, defended in pairs]
    assert min(gaps) > 0
    assert np.mean(gaps) > 0.03
    assert np.mean([plain[0] - defended[0] for plain, defended in pairs]) < 0.03
