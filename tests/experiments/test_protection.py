"""What a check of a protected copy says: means, intervals and the test, of models that were trained for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.protection import Check, check

LEARNER = Recipe(model="mlp:width=16", epochs=6, batch_size=32, transforms=())


@pytest.fixture(scope="module")
def pieces() -> tuple[ImageData, ImageData, ImageData]:
    """300 digits, the same with images that belong to other labels, and a test set."""
    train, test = Digits(train=300).load()
    order = torch.randperm(len(train), generator=stream(0, "others"))
    return train, train.replace(train.ids, train.images[order]), test.select(test.ids[:150])


@pytest.fixture(scope="module")
def found(pieces: tuple[ImageData, ImageData, ImageData]) -> Check:
    return check(LEARNER, *pieces, models=3, seed=1)


def test_what_cannot_be_learnt_from_is_told_from_what_can(found: Check) -> None:
    assert found.clean.value > 0.6
    assert found.protected.value < 0.3
    assert found.protected.value <= found.best.value < 0.4
    assert found.p < 0.01
    assert (found.train, found.test, found.shape) == (300, 150, (1, 8, 8))


def test_what_is_lost_is_the_difference_with_welchs_interval(
    pieces: tuple[ImageData, ImageData, ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, left = [0.7, 0.72, 0.69], [0.3, 0.35, 0.28]
    answers = iter([(kept, kept), (left, [0.4, 0.41, 0.42])])
    monkeypatch.setattr("mithridate.experiments.protection._accuracies", lambda *_: next(answers))
    made = check(LEARNER, *pieces)
    assert made.lost.value == pytest.approx(np.mean(kept) - np.mean(left))
    welch = stats.ttest_ind(kept, left, equal_var=False)
    ends = welch.confidence_interval(0.95)
    assert (made.lost.low, made.lost.high) == pytest.approx((ends.low, ends.high))
    assert made.p == pytest.approx(welch.pvalue / 2)
    assert made.best.value == pytest.approx(0.41)


def test_two_sets_of_the_same_images_are_not_told_apart(pieces: tuple[ImageData, ImageData, ImageData]) -> None:
    train, _, test = pieces
    found = check(LEARNER, train, train, test, models=2)
    assert found.clean == found.protected  # the same seeds
    assert found.lost.value == 0
    assert found.p >= 0.5


def test_one_model_has_no_interval(pieces: tuple[ImageData, ImageData, ImageData]) -> None:
    found = check(LEARNER, *pieces, models=1)
    assert found.clean.low is None
    assert "trained on clean: accuracy " in str(found)
    assert "(" not in str(found).splitlines()[1]


def test_intervals_end_where_shares_end(
    pieces: tuple[ImageData, ImageData, ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([([0.99, 0.9], [0.99, 0.9]), ([0.01, 0.1], [0.01, 0.1])])
    monkeypatch.setattr("mithridate.experiments.protection._accuracies", lambda *_: next(answers))
    made = check(LEARNER, *pieces)
    assert "trained on clean: accuracy 94.5 % (37.3 to 100.0)" in str(made)
    assert "trained on protected: accuracy 5.5 % (0.0 to 62.7)" in str(made)


def test_it_says_so_in_words_and_numbers(found: Check) -> None:
    text = str(found).splitlines()
    assert text[0] == "check: 3 models each, 300 images of 8x8, 150 clean test images"
    assert text[1].startswith(f"  trained on clean: accuracy {100 * found.clean.value:.1f} % (")
    assert text[-1].startswith(f"  lost: {100 * found.lost.value:.1f} points, ")
    data = json.loads(json.dumps(found.to_json()))
    assert data["clean"]["n"] == 3
    assert data["shape"] == [1, 8, 8]
