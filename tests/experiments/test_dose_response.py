"""The dose that moves half: against thresholds that are known, at the edges, and in the likelihood itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit

from mithridate.experiments.dose_response import HalfDose, _Profile, half_dose

DOSES = (1, 2, 4, 8, 16)


def studies(
    rng: np.random.Generator,
    *,
    targets: int,
    half: float,
    spread: float,
    width: float,
    floor: float = 0.0,
    victims: int = 1,
) -> HalfDose:
    """One study of targets whose thresholds are drawn."""
    thresholds = rng.normal(math.log2(half), spread, targets)
    chance = floor + (1 - floor) * expit((np.log2(DOSES) - thresholds[:, None]) / width)
    hits = rng.binomial(victims, chance)
    return half_dose(DOSES, hits, np.full(hits.shape, victims), control=(rng.binomial(targets, floor), targets))


@pytest.mark.parametrize(
    "truth",
    [
        {"targets": 20, "half": 4.0, "spread": 1.0, "width": 0.3},
        {"targets": 12, "half": 5.0, "spread": 1.0, "width": 0.2, "victims": 2},
        {"targets": 20, "half": 4.0, "spread": 0.3, "width": 0.6, "floor": 0.1},
    ],
)
def test_intervals_hold_known_thresholds(truth: dict) -> None:
    rng = np.random.default_rng(0)
    found = [studies(rng, **truth) for _ in range(16)]
    assert sum(one.low <= truth["half"] <= one.high for one in found) >= 13  # 95 %: 12 or fewer have a chance of 0.006
    assert abs(np.median([one.location for one in found]) - math.log2(truth["half"])) < 0.4
    assert np.median([one.high / one.low for one in found if one.low]) < 4


def test_more_targets_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(1)
    few, many = ([studies(rng, targets=n, half=4.0, spread=1.0, width=0.3) for _ in range(5)] for n in (8, 80))
    narrow, wide = (np.median([math.log(one.high / one.low) for one in found]) for found in (many, few))
    assert narrow < 0.6 * wide


def test_what_never_moves_needs_more_than_the_largest_dose() -> None:
    found = half_dose(DOSES, np.zeros((20, 5)))
    assert found.dose is None
    assert found.high == math.inf
    assert found.low > 16
    assert str(found).startswith("> 16")


def test_what_always_moves_needs_less_than_the_smallest_dose() -> None:
    found = half_dose(DOSES, np.ones((20, 5)), control=(0, 20))
    assert found.dose is None
    assert found.low == 0
    assert found.high < 1
    assert str(found).startswith("< 1 (0 to ")


def test_what_moves_without_poison_is_no_success_of_the_poison() -> None:
    hits = np.ones((20, 5))
    assert str(half_dose(DOSES, hits, control=(19, 20))).endswith("no end)")


def test_missing_targets_count_for_nothing() -> None:
    rng = np.random.default_rng(2)
    hits = (np.log2(DOSES) > rng.normal(2, 1, (15, 1))).astype(float)
    more = np.vstack([hits, np.zeros((5, 5))])
    tried = np.vstack([np.ones((15, 5)), np.zeros((5, 5))])
    whole, padded = half_dose(DOSES, hits), half_dose(DOSES, more, tried)
    assert padded.targets == 15
    assert math.isclose(whole.location, padded.location, abs_tol=1e-4)


def test_the_unit_of_doses_does_not_matter() -> None:
    hits = [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]] * 3
    one, thousandth = half_dose(DOSES, hits), half_dose([dose / 1000 for dose in DOSES], hits)
    assert one.dose is not None
    assert thousandth.dose is not None
    assert math.isclose(one.dose, 1000 * thousandth.dose, rel_tol=1e-3)
    assert math.isclose(one.high, 1000 * thousandth.high, rel_tol=1e-2)


def test_the_curve_rises_from_the_floor_through_half() -> None:
    hits = [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]] * 4
    found = half_dose(DOSES, hits, control=(2, 20))
    curve = found.curve(np.geomspace(0.01, 1000, 50).tolist())
    assert (np.diff(curve) >= -1e-12).all()
    assert math.isclose(curve[0], found.floor, abs_tol=0.01)
    assert curve[-1] > 0.99
    half = float(found.curve([2**found.location])[0])
    assert math.isclose(half, found.floor + (1 - found.floor) / 2, abs_tol=1e-6)


def test_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(3)
    hits = rng.integers(0, 3, (7, 5)).astype(float)
    profile = _Profile(np.arange(5.0), hits, np.full((7, 5), 2.0), (1, 9))
    for place in ([1.3, -0.4, -0.7, -2.0], [5.0, 1.0, 0.5, 0.3]):
        by_hand = profile.loss(np.array(place))[1]
        assert np.allclose(by_hand, approx_fprime(place, lambda x: profile.loss(x)[0], 1e-6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("doses", "hits", "tried", "says"),
    [
        ([1, 1, 2], [[0, 0, 1]], None, "two or more positive ones that ascend"),
        ([0, 1], [[0, 1]], None, "two or more positive ones that ascend"),
        ([1], [[1]], None, "two or more"),
        ([1, 2], [[0, 1, 1]], None, r"successes are \[1, 3\]"),
        ([1, 2], [[0, 1]], [[1]], "one column for each of 2 doses"),
        ([1, 2], [[0, 2]], None, "between 0 and the number of victims"),
        ([1, 2], [[0, 0]], [[0, 0]], "some must be tried"),
    ],
)
def test_what_does_not_fit_is_refused(doses: list, hits: list, tried: list | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        half_dose(doses, hits, tried)
