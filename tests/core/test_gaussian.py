"""Epsilon of the Gaussian mechanism against the definition, integrated, and against another library."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy.integrate import quad
from scipy.stats import norm

from mithridate.core.gaussian import gaussian_epsilon

CASES = [(sigma, delta) for sigma in (0.05, 0.3, 1.0, 3.7, 20.0) for delta in (1e-9, 1e-5, 1e-2)]


def integrated_delta(sigma: float, epsilon: float) -> float:
    """The hockey-stick divergence of N(1, sigma^2) from N(0, sigma^2): the integral of what p has above e^eps q."""

    def above(x: float) -> float:
        p, q = norm.logpdf(x, 1, sigma), norm.logpdf(x, 0, sigma) + epsilon
        return float(math.exp(p) - math.exp(q)) if p > q else 0.0

    crossing = sigma**2 * epsilon + 0.5
    pieces = [crossing + sigma * step for step in (0, 0.5, 1, 2, 4, 8, 16, 40)]
    return sum(quad(above, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in itertools.pairwise(pieces))


@pytest.mark.parametrize(("sigma", "delta"), CASES)
def test_delta_is_met_exactly(sigma: float, delta: float) -> None:
    epsilon = gaussian_epsilon(sigma, delta)
    if epsilon > 0:
        assert integrated_delta(sigma, epsilon) == pytest.approx(delta, rel=1e-6)
    else:
        assert integrated_delta(sigma, 0.0) <= delta


def test_some_noise_needs_no_epsilon_at_all() -> None:
    """The total variation distance of two normal distributions, 2 P(1 / 2 sigma) - 1, is delta at epsilon 0."""
    least = float(2 * norm.cdf(1 / 200) - 1)
    assert gaussian_epsilon(100, least * 1.001) == 0
    assert 0 < gaussian_epsilon(100, least * 0.999) < 1e-4


@pytest.mark.parametrize(("sigma", "delta"), CASES)
def test_it_is_that_of_dp_accounting(sigma: float, delta: float) -> None:
    library = pytest.importorskip("dp_accounting.pld.privacy_loss_mechanism")
    expected = library.GaussianPrivacyLoss(sigma).get_delta_for_epsilon(gaussian_epsilon(sigma, delta))
    assert expected <= delta * (1 + 1e-6)
    if gaussian_epsilon(sigma, delta) > 0:
        assert expected == pytest.approx(delta, rel=1e-6)


def test_it_falls_with_noise_and_with_delta_and_is_below_the_classical_bound() -> None:
    sigmas = [0.1, 0.5, 1, 2, 4, 8]
    by_noise = [gaussian_epsilon(sigma, 1e-5) for sigma in sigmas]
    assert by_noise == sorted(by_noise, reverse=True)
    by_delta = [gaussian_epsilon(1, delta) for delta in (1e-12, 1e-8, 1e-4, 0.1)]
    assert by_delta == sorted(by_delta, reverse=True)
    for sigma, epsilon in zip(sigmas, by_noise, strict=True):
        classical = math.sqrt(2 * math.log(1.25e5)) / sigma
        assert epsilon < classical or classical > 1  # the classical bound holds up to epsilon 1 alone


@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 1e4, 1e8])
def test_extreme_noise_is_finite(sigma: float) -> None:
    epsilon = gaussian_epsilon(sigma, 1e-5)
    assert 0 <= epsilon < math.inf
    if sigma < 1:  # then epsilon is 1 / 2 sigma^2 and a tail of the normal distribution times 1 / sigma
        assert epsilon == pytest.approx(0.5 / sigma**2 - norm.ppf(1e-5) / sigma, rel=1e-3)


def test_no_noise_promises_nothing_and_endless_noise_everything() -> None:
    assert gaussian_epsilon(0, 1e-5) == math.inf
    assert gaussian_epsilon(math.inf, 1e-5) == 0


@pytest.mark.parametrize("sigma", [-1.0, math.nan])
def test_bad_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"noise over the sensitivity"):
        gaussian_epsilon(sigma, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_bad_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and below 1"):
        gaussian_epsilon(1.0, delta)
