"""Statistics against closed forms, scipy, brute force and small simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mithridate.experiments import power, statistics as s


def test_effective_n_is_the_number_of_targets_where_victims_never_disagree():
    assert s.effective_n([[1] * 8, [0] * 8, [1] * 8]) == 3
    assert s.effective_n([[1] * 8] * 5) == 5  # all targets agree: 0 / 0 in the estimator
    assert s.effective_n([[0], [1], [1], [0]]) == 4
    assert s.effective_n([[0, 1, 1, 1]]) == 1  # one target says nothing about others
    assert s.effective_n([]) == 0 == s.effective_n([[], []])


def test_effective_n_is_all_outcomes_where_victims_disagree_as_much_as_targets():
    assert s.effective_n([[0, 1], [0, 1], [1, 0], [0, 1]]) == 8


def test_intraclass_correlation_equals_the_analysis_of_variance_table():
    y = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    table = stats.f_oneway(*y)
    # F = MSB / MSW, so rho = (F - 1) / (F + V - 1)
    assert s.intraclass_correlation(y) == pytest.approx((table.statistic - 1) / (table.statistic + 2))
    rho = s.intraclass_correlation(y)
    assert s.effective_n(y) == pytest.approx(12 / (1 + 2 * rho))


def test_intraclass_correlation_with_unequal_victims_equals_the_textbook_sum():
    y = [[1, 1, 0, 1], [0, 0], [1], [0, 1, 0]]
    flat = [v for g in y for v in g]
    n, k, grand = len(flat), len(y), np.mean(flat)
    between = sum(len(g) * (np.mean(g) - grand) ** 2 for g in y) / (k - 1)
    within = sum((v - np.mean(g)) ** 2 for g in y for v in g) / (n - k)
    n0 = (n - sum(len(g) ** 2 for g in y) / n) / (k - 1)
    rho = (between - within) / (between + (n0 - 1) * within)
    assert s.intraclass_correlation(y) == pytest.approx(max(0, rho))
    assert k <= s.effective_n(y) <= n


def test_intraclass_correlation_recovers_the_truth_of_a_simulation():
    rng = np.random.default_rng(0)
    truth, share = 0.4, 0.3
    scale = (1 - truth) / truth  # beta-binomial with this correlation
    chances = rng.beta(share * scale, (1 - share) * scale, 4000)
    outcomes = (rng.random((4000, 6)) < chances[:, None]).astype(int)
    assert s.intraclass_correlation(outcomes.tolist()) == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 20), (20, 20), (3, 1000), (7, 13)])
def test_wilson_equals_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert s.wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    single = s.rate([[int(i < k)] for i in range(n)])
    assert (single.low, single.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (single.successes, single.n, single.n_eff) == (k, n, n)


def test_rate_of_nothing_is_the_whole_range():
    empty = s.rate([])
    assert (empty.low, empty.high, empty.n) == (0, 1, 0)
    assert math.isnan(empty.share)
    assert str(empty) == "no outcomes"


def test_rate_of_repeated_victims_is_wider_than_if_they_were_independent():
    outcomes = [[1] * 8] * 3 + [[0] * 8] * 7
    repeated, naive = s.rate(outcomes), s.wilson(0.3, 80)
    assert repeated.n_eff == 10
    assert repeated.low < naive[0]
    assert repeated.high > naive[1]


@pytest.mark.parametrize(("targets", "victims", "rho"), [(5, 8, 0.3), (10, 8, 0.8), (20, 2, 0.3), (20, 8, 0.0)])
def test_interval_covers_the_true_rate(targets, victims, rho):
    rng = np.random.default_rng(targets + victims)
    share, runs, hits = 0.3, 600, 0
    for _ in range(runs):
        chances = np.full(targets, share)
        if rho:
            scale = (1 - rho) / rho
            chances = rng.beta(share * scale, (1 - share) * scale, targets)
        found = s.rate((rng.random((targets, victims)) < chances[:, None]).astype(int).tolist())
        hits += found.low <= share <= found.high
    assert hits / runs > 0.93 - 2 * math.sqrt(0.93 * 0.07 / runs)


def test_percent_never_rounds_to_a_claim():
    shown = [s.percent(x) for x in (0, 1, 0.5, 0.004, 0.0001, 0.9999, 0.996, 0.0099999, 0.991)]
    assert shown == ["0", "100", "50", "0.4", "<0.1", ">99.9", "99.6", "1", "99.1"]


# --- means -----------------------------------------------------------------------------------------------------------


def test_mean_equals_scipys_t_interval():
    values = [0.61, 0.63, 0.62, 0.60]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = s.mean(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(0.615)


def test_means_of_too_few_values_have_no_interval():
    assert s.mean([0.5]) == s.Mean(0.5, None, None, 1)
    assert s.mean([None, math.nan, 0.5]).n == 1
    assert math.isnan(s.mean([]).value)
    assert s.difference([0.9], [0.8, 0.7]).low is None
    assert s.difference([], [1.0]).n == 0


def test_mean_of_equal_values_is_a_point():
    assert s.mean([0.9] * 3) == s.Mean(0.9, 0.9, 0.9, 3)
    assert s.difference([1.0, 1.0], [0.5, 0.5]) == s.Mean(0.5, 0.5, 0.5, 2)


def test_difference_equals_scipys_welch_interval():
    a, b = [0.90, 0.92, 0.91, 0.95], [0.85, 0.80, 0.84]
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = s.difference(a, b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))


def test_difference_of_a_group_without_spread_does_not_warn():
    found = s.difference([0.9, 0.9, 0.9], [0.8, 0.9])
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.005 / 2)
    assert found.high - found.low == pytest.approx(2 * half)


# --- paired tests ----------------------------------------------------------------------------------------------------


def _mcnemar(wins: int, losses: int) -> float:
    n = wins + losses
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


@pytest.mark.parametrize(("wins", "losses", "ties"), [(3, 0, 17), (5, 1, 4), (1, 4, 2), (6, 0, 0)])
def test_paired_exact_equals_the_binomial_sum(wins, losses, ties):
    first = [[1]] * wins + [[0]] * losses + [[1]] * ties
    second = [[0]] * wins + [[1]] * losses + [[1]] * ties
    found = s.paired_exact(first, second)
    assert (found.pairs, found.wins, found.losses) == (wins + losses + ties, wins, losses)
    assert found.p == pytest.approx(_mcnemar(wins, losses))
    assert found.shown == (found.p <= 0.025)


def test_paired_exact_equals_all_swaps_of_arms():
    """Under "no difference" the two outcomes of a target may be swapped: enumerate all swaps."""
    rng = np.random.default_rng(4)
    first, second = rng.integers(0, 2, (2, 9))
    seen = int(first.sum() - second.sum())
    swaps = [
        sum((a - b) * sign for a, b, sign in zip(first, second, signs, strict=True))
        for signs in itertools.product((1, -1), repeat=9)
    ]
    expected = np.mean([value >= seen for value in swaps])
    assert s.paired_exact(first[:, None].tolist(), second[:, None].tolist()).p == pytest.approx(expected)


def test_paired_exact_uses_as_many_victims_of_both_arms():
    found = s.paired_exact([[1]], [[0, 1, 1, 1, 1, 1, 1, 1]])
    assert (found.wins, found.losses) == (1, 0)
    assert s.paired_exact([[]], [[1]]).pairs == 0


def test_paired_exact_without_a_decided_pair_shows_nothing():
    assert s.paired_exact([[1], [0]], [[1], [0]]).p == 1
    assert s.paired_exact([], []).p == 1


def test_paired_tests_refuse_other_targets():
    with pytest.raises(ValueError, match="2 targets against 1"):
        s.paired_exact([[1], [0]], [[1]])
    with pytest.raises(ValueError, match="2 targets against 1"):
        s.paired_margin([1.0, 2.0], [1.0])


def test_paired_exact_is_valid_with_unequal_victims():
    """One attacked victim against the mean of 8 clean ones, no true difference, high success: the level holds."""
    rng = np.random.default_rng(5)
    shown = 0
    for _ in range(1000):
        first = (rng.random((20, 1)) < 0.9).astype(int).tolist()
        second = (rng.random((20, 8)) < 0.9).astype(int).tolist()
        shown += s.paired_exact(first, second).shown
    assert shown / 1000 <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 1000)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_sign_flip_equals_scipys_permutation_test(count):
    steps = np.random.default_rng(count).normal(0.4, 1, count)
    flips = [np.dot(signs, steps) for signs in itertools.product((1, -1), repeat=count)]
    assert s.sign_flip(steps) == pytest.approx(np.mean(np.array(flips) >= steps.sum() - 1e-9))
    if count > 1:
        reference = stats.permutation_test(
            (steps,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        assert s.sign_flip(steps) == pytest.approx(reference.pvalue)


def test_sign_flip_counts_ties_of_equal_steps():
    assert s.sign_flip([0.1] * 6) == pytest.approx(1 / 64)
    assert s.sign_flip([0.3, 0.1, 0.2, -0.3]) == pytest.approx(
        np.mean([np.dot(f, [3, 1, 2, -3]) >= 3 for f in itertools.product((1, -1), repeat=4)])
    )


def test_sign_flip_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="use paired_margin"):
        s.sign_flip([1.0] * 21)


@pytest.mark.parametrize(("count", "test"), [(15, "sign-flip"), (16, "Wilcoxon"), (40, "Wilcoxon")])
def test_paired_margin_chooses_the_test_by_the_number_of_pairs(count, test):
    rng = np.random.default_rng(count)
    steps = rng.normal(0.3, 1, count)
    found = s.paired_margin(steps, np.zeros(count))
    assert test in found.test
    assert found.difference.value == pytest.approx(steps.mean())
    if test == "Wilcoxon":
        assert found.p == stats.wilcoxon(steps, alternative="greater").pvalue


def test_paired_margin_with_ties_and_zeros_does_not_warn():
    steps = [0.0, 0.0, 0.5, 0.5, 0.5, -0.5] * 4
    assert 0 < s.paired_margin(steps, [0.0] * 24).p < 1
    assert s.paired_margin([1.0, 2.0], [1.0, 2.0]).p == 1
    assert s.paired_margin([], []).p == 1


def test_paired_margin_holds_its_level_where_nothing_differs():
    rng = np.random.default_rng(7)
    shown = [s.paired_margin(rng.normal(size=10), rng.normal(size=10)).shown for _ in range(800)]
    assert np.mean(shown) <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 800)


def test_cluster_bootstrap_refuses_few_clusters():
    with pytest.raises(ValueError, match="19 clusters; resampling needs 20"):
        s.cluster_bootstrap([1.0] * 19, range(19))


def test_cluster_bootstrap_is_near_the_t_interval_of_cluster_means_and_repeats():
    rng = np.random.default_rng(8)
    means = rng.normal(0, 1, 60)
    values, clusters = np.repeat(means, 4) + rng.normal(0, 0.1, 240), np.repeat(np.arange(60), 4)
    found = s.cluster_bootstrap(values, clusters)
    expected = s.mean([values[clusters == c].mean() for c in range(60)])
    assert found.low == pytest.approx(expected.low, abs=0.05)
    assert found.high == pytest.approx(expected.high, abs=0.05)
    naive = s.mean(values)
    assert found.high - found.low > 1.5 * (naive.high - naive.low)
    assert s.cluster_bootstrap(values, clusters) == found


# --- power -----------------------------------------------------------------------------------------------------------


def _slow_power(n: int, p1: float, p0: float) -> float:
    win, loss = p1 * (1 - p0), p0 * (1 - p1)
    tie, total = 1 - win - loss, 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            if wins + losses and _mcnemar(wins, losses) <= 0.025:
                ways = math.factorial(n) / math.factorial(wins) / math.factorial(losses)
                ways /= math.factorial(n - wins - losses)
                total += ways * win**wins * loss**losses * tie ** (n - wins - losses)
    return total


@pytest.mark.parametrize(
    ("n", "p1", "p0"), [(20, 0.3, 0.0), (20, 0.5, 0.1), (8, 0.9, 0.2), (5, 1.0, 0.0), (6, 1.0, 0.0)]
)
def test_power_equals_the_sum_over_all_outcomes(n, p1, p0):
    assert power.power_of_paired(n, p1, p0) == pytest.approx(_slow_power(n, p1, p0), abs=1e-12)


def test_power_of_no_success_at_all_is_zero():
    assert power.power_of_paired(20, 0.0, 0.0) == 0


def test_detectable_is_the_first_rate_with_enough_power():
    least = power.detectable(20)
    assert least is not None
    assert power.power_of_paired(20, least) >= 0.8 > power.power_of_paired(20, least - 0.01)
    assert power.detectable(5) is None
    assert power.detectable(6, p0=1.0) is None


def test_what_n_shows_is_plain():
    assert "can show nothing" in power.what_n_shows(5)
    assert power.what_n_shows(1).startswith("1 paired target can")
    assert "37 % or more" in power.what_n_shows(20)
    assert "show no success rate" in power.what_n_shows(6, p0=0.5)
