"""Power against sums over all outcomes and against studies that are played out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mithridate.experiments.power import (
    detectable,
    fewest_pairs,
    power_of_paired,
    targets_needed,
    what_it_takes,
    what_n_shows,
)
from mithridate.experiments.statistics import FEWEST_PAIRS, LEVEL, holm, paired_exact


def _mcnemar(wins: int, losses: int) -> float:
    n = wins + losses
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


def _slow_power(n: int, p1: float, p0: float, level: float = LEVEL) -> float:
    win, loss = p1 * (1 - p0), p0 * (1 - p1)
    tie, total = 1 - win - loss, 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            if wins + losses and _mcnemar(wins, losses) <= level:
                ways = math.factorial(n) / math.factorial(wins) / math.factorial(losses)
                ways /= math.factorial(n - wins - losses)
                total += ways * win**wins * loss**losses * tie ** (n - wins - losses)
    return total


@pytest.mark.parametrize(
    ("n", "p1", "p0"), [(20, 0.3, 0.0), (20, 0.5, 0.1), (8, 0.9, 0.2), (5, 1.0, 0.0), (6, 1.0, 0.0)]
)
def test_power_equals_the_sum_over_all_outcomes(n, p1, p0):
    assert power_of_paired(n, p1, p0) == pytest.approx(_slow_power(n, p1, p0), abs=1e-12)


def test_power_of_no_success_at_all_is_zero():
    assert power_of_paired(20, 0.0, 0.0) == 0


def test_detectable_is_the_first_rate_with_enough_power():
    least = detectable(20)
    assert least is not None
    assert power_of_paired(20, least) >= 0.8 > power_of_paired(20, least - 0.01)
    assert detectable(5) is None
    assert detectable(6, p0=1.0) is None


def test_what_n_shows_is_plain():
    assert "can show nothing" in what_n_shows(5)
    assert what_n_shows(1).startswith("1 paired target can")
    assert "37 % or more" in what_n_shows(20)
    assert "show no success rate" in what_n_shows(6, p0=0.5)


# --- how many targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p1", "p0", "comparisons"), [(1.0, 0.0, 1), (0.5, 0.0, 1), (0.5, 0.0, 24), (0.9, 0.3, 8), (0.4, 0.1, 1)]
)
def test_targets_needed_is_where_power_stays(p1, p0, comparisons):
    needed = targets_needed(p1, p0, comparisons=comparisons)
    assert needed is not None
    level = LEVEL / comparisons
    slow = needed < 40
    powers = [power_of_paired(n, p1, p0, level) for n in range(max(1, needed - 1), needed + 60)]
    assert powers[0] < 0.8 <= min(powers[1:])
    if slow:
        assert powers[1] == pytest.approx(_slow_power(needed, p1, p0, level), abs=1e-12)


def test_targets_needed_is_not_the_first_tooth_of_the_saw():
    level, rates = LEVEL, (0.95, 0.05)
    needed = targets_needed(*rates, level=level)
    assert needed is not None
    reached = [n for n in range(1, needed + 1) if power_of_paired(n, *rates, level) >= 0.8]
    assert reached[-1] == needed
    assert all(power_of_paired(n, *rates, level) >= 0.8 for n in range(needed, needed + 100))


def test_targets_needed_for_what_cannot_be_shown_is_none():
    assert targets_needed(0.2, 0.2) is None
    assert targets_needed(0.1, 0.3) is None
    assert targets_needed(0.0) is None
    assert targets_needed(0.501, 0.5) is None  # millions


def test_targets_needed_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match=r"p1 is 50; .* use 0.5 for 50 %"):
        targets_needed(50)
    with pytest.raises(ValueError, match=r"power is 80"):
        targets_needed(0.5, power=80)


@pytest.mark.parametrize("comparisons", [1, 2, 7, 8, 24, 32, 100])
def test_fewest_pairs_are_the_first_whose_perfect_success_survives_holm(comparisons):
    fewest = fewest_pairs(comparisons)
    for n, shown in ((fewest - 1, False), (fewest, True)):
        p = paired_exact([[1]] * n, [[0]] * n).p
        assert (max(holm([p] * comparisons)) <= LEVEL) == shown
    assert fewest_pairs() == FEWEST_PAIRS
    assert targets_needed(1.0, comparisons=comparisons) == fewest


def test_a_study_of_the_size_that_is_needed_finds_what_is_there():
    """Six attacks that work equally, played out: each is shown, after Holm, in four of five studies or more."""
    needed = targets_needed(0.6, 0.05, comparisons=6)
    assert needed is not None
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(150):
        arms = [(rng.random((needed, 1)) < p).astype(int).tolist() for p in [0.6] * 6 + [0.05]]
        shown += [p <= LEVEL for p in holm([paired_exact(arm, arms[-1]).p for arm in arms[:-1]])]
    assert np.mean(shown) >= 0.8 - 2 * math.sqrt(0.8 * 0.2 / 150)


def test_sentences_say_for_how_many_comparisons():
    assert what_n_shows(6, comparisons=24) == (
        "6 paired targets can show nothing: even 6 of 6 against 0 of 6 gives p = 0.016, not 0.001 (0.025 for 24 "
        "comparisons); take 10 or more."
    )
    assert what_n_shows(20, comparisons=24).endswith("in 4 of 5 such studies that compare 24 settings.")
    assert (
        what_it_takes(0.5)
        == f"{targets_needed(0.5)} paired targets show 50 % against a control of 0 % in 4 of 5 studies."
    )
    assert what_it_takes(0.1, 0.2).startswith("No number of paired targets up to 10,000 shows 10 % against")
