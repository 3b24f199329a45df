"""Privacy accountants: what clipped and noisy training, and mixing with noise, promise in numbers."""

from __future__ import annotations

import functools
import math
from decimal import ROUND_CEILING, Context

from mithridate.core.extras import extra

LARGEST_EXPONENT = 700.0
"""Above this, exp would overflow a float; log(1 + q (e^s - 1)) is then s + log(q) to the last digit."""


def at_most(epsilon: float) -> str:
    """Returns epsilon in four digits, rounded up: a claim may not shrink by how it is written.

    >>> at_most(1.69103), at_most(12000.0)
    ('1.692', '1.200E+4')
    """
    return f"{Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(epsilon)}"


# --- gradients that are clipped and noised ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def subsampled_gaussian_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    """Returns epsilon of so many steps, each of which sees each row with probability `rate` and adds Gaussian noise.

    Neighbours are data sets of which one has one row more. The accountant follows the distribution of the privacy loss
    through all steps and rounds it up, so the result is an upper bound, and a tight one.

    Reference: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi. "Connect the Dots: Tighter Discrete Approximations of
    Privacy Loss Distributions". PETS 2022. arXiv 2207.04380; computed by the package dp-accounting.

    Args:
        rate: Probability of a row to be in a batch, 0..1.
        noise: Deviation of the noise over the largest norm that a row adds to the sum.
        steps: Releases, each with a batch and noise of its own.
        delta: Probability that the promise may fail with, between 0 and 1.

    Returns:
        Epsilon; infinity without noise, 0 without steps.

    Raises:
        ValueError: A rate outside 0..1, negative noise or steps, or a delta outside (0, 1).
        MissingExtra: dp-accounting cannot be imported.

    >>> round(subsampled_gaussian_epsilon(0.1, 1.0, 100, 1e-5), 2)
    7.05
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it is the probability of a row to be in a batch, from 0 to 1")
    if not noise >= 0 or steps < 0:
        raise ValueError(f"noise is {noise} and steps is {steps}; both must be at least 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it is a probability above 0 and below 1, such as 1e-5")
    if steps == 0 or rate == 0:
        return 0.0
    if noise == 0:
        return math.inf
    accounting = extra("dp_accounting", "dp", "the accountant of private training")
    release = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    accountant = accounting.pld.PLDAccountant(value_discretization_interval=_resolution(rate, noise))
    return float(accountant.compose(accounting.SelfComposedDpEvent(release, steps)).get_epsilon(delta))


def _resolution(rate: float, noise: float) -> float:
    """Step of the grid of losses: a small part of the loss of one release, coarser where epsilon is far from small.

    With these, epsilon is within 0.3 % of the one on a grid that is three times as fine, in a second or two.
    """
    loss = rate * math.sqrt(math.expm1(min(noise**-2, LARGEST_EXPONENT)))
    return max(min(loss / 30, 1e-4 * max(1.0, noise**-2)), 2e-6 / max(1.0, noise))


# --- images that are mixed and noised --------------------------------------------------------------------------------


def mixing_epsilon(samples: int, k: int, scale: float, diameter: float, rows: int) -> float:
    """Returns epsilon of releasing so many means of k random rows with Laplace noise: the theorem of DP-InstaHide.

    Each mean is of k different rows, drawn uniformly and afresh from `rows` of which one may be replaced; then
    epsilon is T log(1 + q (e^s - 1)) with s = diameter / (k scale) and q = min(1, k / rows). It also holds where one of
    the rows is left out.

    What counts as `rows` depends on what else is released. Where nothing but the noisy means is, or where labels are
    part of the vectors that get the noise, it is the size of the data set: the setting of the paper. Where the mixed
    labels are released as they are, they say how many rows of each class a group holds. Given that, a row is in a
    group with probability at most k / (size of its class), so `rows` must be the size of its class, and with the size
    of the data set the claim would be false.

    Why: let p0 be the density of a release whose group is without the row, p1 with it, p1' with its replacement; q is
    the share of groups with it. Swapping the row for a uniformly chosen other one outside the group (of its class,
    where labels are known) turns the groups with it into the groups without, and moves a mean by at most
    diameter / k in l1. So p0, p1 and p1' differ by factors of at most e^s, and with m the smaller of p0 and p1',
    (1 - q) p0 + q p1 <= (1 - q) p0 + q p1' + q (e^s - 1) m <= (1 + q (e^s - 1)) ((1 - q) p0 + q p1'). Where a group may
    hold the whole class, there is nothing to swap with; q is 1 and the bound is s. Samples are drawn independently of
    each other, so their epsilons add up, also where a sample is prepared by looking at earlier ones.

    Reference: Borgnia, Geiping, Cherepanova, Fowl, Gupta, Ghiasi, Huang, Goldblum, Goldstein. "DP-InstaHide: Provably
    Defusing Poisoning and Backdoor Attacks with Differentially Private Data Augmentations". 2021. arXiv 2103.02079.
    Deviations: any diameter instead of 1; public labels.

    Args:
        samples: Mixed images T that training uses.
        k: Images per mixture, with weights 1 / k.
        scale: Parameter b of the Laplace noise on every value; its deviation is the root of two times b.
        diameter: Largest l1 distance of two images: C * H * W for pixels in [0, 1].
        rows: Rows among which the groups are uniform: see above.

    Raises:
        ValueError: A number that is out of range.

    >>> round(mixing_epsilon(1, k=4, scale=0.25, diameter=1.0, rows=20), 3)
    0.295
    """
    _check({"samples": samples, "diameter": diameter}, least=0)
    _check({"k": k, "rows": rows}, least=1)
    share, step = min(1.0, k / rows), shift(diameter, k, scale)
    if step > LARGEST_EXPONENT:
        return samples * (step + math.log(share)) if samples else 0.0
    return samples * math.log1p(share * math.expm1(step))


def shuffled_epsilon(epochs: int, scale: float, diameter: float) -> float:
    """Returns epsilon of mixing inside shuffled batches: epochs * diameter / scale.

    Each image is in one batch per epoch, and its weights in the mixtures of that batch add up to one, so replacing it
    moves all released images of an epoch together by at most the diameter in l1. This holds for any weights and needs
    no secret about who was mixed with whom; labels are public.

    >>> round(shuffled_epsilon(40, scale=0.1, diameter=1.0), 9)
    400.0
    """
    _check({"epochs": epochs, "diameter": diameter}, least=0)
    return epochs * shift(diameter, 1, scale)


def shift(diameter: float, k: int, scale: float) -> float:
    """Returns how far one of k images moves the log-density of a noisy mean; infinity without noise.

    >>> shift(1.0, 4, 0.25)
    1.0
    """
    _check({"scale": scale}, least=0)
    return diameter / (k * scale) if scale else math.inf if diameter else 0.0


# --- from privacy to poisoning ---------------------------------------------------------------------------------------


def group_privacy(epsilon: float, rows: int, probability: float, delta: float = 0.0) -> float:
    """Returns the largest probability that an outcome can have after so many rows are changed.

    The outcome may be that an attack succeeds. A row that counts is one step between neighbours. Where neighbours
    differ by adding or removing a row, replacing one is two steps: give twice the number of replaced rows.

    Reference: Dwork, Roth. "The Algorithmic Foundations of Differential Privacy". 2014, theorem 2.2; with delta by
    repeating P' <= e^epsilon P + delta. Used against poisoning by Ma, Zhu, Hsu. "Data Poisoning against
    Differentially-Private Learners: Attacks and Defenses". IJCAI 2019. arXiv 1903.09860.

    Args:
        epsilon: Of the training.
        rows: Rows that the poison changes, in steps between neighbours.
        probability: Of the outcome without the change.
        delta: Of the training.

    Returns:
        At most 1; where it is 1, the guarantee says nothing about so much poison.

    Raises:
        ValueError: A number that is out of range.

    >>> round(group_privacy(0.1, 10, 0.01), 4), group_privacy(8.0, 50, 0.01)
    (0.0272, 1.0)
    """
    _check({"epsilon": epsilon, "rows": rows, "probability": probability, "delta": delta}, least=0)
    if probability > 1 or delta > 1:
        raise ValueError(f"probability is {probability} and delta is {delta}; neither can be more than 1")
    if rows == 0:
        return probability
    # delta (1 + e^epsilon + ... + e^((rows - 1) epsilon)), in logarithms, so that nothing overflows
    failing = math.log(rows) if epsilon == 0 else _log_expm1(rows * epsilon) - _log_expm1(epsilon)
    return min(1.0, _grown(probability, rows * epsilon) + _grown(delta, failing))


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def _grown(probability: float, exponent: float) -> float:
    return math.exp(min(0.0, exponent + math.log(probability))) if probability else 0.0


def _check(numbers: dict[str, float], *, least: float) -> None:
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
