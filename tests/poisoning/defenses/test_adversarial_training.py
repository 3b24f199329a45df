"""Adversarial training: it changes the recipe, and makes the model bear the worst change of every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from mithridate.core import transforms
from mithridate.core.balls import Linf
from mithridate.core.training import Recipe
from mithridate.poisoning.defenses.adversarial_training import AdversarialTraining
from tests.poisoning.cases import quick
from tests.poisoning.defenses.digits import robustness


def test_it_adds_its_transform_after_the_recipes_own() -> None:
    recipe = quick()
    defended = AdversarialTraining(ball=Linf(eps=0.1), steps=3, step=0.05)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (
        *recipe.transforms,
        transforms.Adversarial(ball=Linf(eps=0.1), steps=3, step=0.05),
    )
    assert recipe == quick()
    assert AdversarialTraining().seen_by_attacker(recipe) == AdversarialTraining()(recipe)


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        AdversarialTraining(steps=0)
    with pytest.raises(ValueError, match="step is 0"):
        AdversarialTraining(step=0)


@pytest.mark.effect
def test_a_model_trained_on_the_worst_change_bears_it() -> None:
    """What it is for: the same change at test time costs the defended model less accuracy than the plain one."""
    recipe = Recipe(epochs=10, batch_size=64, transforms=(), precision="fp32")
    defended = AdversarialTraining(ball=Linf(eps=24 / 255), steps=3, step=12 / 255)(recipe)
    change = transforms.Adversarial(ball=Linf(eps=24 / 255), steps=10, step=6 / 255)
    pairs = [[robustness(learner, change, seed) for learner in (recipe, defended)] for seed in range(3)]
    gaps = [robust[1] - plain[1] for plain, robust in pairs]
    assert min(gaps) > 0
    assert np.mean(gaps) > 0.1
    assert np.mean([plain[0] - robust[0] for plain, robust in pairs]) < 0.03
