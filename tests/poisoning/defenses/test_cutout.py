"""Cutout as a defence: it changes the recipe, and weakens a patch that it covers in some of the steps."""

from __future__ import annotations

import numpy as np
import pytest

from mithridate.core import transforms
from mithridate.poisoning.defenses.cutout import Cutout
from tests.poisoning.cases import quick
from tests.poisoning.defenses.digits import backdoored


def test_it_adds_its_transform_after_the_recipes_own() -> None:
    recipe = quick()
    defended = Cutout(side=0.25)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (*recipe.transforms, transforms.Cutout(side=0.25))
    assert recipe == quick()
    assert Cutout().seen_by_attacker(recipe) == Cutout()(recipe)


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="side is 0"):
        Cutout(side=0)
    with pytest.raises(ValueError, match="side is 8"):
        Cutout(side=8)


@pytest.mark.effect
def test_covered_boxes_weaken_a_backdoor_and_keep_accuracy() -> None:
    """Twenty marked digits of 1,000, the same poison against the plain and the defended victim."""
    plain, defended = backdoored([lambda recipe: recipe, Cutout()], seeds=4)
    assert np.mean(plain.success) - np.mean(defended.success) > 0.03
    assert sum(a > b for a, b in zip(plain.success, defended.success, strict=True)) >= 3
    assert np.mean(plain.accuracy) - np.mean(defended.accuracy) < 0.04
