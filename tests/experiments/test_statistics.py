"""Statistics against closed forms, scipy, brute force and small simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mithridate.experiments import statistics as s


def test_percent_never_rounds_to_a_claim():
    shown = [s.percent(x) for x in (0, 1, 0.5, 0.004, 0.0001, 0.9999, 0.996, 0.0099999, 0.991)]
    assert shown == ["0", "100", "50", "0.4", "<0.1", ">99.9", "99.6", "1", "99.1"]


# --- means -----------------------------------------------------------------------------------------------------------


def test_counts_are_written_out_whole():
    assert str(s.Rate(1234567.0, 2000000, 2e6, 0.61, 0.62)).endswith("; 1,234,567 of 2,000,000)")
    assert str(s.Rate(2.5, 20, 20.0, 0.03, 0.3)).endswith("; 2.5 of 20)")


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


# --- many comparisons ------------------------------------------------------------------------------------------------


def _naive_holm(p_values):
    """Holm as he states it: step down through the ordered tests at each level and see which are rejected."""

    def rejected(level: float) -> set[int]:
        left, found = set(range(len(p_values))), set()
        while left:
            smallest = min(left, key=lambda i: p_values[i])
            if p_values[smallest] > level / len(left):
                break
            found.add(smallest)
            left.remove(smallest)
        return found

    levels = sorted({min(1.0, p * m) for p in p_values for m in range(1, len(p_values) + 1)})
    return [next((level for level in levels if i in rejected(level * (1 + 1e-12))), 1.0) for i in range(len(p_values))]


@pytest.mark.parametrize("seed", range(6))
def test_holm_equals_stepping_down_at_every_level(seed):
    rng = np.random.default_rng(seed)
    p_values = (rng.random(rng.integers(1, 9)) ** 4).round(2).clip(0.001).tolist()  # rounded: some are equal
    assert s.holm(p_values) == pytest.approx(_naive_holm(p_values))


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.02]) == [0.02]
    assert s.holm([]) == []
    assert s.holm([1.0, 0.9, 0.9]) == [1.0, 1.0, 1.0]


def test_holm_leaves_out_what_was_no_test():
    found = s.holm([0.01, None, math.nan, 0.02])
    assert (found[0], found[3]) == (0.02, 0.02)
    assert math.isnan(found[1])
    assert math.isnan(found[2])


def test_holm_makes_at_most_so_many_false_claims():
    """Twelve comparisons of nothing, by exact tests of 20 pairs: one or more are shown in 2.5 % of studies at most."""
    rng = np.random.default_rng(3)
    wins = rng.binomial(20, 0.5, (3000, 12))
    p = stats.binom.sf(wins - 1, 20, 0.5)
    wrong = sum(min(s.holm(row)) <= s.LEVEL for row in p.tolist())
    assert wrong / 3000 <= s.LEVEL + 2 * math.sqrt(s.LEVEL * (1 - s.LEVEL) / 3000)
    assert sum(row.min() <= s.LEVEL for row in p) / 3000 > 0.1  # what reading single p-values would do
