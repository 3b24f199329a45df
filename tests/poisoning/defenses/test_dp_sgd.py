"""Private training as a defence: what it sets, what it refuses, what it claims, and what it does."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from mithridate.core import privacy
from mithridate.core.extras import MissingExtra
from mithridate.core.gradient_rules import PerSample
from mithridate.core.learners import Mixed
from mithridate.core.sampling import Poisson
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.core.transforms import Flip, Mixup
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defenses.dp_sgd import DPSGD
from mithridate.poisoning.defenses.mixup import Mixup as MixupDefense
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from tests.poisoning.cases import quick, three_classes

GROUP = "convnet:width=4,norm=group"


def test_it_sets_what_private_training_needs_and_leaves_the_rest() -> None:
    recipe = Recipe(model=GROUP, batch_size=50, precision="auto")
    defended = DPSGD(clip=0.5, noise=2.0, delta=1e-4)(recipe)
    rule = PerSample(clip=0.5, noise=2.0, delta=1e-4, lot=50)
    assert defended == replace(recipe, gradient=rule, sampler=Poisson(), normalize="fixed", precision="fp32")
    plain = DPSGD()(replace(recipe, normalize="none"))
    assert isinstance(plain, Recipe)
    assert plain.normalize == "none"


def test_each_of_several_recipes_is_divided_by_its_own_batch_size() -> None:
    mixed = DPSGD()(Mixed((quick(batch_size=10), quick(batch_size=20))))
    assert isinstance(mixed, Mixed)
    assert [recipe.gradient for recipe in mixed.recipes] == [PerSample(lot=10), PerSample(lot=20)]


def test_the_fit_carries_epsilon_and_a_wrapper_drops_it() -> None:
    train, _ = three_classes()
    learner = DPSGD(noise=0.5)(quick(model=GROUP, epochs=1))
    (claim,) = learner.fit([train], [0]).guarantees
    assert claim.values["epsilon"] == privacy.subsampled_gaussian_epsilon(32 / 60, 0.5, 2, 1e-5)
    assert SpectralSignatures()(learner).fit([train], [0]).guarantees == ()
    assert [one.kind for one in PartitionVote(parts=2)(learner).fit([train], [0]).guarantees] == ["partition-vote"]
    assert DPSGD(noise=0.0)(quick(model=GROUP, epochs=1)).fit([train], [0]).guarantees == ()


def test_a_missing_accountant_is_found_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    learner = DPSGD(noise=1.2345)(quick(model=GROUP))
    monkeypatch.setattr(Recipe, "start", lambda *_: pytest.fail("training began"))
    with pytest.raises(MissingExtra, match=r"pip install 'mithridate\[dp\]'"):
        learner.fit([three_classes()[0]], [0])


def test_what_contradicts_it_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="leave mixup out"):
        DPSGD()(MixupDefense()(quick()))
    with pytest.raises(ValueError, match="leave mixup out"):
        MixupDefense()(DPSGD()(quick()))
    with pytest.raises(ValueError, match="leave mixup out"):
        DPSGD()(quick(transforms=(Flip(), Mixup())))
    with pytest.raises(ValueError, match=r"dp-sgd .*use one of the two"):
        DPSGD()(DPSGD()(quick()))
    with pytest.raises(TypeError, match="put dp-sgd first"):
        DPSGD()(PartitionVote()(quick()))
    with pytest.raises(ValueError, match=r"BatchNorm2d.*convnet:norm=group"):
        DPSGD(noise=0)(quick(model="convnet:width=4")).fit([three_classes()[0]], [0])
    with pytest.raises(ValueError, match="delta is 2"):
        DPSGD(delta=2)


@pytest.mark.effect
def test_few_marked_rows_do_not_teach_a_private_model_their_mark() -> None:
    """Five marked digits of 1,000, the same poison against the plain and the private victim of the same network."""
    train, test = Digits().load()
    recipe = Recipe(model="mlp", epochs=30, batch_size=100, transforms=(), precision="fp32", normalize="fixed")
    threat = replace(BadNets.threat, budget=0.005)
    plain, private = [], []
    for seed in range(5):
        task = threat.draw(train, test, seed)
        poison = BadNets().craft(task, recipe, seed)
        for learner, outcomes in ((recipe, plain), (DPSGD()(recipe), private)):
            outcomes.append(task.outcome(learner.fit([poison.apply(train)], [seed]), poison))
    for a, b in zip(plain, private, strict=True):
        assert float(b["success"].float().mean()) < 0.5 * float(a["success"].float().mean())
        assert float(b["accuracy"]) > 0.88
