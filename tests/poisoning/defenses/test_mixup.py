"""Mixup as a defence: it changes the recipe, and weakens an attack that needs its images as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mithridate.core import transforms
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defenses.mixup import Mixup
from tests.poisoning.cases import quick


def test_mixing_is_added_after_the_recipes_own_transforms() -> None:
    recipe = quick()
    defended = Mixup(k=4, alpha=0.5)(recipe)
    assert defended.recipe is defended
    assert defended.recipe.transforms == (*recipe.transforms, transforms.Mixup(k=4, alpha=0.5))
    assert recipe == quick()


def test_an_adaptive_attacker_sees_the_same_recipe() -> None:
    assert Mixup().seen_by_attacker(quick()) == Mixup()(quick())


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="k is 1"):
        Mixup(k=1)
    with pytest.raises(ValueError, match="alpha is 0"):
        Mixup(alpha=0)


@pytest.mark.effect
def test_mixing_weakens_a_backdoor_of_few_poisons_and_keeps_accuracy() -> None:
    """Ten marked digits of 1,000, the same poison against the plain and the defended victim."""
    train, test = Digits().load()
    recipe = Recipe(epochs=15, batch_size=64, transforms=(), precision="fp32")
    threat = replace(BadNets.threat, budget=0.01)
    plain, mixed = [], []
    for seed in range(5):
        task = threat.draw(train, test, seed)
        poison = BadNets().craft(task, recipe, seed)
        for learner, outcomes in ((recipe, plain), (Mixup()(recipe), mixed)):
            outcomes.append(task.outcome(learner.fit([poison.apply(train)], [seed]), poison))
    gaps = [float(a["success"].float().mean() - b["success"].float().mean()) for a, b in zip(plain, mixed, strict=True)]
    assert sum(gap > 0 for gap in gaps) >= 4
    assert sum(gaps) / 5 > 0.1
    assert sum(float(a["accuracy"] - b["accuracy"]) for a, b in zip(plain, mixed, strict=True)) / 5 < 0.02
