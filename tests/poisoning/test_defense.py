"""The wrapping learners (filter, purification, guard), on learners whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed, learner
from mithridate.core.models import last_linear
from mithridate.core.training import Fitted, Prediction, Predictor, Recipe
from mithridate.core.transforms import Cutout
from mithridate.poisoning.defense import (
    Evidence,
    Filter,
    Filtered,
    Guarded,
    Judgement,
    Purified,
    augmented,
    changed,
    evidence_of,
)
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.voting import Voting
from tests.poisoning.cases import NearestMean, equal, quick, scripted, three_classes, weights
from tests.poisoning.spy import Spy

TRAIN, TEST = three_classes()


def put_in(model: nn.Module, recipe: Recipe | None, data: ImageData, trusted: ImageData | None, seed: int) -> nn.Module:
    """A purification that overwrites the last bias with what it was given."""
    with torch.no_grad():
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.bias[0], head.bias[1] = len(data), float(seed % 1000)
    return model


def dark(predictor: Predictor, clean: ImageData, seed: int):
    """A guard that rejects what is darker than the darkest clean image."""
    least = clean.floats(clean.ids).mean((1, 2, 3)).min()
    return lambda images: (images.mean((1, 2, 3)) < least).expand(predictor(images).abstained.shape)


@dataclass(frozen=True, kw_only=True)
class EveryFourth(Filter):
    """Drops every fourth row, whatever it is like; notes what it was shown."""

    contamination: float = 0.25
    seen: list[Evidence] = field(default_factory=list)

    def judge(self, evidence: Evidence) -> Judgement:
        self.seen.append(evidence)
        marked = torch.arange(len(evidence.labels)) % 4 == 0
        return Judgement(marked.double(), marked)


# --- recipe changes --------------------------------------------------------------------------------------------------


def test_a_recipe_change_returns_the_same_recipe_with_other_settings() -> None:
    recipe = quick()
    assert changed(recipe, Mixup(), epochs=7) == replace(recipe, epochs=7)
    assert recipe.epochs == 2


def test_a_mixture_of_recipes_is_changed_in_each_of_them() -> None:
    mixed = Mixed((quick(), quick(epochs=3)))
    assert changed(mixed, Mixup(), batch_size=7) == Mixed((quick(batch_size=7), quick(epochs=3, batch_size=7)))
    both = augmented(mixed, Mixup(), Cutout())
    assert isinstance(both, Mixed)
    assert all(recipe.transforms == (*quick().transforms, Cutout()) for recipe in both.recipes)
    assert augmented(quick(), Mixup(), Cutout()) == both.recipes[0]


@pytest.mark.parametrize(
    "wrapper",
    [PartitionVote(parts=3), SpectralSignatures(), lambda recipe: Purified(recipe, put_in), lambda r: Guarded(r, dark)],
)
def test_a_recipe_change_after_a_wrapper_names_the_right_order(wrapper) -> None:
    with pytest.raises(TypeError, match=r"mixup changes the training recipe, so it comes before .*put mixup first"):
        Mixup()(wrapper(quick()))
    wrapper(Mixup()(quick()))


def test_a_recipe_change_on_a_users_own_training_says_why_it_cannot() -> None:
    with pytest.raises(
        TypeError, match=r"mixup changes the training recipe, but .*NearestMean trains with code of its own"
    ):
        Mixup()(NearestMean())


# --- filters ---------------------------------------------------------------------------------------------------------


def test_a_filter_fits_scores_drops_and_fits_again_with_the_same_seed() -> None:
    asked: list = []
    watched: list = []
    trusted = TRAIN.select(torch.arange(3))
    data = TRAIN.drop(torch.arange(3))
    fitted = Filtered(Spy(quick(), asked), EveryFourth()).fit(
        [data, data], [5, 6], trusted=trusted, watch=lambda member, epoch, predictor: watched.append((member, epoch))
    )
    remaining = [row for i, row in enumerate(range(3, 60)) if i % 4]
    assert [call[0] for call in asked] == [[list(range(3, 60))] * 2, [remaining] * 2]
    assert [call[1] for call in asked] == [[5, 6], [5, 6]]
    assert all(call[2] is trusted for call in asked)
    assert asked[0][3] is None
    assert sorted(watched) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [kept.tolist() for kept in fitted.kept if kept is not None] == [remaining] * 2
    assert fitted.guarantees == ()


def test_the_filtered_model_is_the_one_trained_on_the_remaining_rows_alone() -> None:
    fitted = Filtered(quick(), EveryFourth()).fit([TRAIN], [1])
    alone = quick().fit([TRAIN.select(TRAIN.ids[TRAIN.ids % 4 != 0])], [1])
    assert equal(weights(fitted), weights(alone))


def test_a_filter_scores_features_in_eval_mode_without_augmentation() -> None:
    recipe, look = quick(), EveryFourth()
    look(recipe).fit([TRAIN], [1])
    model = recipe.fit([TRAIN], [1]).models[0]
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits = model(TRAIN.floats(TRAIN.ids))
    (seen,) = look.seen
    assert torch.allclose(seen.features @ head.weight.T + head.bias, logits, atol=1e-4)
    assert torch.allclose(seen.logits, logits, atol=1e-4)
    assert torch.equal(seen.labels, TRAIN.labels)


def test_a_model_that_has_diverged_is_no_evidence() -> None:
    model = quick().fit([TRAIN], [1]).models[0]
    torch.nn.init.constant_(last_linear(model).weight, float("inf"))
    with pytest.raises(ValueError, match="of 60 of 60 rows are not finite: the model has diverged"):
        evidence_of(model, TRAIN)


def test_rows_that_the_last_fit_dropped_itself_are_not_counted_as_kept() -> None:
    fitted = Filtered(Spy(quick(), [], keeps=True), EveryFourth()).fit([TRAIN], [1])
    assert fitted.kept[0] is not None
    assert fitted.kept[0].tolist() == [row for row in range(60) if row % 4][1:]


def test_a_filter_cannot_come_after_a_vote() -> None:
    with pytest.raises(TypeError, match="put the filter before partition-vote"):
        SpectralSignatures()(PartitionVote()(quick()))
    PartitionVote()(SpectralSignatures()(quick()))


@pytest.mark.parametrize("wrapper", [lambda inner: Purified(inner, put_in), lambda inner: Guarded(inner, dark)])
def test_a_filter_comes_before_what_works_on_final_models(wrapper) -> None:
    with pytest.raises(TypeError, match=r"put the filter before the (purification|guard)"):
        Filtered(wrapper(quick()), EveryFourth())
    wrapper(Filtered(quick(), EveryFourth()))


# --- purifications ---------------------------------------------------------------------------------------------------


@dataclass
class Notes:
    """A purification that writes down what it was given and hands the model back."""

    seen: list

    def __call__(
        self, model: nn.Module, recipe: Recipe | None, data: ImageData, trusted: ImageData | None, seed: int
    ) -> nn.Module:
        self.seen.append((model, recipe, data.ids.tolist(), trusted, seed))
        return model.train()


def test_a_purification_gets_a_copy_the_recipe_the_rows_used_trusted_rows_and_a_seed() -> None:
    asked, watched, notes = [], [], Notes([])
    trusted = TRAIN.select(torch.arange(3))
    data = TRAIN.drop(torch.arange(3))
    fitted = Purified(Spy(quick(), asked, keeps=True), notes).fit(
        [data, data], [5, 6], trusted=trusted, watch=lambda member, epoch, predictor: watched.append((member, epoch))
    )
    plain = quick().fit([data, data], [5, 6])
    assert len(asked) == 1
    assert asked[0][2] is trusted
    assert sorted(watched) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [call[1] for call in notes.seen] == [quick(), quick()]
    assert [call[2] for call in notes.seen] == [list(range(4, 60))] * 2, "the rows that the fit kept"
    assert all(call[3] is trusted for call in notes.seen)
    assert notes.seen[0][4] != notes.seen[1][4]
    assert fitted.history == plain.history
    assert [kept.tolist() for kept in fitted.kept if kept is not None] == [list(range(4, 60))] * 2
    assert fitted.guarantees == ()
    assert equal(weights(fitted), weights(plain))
    assert not any(model.training for model in fitted.models)


def test_a_purified_predictor_speaks_for_the_changed_weights_and_the_fit_keeps_its_own() -> None:
    kept: list[Fitted] = []

    class Keeping(Spy):
        def fit(self, datasets, seeds, *, trusted=None, watch=None) -> Fitted:
            kept.append(super().fit(datasets, seeds, trusted=trusted, watch=watch))
            return kept[0]

    images = TEST.floats(TEST.ids)
    fitted = Purified(Keeping(quick(), []), put_in).fit([TRAIN], [1])
    plain = quick().fit([TRAIN], [1])
    assert equal(weights(kept[0]), weights(plain)), "a stored model must not change"
    bias = [m for m in plain.models[0].modules() if isinstance(m, nn.Linear)][-1].bias
    moved = fitted.predictor(images).scores - plain.predictor(images).scores
    torch.testing.assert_close(moved[0, :, 0], (60 - bias[0].detach()).expand(30), atol=1e-4, rtol=0)


def test_a_purification_that_needs_trusted_rows_says_so_before_any_training() -> None:
    asked: list = []
    with pytest.raises(ValueError, match=r"clean rows, but none are held out for it; set trusted= of the trial"):
        Purified(Spy(quick(), asked), put_in, needs_trusted=True).fit([TRAIN], [0])
    assert asked == []
    Purified(Spy(quick(), asked), put_in, needs_trusted=True).fit([TRAIN], [0], trusted=TRAIN)


def test_a_purification_comes_before_a_vote_and_before_a_guard() -> None:
    with pytest.raises(TypeError, match="put the purification before partition-vote"):
        Purified(Voting(quick(), 3), put_in)
    with pytest.raises(TypeError, match="put the purification before the guard"):
        Purified(Guarded(quick(), dark), put_in)
    Voting(Purified(quick(), put_in), 3)
    Guarded(Purified(quick(), put_in), dark)


def test_code_of_the_users_own_is_purified_without_a_recipe() -> None:
    notes = Notes([])

    def train(dataset, seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    Purified(learner(train), notes).fit([TRAIN], [0])
    assert notes.seen[0][1] is None


# --- guards ----------------------------------------------------------------------------------------------------------


def test_a_guard_refuses_what_it_rejects_and_leaves_the_answers_alone() -> None:
    images = TEST.floats(TEST.ids)
    images = torch.cat([images, images * 0.1])
    fitted, plain = (learner.fit([TRAIN, TRAIN], [5, 6]) for learner in (Guarded(quick(), dark), quick()))
    answer = fitted.predictor(images)
    least = TRAIN.floats(TRAIN.ids).mean((1, 2, 3)).min()
    assert torch.equal(answer.scores, plain.predictor(images).scores)
    assert torch.equal(answer.abstained, (images.mean((1, 2, 3)) < least).expand(2, 60))
    assert bool(answer.abstained[:, 30:].all())
    assert answer.radius is None
    assert fitted.guarantees == ()
    assert fitted.history == plain.history
    assert equal(weights(fitted), weights(plain))


def test_a_guard_is_calibrated_for_each_member_on_trusted_rows_or_on_the_rows_it_used() -> None:
    seen: list = []

    def guard(predictor: Predictor, clean: ImageData, seed: int):
        seen.append((len(predictor(TEST.floats(TEST.ids)).scores), clean.ids.tolist(), seed))
        return lambda images: torch.zeros(1, len(images), dtype=torch.bool)

    trusted, asked = TRAIN.select(torch.arange(3)), []
    watched: list = []
    fitted = Guarded(Spy(quick(), asked, keeps=True), guard).fit(
        [TRAIN, TRAIN], [5, 6], watch=lambda member, epoch, predictor: watched.append((member, epoch))
    )
    assert [call[:2] for call in seen] == [(1, list(range(1, 60)))] * 2
    assert seen[0][2] != seen[1][2]
    assert watched == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [call[1] for call in asked] == [[5, 6]]
    assert [kept.tolist() for kept in fitted.kept if kept is not None] == [list(range(1, 60))] * 2
    Guarded(Spy(quick(), asked), guard).fit([TRAIN], [5], trusted=trusted)
    assert seen[2] == (1, [0, 1, 2], seen[0][2])
    assert asked[-1][2] is trusted


def test_what_abstained_before_a_guard_still_does() -> None:
    class Shy(Spy):
        def fit(self, datasets: Sequence[ImageData], seeds: Sequence[int], *, trusted=None, watch=None) -> Fitted:
            inner = scripted(
                lambda images: torch.zeros(1, len(images), 3), lambda images: images.mean((2, 3)).T[:1] > 0.9
            )
            return inner._replace(kept=[None])

    images = TEST.floats(TEST.ids)
    images[0], images[1], images[2] = 0.0, 1.0, 0.8
    answer = Guarded(Shy(quick(), []), dark).fit([TRAIN], [0]).predictor(images)
    assert isinstance(answer, Prediction)
    assert answer.abstained[0, :3].tolist() == [True, True, False]


def test_a_guarded_vote_gives_no_certificate() -> None:
    fitted = Guarded(Voting(NearestMean(), 3), dark).fit([TRAIN], [0])
    images = TEST.floats(TEST.ids)
    assert fitted.guarantees == ()
    assert fitted.predictor(images).radius is None
    assert torch.equal(
        fitted.predictor(images).scores, Voting(NearestMean(), 3).fit([TRAIN], [0]).predictor(images).scores
    )
    assert len(fitted.models) == 3


def test_a_guard_around_mixed_recipes_keeps_every_architecture() -> None:
    mixed = Mixed((quick(), replace(quick(), model="convnet-wide:width=4")))
    fitted = Guarded(mixed, dark).fit([TRAIN, TRAIN], [5, 6])
    plain = mixed.fit([TRAIN, TRAIN], [5, 6])
    images = TEST.floats(TEST.ids)
    assert equal(weights(fitted), weights(plain))
    assert torch.equal(fitted.predictor(images).scores, plain.predictor(images).scores)
