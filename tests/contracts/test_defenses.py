"""Every defence, alone and after others: what each one promises, and that it cannot see the answer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from mithridate.core.training import Fitted, Learner, Prediction, Recipe, Watch
from mithridate.experiments.store import Store
from mithridate.experiments.trial import wrap
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.goals import Misclassify
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import CLASSES, equal, flat, images_of, quick, three_classes, weights

DEFENSES = choices(Defense)
CHANGES = ("transform", "gradient rule", "sampler", "row rule")
WRAPS = ("filter", "vote", "purification", "guard")
TRAIN, TEST = three_classes()
TRUSTED = ImageData(images_of(torch.arange(24) % 3, 2), torch.arange(24) % 3, CLASSES)
IMAGES = TEST.floats(TEST.ids)
every_defense = pytest.mark.parametrize("name", DEFENSES)


FEW = {
    "adversarial-poisoning": {"steps": 1},
    "adversarial-training": {"steps": 2},
    "dp-instahide": {"k": 2},
    "confident-learning": {"folds": 2},
    "fine-pruning": {"epochs": 2},
    "fine-tuning": {"epochs": 2},
    "neural-cleanse": {"steps": 3, "epochs": 2},
    "partition-vote": {"parts": 3},
    "strip": {"overlays": 5},
}
"""Settings that make a defence cheap and leave it what it is."""


def made(name: str) -> Defense:
    return DEFENSES[name](**FEW.get(name, {}))


def network(*names: str, width: int = 4) -> str:
    """A model that these defences can train."""
    return f"convnet:width={width}" + (",norm=group" if "dp-sgd" in names else "")


def small(*names: str, **settings: object) -> Recipe:
    return quick(**({"model": network(*names)} | settings))


def defended(name: str) -> Learner:
    return made(name)(small(name))


def fit(learner: Learner, datasets: Sequence[ImageData], seeds: Sequence[int], watch: Watch | None = None) -> Fitted:
    return learner.fit(datasets, seeds, trusted=TRUSTED, watch=watch)


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
    fitted = fit(defended(name), [TRAIN, TRAIN.drop([0, 1])], [0, 1])
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
    together, alone = says(fit(learner, [TRAIN, TRAIN], [4, 9])), says(fit(learner, [TRAIN], [9]))
    assert torch.equal(together.scores[1:], alone.scores)
    assert torch.equal(together.abstained[1:], alone.abstained)


@every_defense
def test_the_seed_alone_decides(name: str) -> None:
    learner = defended(name)
    first = fit(learner, [TRAIN], [3])
    torch.manual_seed(77)
    again = fit(learner, [TRAIN], [3])
    assert equal(weights(first), weights(again))
    assert torch.equal(says(first).abstained, says(again).abstained)
    assert not equal(weights(first), weights(fit(learner, [TRAIN], [4])))


@every_defense
def test_it_does_not_touch_its_inputs(name: str) -> None:
    data, _ = poisoned()
    before = data.fingerprint(), data.images.clone(), data.labels.clone()
    trusted = TRUSTED.images.clone(), TRUSTED.labels.clone()
    fit(defended(name), [data], [0])
    again, _ = poisoned()
    assert again.fingerprint() == before[0] == flat_fingerprint(data)
    assert torch.equal(data.images, before[1])
    assert torch.equal(data.labels, before[2])
    assert torch.equal(TRUSTED.images, trusted[0])
    assert torch.equal(TRUSTED.labels, trusted[1])


def flat_fingerprint(data: ImageData) -> str:
    """Computed anew, from a copy."""
    return flat(data).fingerprint()


@every_defense
def test_it_cannot_tell_a_patch_from_data_that_always_were_so(name: str) -> None:
    """The overlay of replaced rows says which rows are poison; a defence that looked at it would fit another model."""
    data, _ = poisoned()
    learner = defended(name)
    overlay, copy = fit(learner, [data], [0]), fit(learner, [flat(data)], [0])
    assert equal(weights(overlay), weights(copy))
    assert torch.equal(says(overlay).scores, says(copy).scores)
    assert torch.equal(says(overlay).abstained, says(copy).abstained)
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
        fitted = fit(defended(name), [data], [0])
        fitted.predictor(IMAGES)


@every_defense
def test_a_watch_sees_every_member_of_the_last_fit(name: str) -> None:
    seen: list[tuple[int, int]] = []

    def watch(member: int, epoch: int, predictor) -> None:
        seen.append((member, epoch))
        assert predictor(IMAGES).scores.shape == (1, 30, 3)

    watched = fit(defended(name), [TRAIN, TRAIN], [0, 1], watch)
    assert set(seen) == {(member, epoch) for member in (0, 1) for epoch in (0, 1)}
    assert equal(weights(watched), weights(fit(defended(name), [TRAIN, TRAIN], [0, 1])))


PRIVATE = {"dp-instahide", "dp-sgd"}


@every_defense
def test_only_votes_and_private_training_claim_a_guarantee(name: str) -> None:
    fitted = fit(defended(name), [TRAIN], [0])
    assert bool(fitted.guarantees) == (DEFENSES[name].kind == "vote" or name in PRIVATE)
    assert (says(fitted).radius is not None) == (DEFENSES[name].kind == "vote")


@every_defense
def test_trusted_rows_are_needed_only_where_it_says_so(name: str) -> None:
    if DEFENSES[name].needs_trusted:
        with pytest.raises(ValueError, match="set trusted= of the trial"):
            defended(name).fit([TRAIN], [0])
    else:
        assert says(defended(name).fit([TRAIN], [0])).scores.shape == (1, 30, 3)


@every_defense
def test_an_adaptive_attacker_trains_without_trusted_rows(name: str) -> None:
    seen = made(name).seen_by_attacker(small(name, epochs=1))
    assert says(seen.fit([TRAIN], [0])).scores.shape == (1, 30, 3)


@every_defense
def test_it_stacks_on_a_results_folder(name: str, tmp_path: Path) -> None:
    """Recipe changes go inside the store, wrappers around it; the models are those of the same fit without a store."""
    defense, folder = made(name), Store(tmp_path)
    stored = [fit(wrap(small(name, epochs=1), [defense], folder), [TRAIN], [5]) for _ in range(2)]
    plain = fit(defense(small(name, epochs=1)), [TRAIN], [5])
    for fitted in stored:
        assert torch.allclose(says(fitted).scores, says(plain).scores, atol=1e-5)
        assert torch.equal(says(fitted).abstained, says(plain).abstained)
    assert equal(weights(stored[0]), weights(stored[1]))


@pytest.mark.parametrize("name", [name for name in DEFENSES if DEFENSES[name].kind != "vote"])  # which refuses them
def test_a_mixture_of_recipes_is_defended_as_a_recipe_is(name: str) -> None:
    mixed = made(name)(Mixed((small(name, epochs=1), small(name, epochs=1, model=network(name, width=6)))))
    alone = made(name)(small(name, epochs=1))
    both = says(fit(mixed, [TRAIN, TRAIN], [3, 4]))
    assert both.scores.shape == (2, 30, 3)
    assert torch.equal(both.scores[0], says(fit(alone, [TRAIN], [3])).scores[0])


@pytest.mark.parametrize("name", [name for name in DEFENSES if DEFENSES[name].kind in CHANGES])
def test_gradient_matching_runs_through_what_changes_the_recipe(name: str) -> None:
    """Crafting differentiates twice through the transforms, the chosen draws and the moved images among them."""
    task = ThreatModel(budget=0.1, ball=Linf(eps=16 / 255), goal=Misclassify()).draw(TRAIN, TEST, 0)
    surrogate = made(name).seen_by_attacker(small(name, epochs=1))
    poison = WitchesBrew(steps=2, surrogates=1).craft(task, surrogate, seed=0)
    task.check(poison)
    assert not torch.equal(poison.images, TRAIN.pixels(poison.rows))
    assert torch.tensor(poison.notes["matching_loss"]).isfinite()


REFUSED = {("vote", "vote"), ("vote", "filter"), ("vote", "purification"), ("guard", "purification")} | {
    (later, "filter") for later in ("purification", "guard")
}
"""Kinds of wrappers of which the second cannot come after the first."""
MIXING = {"adversarial-poisoning", "cutmix", "dp-instahide", "mixup"}


def contradict(first: str, second: str) -> bool:
    """Whether two changes of a recipe cannot both hold, in any order."""
    kinds = [DEFENSES[name].kind for name in (first, second)]
    if "dp-sgd" in (first, second) and ({first, second} & MIXING or "row rule" in kinds):
        return True
    return kinds[0] == kinds[1] and kinds[0] in ("gradient rule", "sampler")


@pytest.mark.parametrize("first", DEFENSES)
@pytest.mark.parametrize("second", DEFENSES)
def test_defences_stack_or_say_in_which_order(first: str, second: str) -> None:
    a, b = made(first), made(second)
    if a.kind == b.kind == "vote":
        with pytest.raises(TypeError, match="use one partition-vote with more parts"):
            b(a(small(first, second)))
    elif a.kind in WRAPS and (b.kind in CHANGES or (a.kind, b.kind) in REFUSED):
        with pytest.raises(TypeError, match=r"first|before"):
            b(a(small(first, second)))
    elif contradict(first, second):
        with pytest.raises(ValueError, match=r"use one of the two|leave .* out"):
            b(a(small(first, second)))
    else:
        fitted = fit(b(a(small(first, second, epochs=1))), [TRAIN], [0])
        assert says(fitted).scores.shape == (1, 30, 3)
