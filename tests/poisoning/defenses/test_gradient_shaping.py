"""Gradient shaping as a defence: it changes the gradient rule alone, and claims nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mithridate.core.gradient_rules import PerSample, Shaped
from mithridate.core.learners import Mixed
from mithridate.core.sampling import Poisson
from mithridate.poisoning.defenses.gradient_shaping import GradientShaping
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from tests.poisoning.cases import quick, three_classes


def test_only_the_gradient_rule_changes() -> None:
    recipe = quick()
    defended = GradientShaping(clip=2.0, noise=0.5)(recipe)
    assert defended == replace(recipe, gradient=Shaped(clip=2.0, noise=0.5))
    mixed = GradientShaping()(Mixed((recipe, quick(epochs=3))))
    assert isinstance(mixed, Mixed)
    assert [one.gradient for one in mixed.recipes] == [Shaped(clip=1.0, noise=0.01)] * 2


def test_it_works_with_batch_norm_and_claims_nothing() -> None:
    train, _ = three_classes()
    fitted = GradientShaping()(quick(model="convnet:width=4")).fit([train], [0])
    assert fitted.guarantees == ()


def test_what_it_cannot_change_is_refused() -> None:
    with pytest.raises(TypeError, match="put gradient-shaping first"):
        GradientShaping()(PartitionVote()(quick()))
    private = quick(gradient=PerSample(), sampler=Poisson(), normalize="fixed")
    with pytest.raises(ValueError, match=r"gradient-shaping .*use one of the two"):
        GradientShaping()(private)
    with pytest.raises(ValueError, match="clip is 0"):
        GradientShaping(clip=0)
