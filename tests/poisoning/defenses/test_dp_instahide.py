"""DP-InstaHide as a defence: what it sets, what it refuses, what it claims, and what it does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mithridate.core.learners import Mixed
from mithridate.core.privacy import mixing_epsilon, shuffled_epsilon
from mithridate.core.sampling import Groups, Poisson, Shuffled
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.core.transforms import NoisyMix
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defenses.dp_instahide import DPInstaHide
from mithridate.poisoning.defenses.dp_sgd import DPSGD
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from tests.poisoning.cases import quick, three_classes


def test_groups_are_drawn_and_mixed_after_the_recipes_own_transforms() -> None:
    recipe = quick()
    defended = DPInstaHide(k=3, noise=0.1)(recipe)
    mix = NoisyMix(k=3, scale=0.1, grouped=True)
    assert defended == replace(recipe, sampler=Groups(k=3), transforms=(*recipe.transforms, mix), normalize="fixed")
    shuffled = DPInstaHide(sampler="shuffled")(replace(recipe, normalize="none"))
    assert shuffled == replace(recipe, normalize="none", transforms=(*recipe.transforms, NoisyMix()))
    mixed = DPInstaHide()(Mixed((recipe, quick(model="lenet"))))
    assert isinstance(mixed, Mixed)
    assert [one.sampler for one in mixed.recipes] == [Groups(k=4)] * 2


def test_an_adaptive_attacker_mixes_inside_batches_of_any_size() -> None:
    seen = DPInstaHide(k=3, noise=0.1).seen_by_attacker(quick())
    assert isinstance(seen, Recipe)
    assert seen.sampler == Shuffled()
    assert seen.transforms[-1] == NoisyMix(k=3, scale=0.1)


@pytest.mark.parametrize("sampler", ["groups", "shuffled"])
def test_the_fit_carries_epsilon_and_a_wrapper_drops_it(sampler) -> None:
    """60 rows of three classes, 3 x 8 x 8 pixels; one epoch of two batches of 32."""
    train, _ = three_classes()
    learner = DPInstaHide(k=2, sampler=sampler)(quick(model="convnet:width=4", epochs=1))
    (claim,) = learner.fit([train], [0]).guarantees
    expected = {"groups": mixing_epsilon(64, 2, 16 / 255, 192.0, 20), "shuffled": shuffled_epsilon(1, 16 / 255, 192.0)}
    assert claim.values["epsilon"] == expected[sampler]
    assert SpectralSignatures()(learner).fit([train], [0]).guarantees == ()


def test_what_is_mixed_again_afterwards_keeps_the_claim_and_before_loses_it() -> None:
    train, _ = three_classes()
    after, before = Mixup()(DPInstaHide()(quick())), DPInstaHide()(Mixup()(quick()))
    assert isinstance(after, Recipe)
    assert isinstance(before, Recipe)
    assert len(after.guarantees([train])) == 1
    assert before.guarantees([train]) == ()


def test_what_contradicts_it_is_refused() -> None:
    for first in (DPInstaHide(), DPInstaHide(sampler="shuffled")):
        with pytest.raises(ValueError, match=r"dp-instahide says how batches are drawn.* use one of the two"):
            DPInstaHide()(first(quick()))
    with pytest.raises(ValueError, match="use one of the two"):
        DPInstaHide()(quick(sampler=Poisson()))
    with pytest.raises(ValueError, match="leave noisy-mix out"):
        DPSGD()(DPInstaHide(sampler="shuffled")(quick()))
    with pytest.raises(TypeError, match="put dp-instahide first"):
        DPInstaHide()(PartitionVote()(quick()))
    with pytest.raises(ValueError, match="sampler is 'all'"):
        DPInstaHide(sampler="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k is 0"):
        DPInstaHide(k=0)


@pytest.mark.effect
@pytest.mark.parametrize("sampler", ["groups", "shuffled"])
def test_mixing_with_noise_weakens_a_backdoor_of_few_poisons(sampler) -> None:
    """Ten marked digits of 1,000, the same poison against both victims; epsilon is too large to explain it."""
    train, test = Digits().load()
    recipe = Recipe(model="mlp", epochs=30, batch_size=100, transforms=(), precision="fp32", normalize="fixed")
    defended, threat = DPInstaHide(sampler=sampler)(recipe), replace(BadNets.threat, budget=0.01)
    plain, mixed = [], []
    for seed in range(5):
        task = threat.draw(train, test, seed)
        poison = BadNets().craft(task, recipe, seed)
        for learner, outcomes in ((recipe, plain), (defended, mixed)):
            fitted = learner.fit([poison.apply(train)], [seed])
            outcomes.append(task.outcome(fitted, poison))
        assert fitted.guarantees[0].values["epsilon"] > 10_000
    for a, b in zip(plain, mixed, strict=True):
        assert float(b["success"].float().mean()) < 0.5 * float(a["success"].float().mean())
        assert float(b["accuracy"]) > float(a["accuracy"]) - 0.06
