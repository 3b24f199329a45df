"""Maxup as a defence: it changes the recipe, with any augmentation inside."""

from __future__ import annotations

import numpy as np
import pytest

from mithridate.core import transforms
from mithridate.core.schema import from_json, parse, to_json
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.defenses.maxup import Maxup
from tests.poisoning.cases import quick
from tests.poisoning.defenses.digits import backdoored


def test_it_adds_its_transform_after_the_recipes_own() -> None:
    recipe = quick()
    defended = Maxup(inner=transforms.Cutmix(), draws=3, warmup=0.5)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (
        *recipe.transforms,
        transforms.Maxup(inner=transforms.Cutmix(), draws=3, warmup=0.5),
    )
    assert recipe == quick()
    assert Maxup().seen_by_attacker(recipe) == Maxup()(recipe)


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="draws is 1"):
        Maxup(draws=1)
    with pytest.raises(ValueError, match="warmup is 8"):
        Maxup(warmup=8)


def test_an_attacker_is_told_whether_rows_mix() -> None:
    assert not Maxup().transform().mixes_rows
    assert Maxup(inner=transforms.Mixup()).transform().mixes_rows


def test_it_is_typed_and_stored_with_what_it_draws() -> None:
    maxup = parse(Defense, "maxup:inner=mixup(k=3),draws=2")
    assert maxup == Maxup(inner=transforms.Mixup(k=3), draws=2)
    assert from_json(to_json(maxup), Defense) == maxup


@pytest.mark.effect
def test_the_worst_cutout_weakens_a_backdoor_and_keeps_accuracy() -> None:
    """Twenty marked digits of 1,000, the same poison against the plain and the defended victim."""
    plain, defended = backdoored([lambda recipe: recipe, Maxup()], seeds=4)
    assert np.mean(plain.success) - np.mean(defended.success) > 0.1
    assert sum(a > b for a, b in zip(plain.success, defended.success, strict=True)) >= 3
    assert np.mean(plain.accuracy) - np.mean(defended.accuracy) < 0.04
