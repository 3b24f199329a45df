"""Intervals of rates against closed forms, binomial sums, and simulations of correlated outcomes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from benchmarks import coverage
from mithridate.experiments import rates
from mithridate.experiments.rates import effective_n, intraclass_correlation, mid_p_interval, rate


def test_effective_n_is_the_number_of_targets_where_victims_never_disagree():
    assert effective_n([[1] * 8, [0] * 8, [1] * 8]) == 3
    assert effective_n([[1] * 8] * 5) == 5  # all targets agree: 0 / 0 in the estimator
    assert effective_n([[0], [1], [1], [0]]) == 4
    assert effective_n([[0, 1, 1, 1]]) == 1  # one target says nothing about others
    assert effective_n([]) == 0 == effective_n([[], []])


def test_effective_n_is_all_outcomes_where_many_victims_disagree_more_than_targets():
    assert effective_n([[0, 1], [0, 1], [1, 0], [0, 1]]) == 8


@pytest.mark.parametrize("victims", [2, 5, 8, 60])
def test_effective_n_lies_between_targets_and_outcomes_and_grows_with_both(victims):
    rng = np.random.default_rng(victims)
    shares = []
    for targets in (4, 16, 64, 512):
        found = effective_n((rng.random((targets, victims)) < 0.5).astype(int).tolist())
        assert targets <= found <= targets * victims
        shares.append(found / (targets * victims))
    assert shares[-1] > shares[0]
    assert shares[-1] > 0.8  # independent victims: with many targets the imagined ones no longer matter


def test_few_successes_count_for_hardly_more_than_their_targets():
    """Two lone successes of 160 show nothing about how alike victims are."""
    outcomes = [[1] + [0] * 7] * 2 + [[0] * 8] * 18
    assert intraclass_correlation(outcomes) == 0
    assert effective_n(outcomes) < 35


def test_effective_n_equals_the_analysis_of_variance_with_two_more_targets():
    y = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    f = stats.f_oneway(*y, [1, 1, 1], [0, 0, 0]).statistic
    rho = (f - 1) / (f + 2)
    assert effective_n(y) == pytest.approx(12 / (1 + 2 * rho))


def test_imagined_targets_are_no_larger_than_few_outcomes_of_a_backdoor():
    y = [[1] * 95 + [0] * 5, [1] * 90 + [0] * 10, [1] * 97 + [0] * 3]
    rho = intraclass_correlation([*y, [1] * 10, [0] * 10])
    assert effective_n(y) == pytest.approx(300 / (1 + 99 * rho))


def test_intraclass_correlation_equals_the_analysis_of_variance_table():
    y = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    table = stats.f_oneway(*y)
    # F = MSB / MSW, so rho = (F - 1) / (F + V - 1)
    assert intraclass_correlation(y) == pytest.approx((table.statistic - 1) / (table.statistic + 2))


def test_intraclass_correlation_with_unequal_victims_equals_the_textbook_sum():
    y = [[1, 1, 0, 1], [0, 0], [1], [0, 1, 0]]
    flat = [v for g in y for v in g]
    n, k, grand = len(flat), len(y), np.mean(flat)
    between = sum(len(g) * (np.mean(g) - grand) ** 2 for g in y) / (k - 1)
    within = sum((v - np.mean(g)) ** 2 for g in y for v in g) / (n - k)
    n0 = (n - sum(len(g) ** 2 for g in y) / n) / (k - 1)
    rho = (between - within) / (between + (n0 - 1) * within)
    assert intraclass_correlation(y) == pytest.approx(max(0, rho))
    assert k <= effective_n(y) <= n


def test_intraclass_correlation_recovers_the_truth_of_a_simulation():
    rng = np.random.default_rng(0)
    for draw in coverage.GENERATORS.values():
        outcomes = (rng.random((4000, 6)) < draw(0.3, 0.4, (4000, 1), rng)).astype(int)
        assert outcomes.mean() == pytest.approx(0.3, abs=0.02)
        assert intraclass_correlation(outcomes.tolist()) == pytest.approx(0.4, abs=0.04)


# --- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 20), (20, 20), (3, 1000), (7, 13), (1, 1)])
def test_mid_p_interval_equals_binomial_sums(k, n):
    def tail(p: float) -> float:
        return float(stats.binom.sf(k, n, p) + stats.binom.pmf(k, n, p) / 2) - 0.025

    low = optimize.bisect(tail, 0, 1) if k else 0
    high = optimize.bisect(lambda p: 1 - tail(p) - 0.05, 0, 1) if k < n else 1
    assert mid_p_interval(k / n, n) == pytest.approx((low, high), abs=1e-9)
    single = rate([[int(i < k)] for i in range(n)])
    assert (single.low, single.high) == pytest.approx((low, high), abs=1e-9)
    assert (single.successes, single.n, single.n_eff) == (k, n, n)


@pytest.mark.parametrize("n", [1.0, 3.4, 20.0, 250.7])
def test_mid_p_interval_is_around_the_share_mirrored_and_rises_with_it(n):
    shares = np.linspace(0, 1, 41)
    found = [mid_p_interval(share, n) for share in shares]
    for share, (low, high) in zip(shares, found, strict=True):
        assert 0 <= low <= share <= high <= 1
        assert mid_p_interval(1 - share, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    for (low, high), (next_low, next_high) in itertools.pairwise(found):
        assert next_low >= low - 1e-9
        assert next_high >= high - 1e-9


def test_mid_p_interval_lies_inside_the_exact_one_and_has_no_gap_between_whole_numbers():
    exact = stats.binomtest(3, 20).proportion_ci(method="exact")
    low, high = mid_p_interval(3 / 20, 20)
    assert exact.low < low < high < exact.high
    assert mid_p_interval(0.15, 20.0001) == pytest.approx((low, high), abs=1e-4)
    assert mid_p_interval(0.5, 0) == (0, 1)


def test_rate_of_nothing_is_the_whole_range():
    empty = rate([])
    assert (empty.low, empty.high, empty.n) == (0, 1, 0)
    assert math.isnan(empty.share)
    assert str(empty) == "no outcomes"


def test_rate_of_repeated_victims_is_wider_than_if_they_were_independent():
    outcomes = [[1] * 8] * 3 + [[0] * 8] * 7
    repeated, naive = rate(outcomes), mid_p_interval(0.3, 80)
    assert repeated.n_eff == 10
    assert repeated.low < naive[0]
    assert repeated.high > naive[1]
    single = rate([[1]] * 3 + [[0]] * 7)  # victims that always agree are worth one
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))


# --- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("targets", "victims"), list(itertools.product((5, 10, 20, 50), (1, 2, 8))))
def test_intervals_contain_the_true_rate_in_93_percent_of_studies(targets, victims):
    """The fast form of ``benchmarks/coverage.py``: fewer studies and rates.

    Slack at a single rate: three standard errors of a coverage of 93 % simulated so often, 1.7 to 4.3 points.
    """
    known: coverage.Known = {}
    studies = min(2000, 16_000 // targets) if victims == 8 else 2000
    slack = 3 * math.sqrt(0.93 * 0.07 / studies)
    for rho in (0.0, 0.3, 0.8) if victims > 1 else (0.0,):
        found = coverage.cell(targets, victims, rho, studies, known, rates=(0.1, 0.5, 0.95))
        shares = {key: values[0, 0] for key, values in found.items()}
        assert min(shares.values()) >= 0.93 - slack, shares
        assert np.mean(list(shares.values())) >= 0.93


def test_intervals_depend_on_sums_of_counts_and_squares_alone():
    """What `coverage` relies on to look an interval up."""
    first, second = ([1, 4, 4], [0, 3, 6])  # sums 9; squares 33 and 45
    same = [5, 2, 2]
    intervals = [rate([[1] * k + [0] * (6 - k) for k in counts]) for counts in (first, same[::-1], second)]
    assert sum(k * k for k in first) == sum(k * k for k in same)
    assert (intervals[0].low, intervals[0].high) == pytest.approx((intervals[1].low, intervals[1].high))
    assert intervals[0].high != pytest.approx(intervals[2].high)


def test_coverage_counts_studies_whose_interval_contains_the_truth():
    counts = np.array([[1, 0, 0, 1, 0]] * 3 + [[1, 1, 1, 1, 1]])
    ends = [rate([[k] for k in row]) for row in (counts[0].tolist(), counts[3].tolist())]
    (now, _), (width, _) = coverage.coverage(counts, 1, 0.3, {})
    assert now == 0.75
    assert width == pytest.approx(0.75 * (ends[0].high - ends[0].low) + 0.25 * (ends[1].high - ends[1].low))


def test_fewer_imagined_outcomes_would_be_too_few(monkeypatch):
    """The simulation can fail: without the imagined targets the interval misses a rare, correlated success."""
    monkeypatch.setattr(rates, "effective_n", lambda outcomes: 160 / (1 + 7 * intraclass_correlation(outcomes)))
    found = coverage.cell(20, 8, 0.8, 500, {}, rates=(0.05,))
    assert min(values[0, 0] for values in found.values()) < 0.85


def test_what_the_docstring_says_of_coverage_is_in_the_committed_results():
    path = Path(coverage.__file__).parent / "results" / "coverage-cpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    means, single = found["claims"]
    assert all(claim["holds"] for claim in (means, single))
    grid = [row for row in found["rows"] if row["rounds"] == 20_000]
    assert len(grid) == 2 * len(coverage.TARGETS) * len(coverage.VICTIMS) * len(coverage.CORRELATIONS)
    assert f"{100 * single['low']:.1f} % of studies or more" in str(rate.__doc__)
    assert f"{100 * means['low']:.1f} % or more on average" in str(rate.__doc__)
