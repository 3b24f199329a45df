"""Trainings kept epoch by epoch: what is read is what was trained, once."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from mithridate.core.learners import Mixed, TrainFunction
from mithridate.core.training import Recipe
from mithridate.experiments import courses
from mithridate.experiments.store import Store, Stored
from mithridate.experiments.trial import Clock, Surrogates
from tests.poisoning.cases import quick, small_net, three_classes

SEEDS = [3, 4]


def followed(learner, steps: int = 5) -> list[list[tuple[float, dict[str, torch.Tensor]]]]:
    """Rates and weights of the first stages of each member."""
    train, _ = three_classes()
    return [
        [(s.rate, {k: v.clone() for k, v in s.module.state_dict().items()}) for s in islice(course, steps)]
        for course in learner.follow([train, train], SEEDS)
    ]


def assert_same(a, b) -> None:
    for course, other in zip(a, b, strict=True):
        for (rate, weights), (theirs, expected) in zip(course, other, strict=True):
            assert rate == theirs
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize(
    "learner", [quick(epochs=2), Mixed((quick(epochs=2, model=small_net), quick(epochs=3)))], ids=["recipe", "mixed"]
)
def test_read_or_trained_every_stage_has_the_same_bits(learner: Recipe | Mixed, tmp_path: Path) -> None:
    plain = followed(learner)
    for _ in range(2):  # trained and stored, then read
        assert_same(followed(Stored(learner, Store(tmp_path))), plain)
    assert len(list((tmp_path / "courses").iterdir())) in (5, 6)


def test_a_stored_course_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = followed(Stored(quick(epochs=2), Store(tmp_path)))
    monkeypatch.setattr(Recipe, "follow", lambda *_: pytest.fail("trained again"))
    assert_same(followed(Stored(quick(epochs=2), Store(tmp_path))), first)


def test_a_course_too_large_to_keep_is_trained_by_whoever_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courses, "LARGEST", 1000)
    assert_same(followed(Stored(quick(epochs=2), Store(tmp_path))), followed(quick(epochs=2)))
    assert not (tmp_path / "courses").exists()


def test_a_damaged_course_says_what_to_do(tmp_path: Path) -> None:
    followed(Stored(quick(epochs=2), Store(tmp_path)), steps=1)
    path = next((tmp_path / "courses").glob(f"*/{courses.EPOCHS}"))
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    with pytest.raises(ValueError, match="delete it"):
        followed(Stored(quick(epochs=2), Store(tmp_path)), steps=1)


def test_surrogates_of_a_study_derive_their_seeds_and_count_the_time_as_theirs() -> None:
    train, _ = three_classes()
    clock = Clock()
    surrogates = Surrogates(quick(epochs=2), 7, clock)
    (course,), (state,) = surrogates.follow([train], [0]), surrogates.begin([train], [0])
    (other,) = Surrogates(quick(epochs=2), 8, clock).begin([train], [0])
    weights = state.module.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(next(course).module.state_dict().values(), weights, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(other.module.state_dict().values(), weights, strict=True))
    next(course)
    assert clock.seconds()["surrogates"] > 0


def test_training_code_of_ones_own_cannot_be_followed(tmp_path: Path) -> None:
    train, _ = three_classes()
    learner = Stored(TrainFunction(lambda dataset, seed: nn.Identity()), Store(tmp_path))
    with pytest.raises(TypeError, match="nobody can follow its training"):
        learner.follow([train], [0])
