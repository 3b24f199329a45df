"""Accountants against independent ones: loss distributions in numpy, closed forms, enumeration of small cases."""

from __future__ import annotations

import math
import sys
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

from mithridate.core.extras import MissingExtra
from mithridate.core.gaussian import gaussian_epsilon
from mithridate.core.privacy import (
    at_most,
    group_privacy,
    mixing_epsilon,
    shift,
    shuffled_epsilon,
    subsampled_gaussian_epsilon,
)

# --- clipped and noised gradients ------------------------------------------------------------------------------------


def loss_distribution(rate: float, noise: float, *, removed: bool, width: float) -> np.ndarray:
    """Masses of the privacy loss of one step on the grid width * (-n, ..., n), each split between two neighbours."""
    x = np.linspace(-14 * noise, 1 + 14 * noise, 100_001)
    without, with_it = norm.logpdf(x, 0, noise), norm.logpdf(x, 1, noise)
    mixed = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_it)
    up, down = (mixed, without) if removed else (without, mixed)
    mass, place = np.exp(up), (up - down) / width
    low = np.floor(place).astype(int)
    half = int(np.abs(low).max()) + 2
    grid = np.zeros(2 * half + 1)
    np.add.at(grid, low + half, mass * (low + 1 - place))
    np.add.at(grid, low + half + 1, mass * (place - low))
    return grid / grid.sum()


def epsilon_by_fft(rate: float, noise: float, steps: int, delta: float) -> float:
    """The larger of both directions, by the Fourier transform of the loss's distribution to the power of the steps."""
    width = min(0.005, rate * math.sqrt(math.expm1(noise**-2)) / 20)
    found = []
    for removed in (True, False):
        one = loss_distribution(rate, noise, removed=removed, width=width)
        size = 2**18
        rolled = np.zeros(size)
        rolled[np.arange(-(len(one) // 2), len(one) // 2 + 1) % size] = one
        total = np.fft.irfft(np.fft.rfft(rolled) ** steps, size).clip(0)
        losses = width * np.concatenate([np.arange(size // 2), np.arange(-size // 2, 0)])
        assert total[np.abs(losses) > 0.45 * size * width].sum() < 1e-9, "the losses fit on the grid"

        def excess(epsilon: float, total: np.ndarray = total, losses: np.ndarray = losses) -> float:
            above = losses > epsilon
            return float((total[above] * -np.expm1(epsilon - losses[above])).sum()) - delta

        low, high = 0.0, float(losses.max())
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        found.append(high)
    return max(found)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.1, 1.0, 100, 1e-5), (128 / 50_000, 1.0, 2000, 1e-5), (0.256, 1.5, 160, 1e-4), (0.05, 0.6, 50, 1e-6)],
)
def test_private_training_against_an_accountant_in_numpy(rate: float, noise: float, steps: int, delta: float) -> None:
    found = subsampled_gaussian_epsilon(rate, noise, steps, delta)
    assert found == pytest.approx(epsilon_by_fft(rate, noise, steps, delta), rel=0.01)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 10), (0.7, 3), (20.0, 1000)])
def test_without_sampling_it_is_one_gaussian_release(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    found = subsampled_gaussian_epsilon(1.0, noise, steps, 1e-5)
    assert exact * (1 - 1e-4) <= found <= exact * 1.005


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.1, 1.0, 100), (128 / 50_000, 1.0, 15_640), (0.05, 0.8, 200)])
def test_it_is_below_the_bound_by_renyi_divergences(rate: float, noise: float, steps: int) -> None:
    """Mironov, Talwar, Zhang, arXiv 1908.10530: closed form for whole orders; a bound, and not a tight one."""
    bounds = []
    for order in range(2, 200):
        k = np.arange(order + 1)
        binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        terms = binomial + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
        bounds.append((steps * logsumexp(terms) + math.log(1e5)) / (order - 1))
    found = subsampled_gaussian_epsilon(rate, noise, steps, 1e-5)
    assert 0.5 * min(bounds) < found < min(bounds)


def test_more_noise_fewer_steps_and_smaller_batches_are_more_private() -> None:
    base = subsampled_gaussian_epsilon(0.1, 0.3, 50, 1e-5)
    assert subsampled_gaussian_epsilon(0.1, 0.35, 50, 1e-5) < base
    assert subsampled_gaussian_epsilon(0.1, 0.3, 40, 1e-5) < base
    assert subsampled_gaussian_epsilon(0.09, 0.3, 50, 1e-5) < base
    assert subsampled_gaussian_epsilon(0.1, 0.3, 50, 1e-6) > base
    assert subsampled_gaussian_epsilon(0.1, 0.0, 50, 1e-5) == math.inf
    assert subsampled_gaussian_epsilon(0.1, 1.0, 0, 1e-5) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1.5, 1.0, 10, 1e-5), "rate is 1.5"),
        ((0.1, -1.0, 10, 1e-5), "noise is -1.0"),
        ((0.1, 1.0, -1, 1e-5), "steps is -1"),
        ((0.1, 1.0, 10, 0.0), "delta is 0.0"),
        ((0.1, math.nan, 10, 1e-5), "noise is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[float, float, int, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        subsampled_gaussian_epsilon(*arguments)


def test_without_the_package_the_line_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtra, match=r"private training needs dp_accounting.*mithridate\[dp\]"):
        subsampled_gaussian_epsilon(0.123, 1.0, 7, 1e-5)


# --- mixing: exact densities in one dimension ------------------------------------------------------------------------

N, K, SCALE = 20, 4, 0.25
GRID = np.linspace(-3, 4, 71)
"""Wide enough that at both ends every kernel has the same sign of slope: the log-ratio has reached its limit."""


def log_kernel(means: np.ndarray) -> np.ndarray:
    """Laplace densities [groups, grid] around the means [groups], without the factor they share."""
    return -np.abs(GRID - means[:, None]) / SCALE


def log_density(pixels: np.ndarray) -> np.ndarray:
    """Of one release, by enumeration of all groups."""
    groups = np.array(list(combinations(range(len(pixels)), K)))
    return logsumexp(log_kernel(pixels[groups].mean(1)), axis=0) - math.log(len(groups))


def data_sets() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        np.zeros(N),
        np.ones(N),
        *(rng.random(N) for _ in range(4)),
        *(rng.integers(0, 2, N) * 1.0 for _ in range(4)),
    ]


def test_the_theorem_holds_where_a_row_is_left_out_and_is_reached() -> None:
    """The larger side is A, the other one B; n = 20, k = 4, b = 0.25: A is 0.295."""
    bound = mixing_epsilon(1, K, SCALE, 1.0, rows=N)
    other_side = math.log(N / (N - K + K * math.exp(-1)))
    assert bound == pytest.approx(0.2954, abs=1e-4)
    assert other_side < bound
    largest = smallest = 0.0
    for rest in data_sets():
        for new in (0.0, 0.5, 1.0):
            pixels = rest.copy()
            pixels[0] = new
            ratio = log_density(pixels) - log_density(pixels[1:])
            largest, smallest = max(largest, ratio.max()), min(smallest, ratio.min())
    assert 0.999 * bound < largest <= bound + 1e-9
    assert 0.999 * other_side < -smallest <= other_side + 1e-9


def test_the_theorem_holds_where_a_row_is_replaced() -> None:
    bound = mixing_epsilon(1, K, SCALE, 1.0, rows=N)
    largest = 0.0
    for rest in data_sets():
        for old, new in permutations((0.0, 0.3, 1.0), 2):
            before, after = rest.copy(), rest.copy()
            before[0], after[0] = old, new
            largest = max(largest, np.abs(log_density(before) - log_density(after)).max())
    assert 0.999 * bound < largest <= bound + 1e-9


def joint_log_density(pixels: np.ndarray, members: int) -> np.ndarray:
    """Of a release with its mixed label, [labels, grid]: the first `members` rows are one class, the rest another."""
    groups = np.array(list(combinations(range(len(pixels)), K)))
    own, kernels = (groups < members).sum(1), log_kernel(pixels[groups].mean(1))
    parts = [logsumexp(kernels[own == count], axis=0) for count in range(min(K, members) + 1)]
    return np.array(parts) - math.log(len(groups))


@pytest.mark.parametrize("members", [3, 4, 8, 12])
def test_with_public_labels_only_the_own_class_hides_a_row(members: int) -> None:
    """Counted over all rows, the claim would be false; counted over the class, it holds and is reached."""
    false, true = (mixing_epsilon(1, K, SCALE, 1.0, rows=rows) for rows in (N, members))
    largest = 0.0
    for rest in data_sets():
        for old, new in permutations((0.0, 1.0)):
            before, after = rest.copy(), rest.copy()
            before[0], after[0] = old, new
            apart = joint_log_density(before, members) - joint_log_density(after, members)
            largest = max(largest, np.abs(apart).max())
    assert largest > 1.5 * false
    assert largest <= true + 1e-9
    if members >= K:  # otherwise a mean holds no more than all of the class, and k / members is cut at 1
        assert largest > 0.999 * true


def test_mixing_inside_a_batch_keeps_its_own_bound() -> None:
    """Three images, means of two by a random permutation: the density of all three releases at once, exactly."""
    bound, diameter = shuffled_epsilon(1, SCALE, 1.0), 1.0
    orders = list(permutations(range(3)))
    rng, largest = np.random.default_rng(1), 0.0
    points = np.concatenate([rng.laplace(0.5, 1.0, (400, 3)), np.full((1, 3), 9.0), np.full((1, 3), -9.0)])

    def density(pixels: np.ndarray) -> np.ndarray:
        means = np.array([(pixels + pixels[list(order)]) / 2 for order in orders])
        return logsumexp(-np.abs(points[:, None] - means).sum(2) / SCALE, axis=1)

    for rest in (np.zeros(3), np.ones(3), rng.random(3)):
        for old, new in ((0.0, 1.0), (1.0, 0.0), (0.2, 0.9)):
            before, after = rest.copy(), rest.copy()
            before[0], after[0] = old, new
            largest = max(largest, np.abs(density(before) - density(after)).max())
    assert bound == diameter / SCALE
    assert 0.999 * bound < largest <= bound + 1e-9


# --- mixing: numbers -------------------------------------------------------------------------------------------------


def test_values_worked_out_by_hand() -> None:
    assert mixing_epsilon(1, 4, 0.1, 1.0, 50_000) == pytest.approx(8.94e-4, rel=1e-3)
    assert mixing_epsilon(1, 4, 0.25, 1.0, 1000) == pytest.approx(6.85e-3, rel=1e-3)
    assert [shift(1.0, 4, 0.1), shift(1.0, 4, 0.25)] == [2.5, 1.0]
    by_k = [mixing_epsilon(1, k, 1.0, 1.0, 50_000) for k in (1, 2, 4)]
    assert by_k == pytest.approx([3.4e-5, 2.6e-5, 2.3e-5], rel=0.02)
    assert mixing_epsilon(40 * 50_000, 4, 0.1, 1.0, 50_000) == pytest.approx(1788, abs=0.5)
    assert shuffled_epsilon(40, 0.1, 1.0) == pytest.approx(400)


def test_epsilon_is_monotone() -> None:
    def epsilon(samples: int = 10, k: int = 4, scale: float = 0.01, rows: int = 1000) -> float:
        return mixing_epsilon(samples, k, scale, 1.0, rows)

    for values in (
        [epsilon(scale=scale) for scale in (0.1, 0.05, 0.01, 0.001, 1e-4)],
        [epsilon(k=k) for k in (8, 4, 2, 1)],  # with little noise
        [epsilon(samples=samples) for samples in (0, 1, 5, 50)],
        [epsilon(rows=rows) for rows in (10_000, 1000, 10, 4)],
    ):
        assert all(a < b for a, b in pairwise(values)), values
    assert epsilon(rows=4) == epsilon(rows=1) == pytest.approx(10 * shift(1.0, 4, 0.01))


def test_nothing_overflows_and_the_two_formulas_meet() -> None:
    near = [mixing_epsilon(1, 1, 1.0, diameter, 1000) for diameter in (699.999, 700.001)]
    assert near[1] - near[0] == pytest.approx(0.002, abs=1e-9)
    cifar = mixing_epsilon(1, 4, 16 / 255, 3072.0, 5000)
    assert cifar == pytest.approx(3072 * 255 / 64 + math.log(4 / 5000))
    assert mixing_epsilon(1, 4, 0.0, 3072.0, 5000) == math.inf
    assert mixing_epsilon(0, 4, 0.0, 3072.0, 5000) == 0.0
    assert mixing_epsilon(5, 4, 1.0, 0.0, 5000) == 0.0


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"k": 0}, {"scale": -0.1}, {"diameter": -1.0}, {"rows": 0}])
def test_wrong_numbers_of_a_mixture_are_refused(wrong: dict[str, float]) -> None:
    good = {"samples": 1, "k": 4, "scale": 0.1, "diameter": 1.0, "rows": 10}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        mixing_epsilon(**(good | wrong))  # type: ignore[arg-type]


# --- from privacy to poisoning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.5, 3.0, 900.0])
@pytest.mark.parametrize("rows", [0, 1, 2, 30])
@pytest.mark.parametrize(("probability", "delta"), [(0.01, 0.0), (0.0, 0.0), (1e-9, 1e-6), (0.0, 1e-5), (1.0, 0.1)])
def test_group_privacy_is_one_row_after_the_other(epsilon: float, rows: int, probability: float, delta: float) -> None:
    expected = probability
    for _ in range(rows):
        expected = min(1.0, math.exp(min(epsilon, 700)) * expected + delta)
    assert group_privacy(epsilon, rows, probability, delta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("wrong", [{"epsilon": -1.0}, {"rows": -1}, {"probability": 1.5}, {"delta": 2.0}])
def test_wrong_numbers_of_a_group_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        group_privacy(**({"epsilon": 1.0, "rows": 1, "probability": 0.1, "delta": 0.0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [0.123411, 1.0, 9.99901, 12345.6, 2.4e10])
def test_a_written_epsilon_is_never_smaller(epsilon: float) -> None:
    assert epsilon <= float(at_most(epsilon)) <= epsilon * 1.001
