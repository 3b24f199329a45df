"""The two wrapping learners, on learners whose answers are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.guarantees import Guarantee
from mithridate.core.sampling import Shuffled
from mithridate.core.training import Fitted, Learner, Recipe, Watch
from mithridate.poisoning.defense import Filtered, changed
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.voting import Voting
from tests.poisoning.cases import NearestMean, equal, quick, three_classes, weights

TRAIN, TEST = three_classes()


def every_fourth(features: Tensor, labels: Tensor) -> Tensor:
    return torch.arange(len(labels)) % 4 == 0


@dataclass(frozen=True)
class Spy(Learner):
    """A recipe that writes down what it was asked, claims a guarantee, and drops its first row from `kept`."""

    inner: Recipe
    asked: list
    keeps: bool = False

    @property
    def recipe(self) -> Recipe | None:
        return self.inner

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        self.asked.append(([data.ids.tolist() for data in datasets], list(seeds), trusted, watch))
        fitted = self.inner.fit(datasets, seeds, watch=watch)
        kept = [data.ids[1:] for data in datasets] if self.keeps else fitted.kept
        return fitted._replace(guarantees=(Guarantee(kind="dp", statement="private"),), kept=kept)


# --- recipe changes --------------------------------------------------------------------------------------------------


def test_a_recipe_change_returns_the_same_recipe_with_other_settings() -> None:
    recipe = quick()
    assert changed(recipe, Mixup(), epochs=7) == replace(recipe, epochs=7)
    assert recipe.epochs == 2


@pytest.mark.parametrize("wrapper", [PartitionVote(parts=3), SpectralSignatures()])
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
    fitted = Filtered(Spy(quick(), asked), every_fourth).fit(
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
    fitted = Filtered(quick(), every_fourth).fit([TRAIN], [1])
    alone = quick().fit([TRAIN.select(TRAIN.ids[TRAIN.ids % 4 != 0])], [1])
    assert equal(weights(fitted), weights(alone))


def test_a_filter_scores_features_in_eval_mode_without_augmentation() -> None:
    recipe = quick()
    seen: list[Tensor] = []

    def look(features: Tensor, labels: Tensor) -> Tensor:
        seen.append(features)
        return torch.zeros(len(labels), dtype=torch.bool)

    Filtered(recipe, look).fit([TRAIN], [1])
    model = recipe.fit([TRAIN], [1]).models[0]
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits = model(TRAIN.floats(TRAIN.ids))
    assert torch.allclose(seen[0] @ head.weight.T + head.bias, logits, atol=1e-4)


def test_rows_that_the_last_fit_dropped_itself_are_not_counted_as_kept() -> None:
    fitted = Filtered(Spy(quick(), [], keeps=True), every_fourth).fit([TRAIN], [1])
    assert fitted.kept[0] is not None
    assert fitted.kept[0].tolist() == [row for row in range(60) if row % 4][1:]


def test_a_filter_cannot_come_after_a_vote() -> None:
    with pytest.raises(TypeError, match="put the filter before partition-vote"):
        SpectralSignatures()(PartitionVote()(quick()))
    PartitionVote()(SpectralSignatures()(quick()))


# --- votes -----------------------------------------------------------------------------------------------------------


def test_a_vote_hands_on_what_it_is_given() -> None:
    asked: list = []
    watched: list = []
    trusted = TRAIN.select(torch.arange(3))
    fitted = Voting(Spy(quick(), asked, keeps=True), 4).fit(
        [TRAIN, TRAIN], [5, 6], trusted=trusted, watch=lambda member, epoch, predictor: watched.append((member, epoch))
    )
    assert len(asked) == 1
    assert asked[0][2] is trusted
    assert len(set(asked[0][1])) == 8, "every part of every member has a seed of its own"
    assert sorted(watched) == sorted([(0, 0), (0, 1), (1, 0), (1, 1)] * 4)
    assert len(fitted.models) == 8
    assert [guarantee.kind for guarantee in fitted.guarantees] == ["partition-vote"]
    for member, kept in enumerate(fitted.kept):
        used = [rows[1:] for rows in asked[0][0][4 * member : 4 * member + 4]]
        assert kept is not None
        assert kept.tolist() == sorted(itertools.chain.from_iterable(used))


def test_the_history_of_a_vote_is_the_mean_over_its_parts() -> None:
    fitted = Voting(NearestMean(), 3).fit([TRAIN], [0])
    assert fitted.history == {"loss": [[20.0, 1.0]]}
    assert fitted.kept == [None]


def test_shuffled_sampling_reads_rows_by_place_and_not_by_number() -> None:
    """A certificate would be void if a part's training depended on row ids, which an inserted row shifts."""
    place = [
        list(Shuffled()(ids, 4, torch.Generator().manual_seed(1))) for ids in (torch.arange(9), torch.arange(9) + 5)
    ]
    assert all(torch.equal(a + 5, b) for a, b in zip(*place, strict=True))
