"""The vote, on learners whose answers are known."""

from __future__ import annotations

import itertools

import pytest
import torch

from mithridate.core.learners import Mixed
from mithridate.core.sampling import Shuffled
from mithridate.core.training import Prediction, Recipe
from mithridate.poisoning.defense import Guarded
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.voting import Voting
from tests.poisoning.cases import NearestMean, quick, three_classes
from tests.poisoning.spy import Spy

TRAIN, TEST = three_classes()


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


def test_a_part_that_its_guard_silences_casts_no_vote() -> None:
    images = TEST.floats(TEST.ids)

    def guard(predictor, clean, seed):
        return lambda shown: torch.full((1, len(shown)), len(clean) % 2 == 0)

    plain = Voting(NearestMean(), 5).fit([TRAIN], [0])
    guarded = Voting(Guarded(NearestMean(), guard), 5).fit([TRAIN], [0])
    sizes = [len(part) for part in Voting(NearestMean(), 5)._split(TRAIN)]
    silent = sum(size % 2 == 0 for size in sizes)
    assert 0 < silent < 5
    before, after = plain.predictor(images), guarded.predictor(images)
    assert isinstance(after, Prediction)
    assert before.scores.sum(2).eq(5).all()
    assert after.scores.sum(2).eq(5 - silent).all()
    assert bool((after.scores <= before.scores).all())
    assert not after.abstained.any()
    assert after.radius is not None


def test_a_vote_of_mixed_architectures_would_certify_nothing() -> None:
    mixed = Mixed((Recipe(), Recipe(model="convnet-wide")))
    for inner in (mixed, SpectralSignatures()(mixed)):
        with pytest.raises(TypeError, match="nothing would be certified"):
            Voting(inner, 3)
