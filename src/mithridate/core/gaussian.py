"""What Gaussian noise promises: the exact privacy of one release."""

from __future__ import annotations

import math

from scipy.optimize import root_scalar
from scipy.special import log_ndtr


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Returns the smallest epsilon for which one release with Gaussian noise is (epsilon, delta)-private.

    This is exact and not a bound: with a smaller epsilon, delta would be exceeded for two inputs as far apart as the
    sensitivity allows. It speaks of one release; several of them, or a random choice of who takes part, need an
    accountant.

    Reference: Balle, Wang. "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and
    Optimal Denoising". ICML 2018. arXiv 1805.06530, theorem 8.

    Args:
        sigma: Standard deviation of the noise over the sensitivity, which for a sum of gradients clipped to a norm is
            that norm where an image is added or removed, and twice the norm where one is replaced; for a mean of B, a
            B-th of it. Without noise, at 0, nothing is promised.
        delta: Probability that the promise may fail with, between 0 and 1.

    Returns:
        Epsilon, at least 0; infinity without noise.

    Raises:
        ValueError: Noise that is negative or NaN, or a delta outside (0, 1).

    >>> [round(gaussian_epsilon(sigma, 1e-5), 3) for sigma in (0.5, 1.0, 4.0)]
    [9.997, 4.377, 0.926]
    >>> gaussian_epsilon(0, 1e-5)
    inf
    """
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}; it is the noise over the sensitivity, a standard deviation of at least 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it is a probability above 0 and below 1, such as 1e-5")
    if sigma == 0:
        return math.inf
    if math.isinf(sigma):
        return 0.0

    def excess(epsilon: float) -> float:
        return _log_delta(sigma, epsilon) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(root_scalar(excess, bracket=(0.0, high), method="brentq").root)


def _log_delta(sigma: float, epsilon: float) -> float:
    """Logarithm of the smallest delta at this epsilon, P(a) - exp(epsilon) P(b) with P the normal distribution."""
    a = float(log_ndtr(0.5 / sigma - epsilon * sigma))
    b = float(log_ndtr(-0.5 / sigma - epsilon * sigma)) + epsilon
    if b >= a:  # by rounding alone, far out
        return -math.inf
    return a + math.log(-math.expm1(b - a))
