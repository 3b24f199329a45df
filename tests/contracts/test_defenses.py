"""Every defence, alone and after others: what each one promises, and that it cannot see the answer."""

from __future__ import annotations

import inspect

import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from mithridate.core.training import Fitted, Learner, Prediction, Recipe
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from tests.poisoning.cases import equal, flat, quick, three_classes, weights

DEFENSES = choices(Defense)
CHANGES = ("transform", "gradient rule", "sampler", "row rule")
WRAPS = ("filter", "vote", "purification", "guard")
TRAIN, TEST = three_classes()
IMAGES = TEST.floats(TEST.ids)
every_defense = pytest.mark.parametrize("name", DEFENSES)


def defended(name: str) -> Learner:
    return DEFENSES[name]()(quick())


def says(fitted: Fitted) -> Prediction:
    return fitted.predictor(IMAGES)


def poisoned() -> tuple[ImageData, Poison]:
    rows = torch.arange(0, 12, 2)
    drawn = torch.randint(0, 256, (6, *TRAIN.shape), generator=stream(0, "poison"))
    poison = Poison(rows, drawn.to(torch.uint8), torch.ones(6, dtype=torch.int64))
    return poison.apply(TRAIN), poison


@every_defense
def test_it_is_a_learner_made_from_a_learner(name: str) -> None:
    defense, recipe = DEFENSES[name](), quick()
    assert defense.kind in CHANGES + WRAPS
    learner = defense(recipe)
    assert isinstance(learner, Learner)
    assert isinstance(defense.seen_by_attacker(recipe), Learner)
    assert isinstance(learner, Recipe) == (defense.kind in CHANGES)
    assert learner.recipe is not None
    assert recipe == quick()
    assert list(inspect.signature(learner.fit).parameters) == ["datasets", "seeds", "trusted", "watch"]


@every_defense
def test_it_fits_and_predicts_for_every_data_set_and_seed(name: str) -> None:
    fitted = defended(name).fit([TRAIN, TRAIN.drop([0, 1])], [0, 1])
    prediction = says(fitted)
    assert prediction.scores.shape == (2, 30, 3)
    assert prediction.abstained.shape == (2, 30)
    assert prediction.abstained.dtype == torch.bool
    assert bool(prediction.scores.isfinite().all())
    assert prediction.radius is None or (prediction.radius.shape == (2, 30) and prediction.radius.dtype == torch.int64)
    assert len(fitted.kept) == 2
    assert len(fitted.history["loss"]) == 2
    assert not any(model.training for model in fitted.models)
    for kept, data in zip(fitted.kept, (TRAIN, TRAIN.drop([0, 1])), strict=True):
        assert kept is None or (bool(torch.isin(kept, data.ids).all()) and len(kept.unique()) == len(kept))


@every_defense
def test_a_member_does_not_depend_on_those_beside_it(name: str) -> None:
    learner = defended(name)
    together, alone = says(learner.fit([TRAIN, TRAIN], [4, 9])), says(learner.fit([TRAIN], [9]))
    assert torch.equal(together.scores[1:], alone.scores)


@every_defense
def test_the_seed_alone_decides(name: str) -> None:
    learner = defended(name)
    first = weights(learner.fit([TRAIN], [3]))
    torch.manual_seed(77)
    assert equal(first, weights(learner.fit([TRAIN], [3])))
    assert not equal(first, weights(learner.fit([TRAIN], [4])))


@every_defense
def test_it_does_not_touch_its_inputs(name: str) -> None:
    data, _ = poisoned()
    before = data.fingerprint(), data.images.clone(), data.labels.clone()
    defended(name).fit([data], [0], trusted=TEST.select(torch.arange(6)))
    again, _ = poisoned()
    assert again.fingerprint() == before[0] == flat_fingerprint(data)
    assert torch.equal(data.images, before[1])
    assert torch.equal(data.labels, before[2])


def flat_fingerprint(data: ImageData) -> str:
    """Computed anew, from a copy."""
    return flat(data).fingerprint()


@every_defense
def test_it_cannot_tell_a_patch_from_data_that_always_were_so(name: str) -> None:
    """The overlay of replaced rows says which rows are poison; a defence that looked at it would fit another model."""
    data, _ = poisoned()
    learner = defended(name)
    overlay, copy = learner.fit([data], [0]), learner.fit([flat(data)], [0])
    assert equal(weights(overlay), weights(copy))
    assert torch.equal(says(overlay).scores, says(copy).scores)
    for a, b in zip(overlay.kept, copy.kept, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@every_defense
def test_it_never_reads_a_poison_or_a_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, poison = poisoned()
    task = BadNets.threat.draw(TRAIN, TEST, 0)

    def seen(self: object, attribute: str) -> object:
        raise AssertionError(f"a defence read {type(self).__name__}.{attribute}")

    with monkeypatch.context() as patch:
        for secret in (Poison, Task):
            patch.setattr(secret, "__getattribute__", seen)
        for owner in (poison, task):
            with pytest.raises(AssertionError, match="a defence read"):
                _ = owner.rows  # the trap works
        fitted = defended(name).fit([data], [0])
        fitted.predictor(IMAGES)


@every_defense
def test_a_watch_sees_every_member_of_the_last_fit(name: str) -> None:
    seen: list[tuple[int, int]] = []

    def watch(member: int, epoch: int, predictor) -> None:
        seen.append((member, epoch))
        assert predictor(IMAGES).scores.shape == (1, 30, 3)

    watched = defended(name).fit([TRAIN, TRAIN], [0, 1], watch=watch)
    assert set(seen) == {(member, epoch) for member in (0, 1) for epoch in (0, 1)}
    assert equal(weights(watched), weights(defended(name).fit([TRAIN, TRAIN], [0, 1])))


@every_defense
def test_only_a_vote_claims_a_guarantee(name: str) -> None:
    fitted = defended(name).fit([TRAIN], [0])
    assert bool(fitted.guarantees) == (DEFENSES[name].kind == "vote")
    assert (says(fitted).radius is not None) == (DEFENSES[name].kind == "vote")


@pytest.mark.parametrize("first", DEFENSES)
@pytest.mark.parametrize("second", DEFENSES)
def test_defences_stack_or_say_in_which_order(first: str, second: str) -> None:
    a, b = DEFENSES[first](), DEFENSES[second]()
    if a.kind == b.kind == "vote":
        with pytest.raises(TypeError, match="use one partition-vote with more parts"):
            b(a(quick()))
    elif a.kind in WRAPS and (b.kind in CHANGES or (a.kind, b.kind) == ("vote", "filter")):
        with pytest.raises(TypeError, match=r"first|before"):
            b(a(quick()))
    else:
        fitted = b(a(quick(epochs=1))).fit([TRAIN], [0])
        assert says(fitted).scores.shape == (1, 30, 3)
