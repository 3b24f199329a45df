"""CutMix as a defence: it changes the recipe, and weakens a patch that it pastes over and under other labels."""

from __future__ import annotations

import numpy as np
import pytest

from mithridate.core import transforms
from mithridate.poisoning.defenses.cutmix import Cutmix
from tests.poisoning.cases import quick
from tests.poisoning.defenses.digits import backdoored


def test_it_adds_its_transform_after_the_recipes_own() -> None:
    recipe = quick()
    defended = Cutmix(alpha=0.5, probability=1.0)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (*recipe.transforms, transforms.Cutmix(alpha=0.5, probability=1.0))
    assert recipe == quick()
    assert Cutmix().seen_by_attacker(recipe) == Cutmix()(recipe)


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="alpha is 0"):
        Cutmix(alpha=0)
    with pytest.raises(ValueError, match="probability is 2"):
        Cutmix(probability=2)


@pytest.mark.effect
def test_pasted_boxes_weaken_a_backdoor_and_keep_accuracy() -> None:
    """Twenty marked digits of 1,000, the same poison against the plain and the defended victim."""
    plain, defended = backdoored([lambda recipe: recipe, Cutmix()], seeds=4)
    assert np.mean(plain.success) - np.mean(defended.success) > 0.1
    assert sum(a > b for a, b in zip(plain.success, defended.success, strict=True)) >= 3
    assert np.mean(plain.accuracy) - np.mean(defended.accuracy) < 0.03
