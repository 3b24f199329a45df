"""Intervals and tests that fit a few targets, each with a few victims; rates have theirs in `rates`.

Everything here is a pure function of plain numbers. Three conventions hold throughout:

* The independent unit is the *target* (a trial: one drawn case and its poison). Victims trained on the same poison, and
  the triggered images of one backdoor, repeat that unit: they sharpen its rate and never count as new targets.
* Intervals are two-sided at 95 %. Tests of "the attack beats its control" are one-sided and ask for p <= `LEVEL` =
  0.025, as strict as the interval and as a two-sided test at 5 %.
* Outcomes are ragged, ``outcomes[target][victim]``: targets may have different numbers of victims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.025
"""One-sided level below which a difference counts as shown."""
FEWEST_PAIRS = math.ceil(-math.log2(LEVEL))
"""With fewer pairs no exact paired test can reach `LEVEL`."""
CONFIDENCE = 0.95
"""Two-sided confidence of every interval."""
EXACT_PAIRS = 15
"""Up to this many pairs all 2^n sign flips are enumerated (32,768 at most)."""
BOOTSTRAP_CLUSTERS = 20
"""Fewest clusters for which resampling clusters is trustworthy."""

Outcomes = Sequence[Sequence[float]]
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Rate:
    """A share of successes with its interval.

    >>> print(Rate(3, 20, 20.0, 0.052, 0.36))
    15 % (5 to 36 %; 3 of 20)
    """

    successes: float
    n: int
    """Outcomes counted: targets x victims (x triggered images)."""
    n_eff: float
    """Independent outcomes that carry as much information as the `n` correlated ones."""
    low: float
    high: float

    @property
    def share(self) -> float:
        """Successes per outcome, in [0, 1]; NaN where nothing was counted."""
        return self.successes / self.n if self.n else math.nan

    def __str__(self) -> str:
        span = f"{percent(self.low)} to {percent(self.high)} %"
        return f"{percent(self.share)} % ({span}; {self.successes:,.10g} of {self.n:,})" if self.n else "no outcomes"


@dataclass(frozen=True)
class Mean:
    """A mean with its interval; the ends are None where `n` is too small to have one."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Independent values behind the mean."""


@dataclass(frozen=True)
class PairedSuccess:
    """Paired comparison of success: on how many targets the first arm did better (wins) or worse (losses)."""

    pairs: int
    wins: int
    losses: int
    p: float

    @property
    def shown(self) -> bool:
        """Whether the first arm is shown to do better at `LEVEL`."""
        return self.p <= LEVEL


@dataclass(frozen=True)
class PairedMargin:
    """Paired comparison of margins: the mean difference (first arm minus second), its interval and its one-sided p."""

    difference: Mean
    p: float
    test: str

    @property
    def shown(self) -> bool:
        """Whether the first arm's margins are shown to be larger."""
        return self.p <= LEVEL


def percent(share: float) -> str:
    """Percentage without the sign, with a decimal only where rounding would claim 0 or 100.

    >>> percent(0.118), percent(0.004), percent(0.997), percent(1.0), percent(0.02)
    ('12', '0.4', '99.7', '100', '2')
    """
    value = 100 * share
    if 0 < value < 1 or 99 < value < 100:
        shown = f"{value:.1f}"
        return {"0.0": "<0.1", "100.0": ">99.9", "1.0": "1", "99.0": "99"}.get(shown, shown)
    return f"{value:.0f}"


def mean(values: Numbers) -> Mean:
    """Mean of independent values with Student's t interval (none for fewer than two values).

    >>> mean([0.9])
    Mean(value=0.9, low=None, high=None, n=1)
    """
    array = _finite(values)
    if len(array) < 2:
        return Mean(float(array[0]) if len(array) else math.nan, None, None, len(array))
    value = float(array[0]) if np.ptp(array) == 0 else float(array.mean())
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Mean(value, value - half, value + half, len(array))


def difference(first: Numbers, second: Numbers) -> Mean:
    """Mean of `first` minus mean of `second` with Welch's interval: two unpaired groups of independent values.

    `n` is the size of the smaller group; without two values in each there is no interval.

    >>> round(difference([0.95, 0.96, 0.94], [0.90, 0.91, 0.89]).value, 3)
    0.05
    """
    a, b = _finite(first), _finite(second)
    value = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    if (count := min(len(a), len(b))) < 2:
        return Mean(value, None, None, count)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return Mean(value, value, value, count)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(va + vb))
    return Mean(value, value - half, value + half, count)


def higher(first: Numbers, second: Numbers) -> PairedSuccess:
    """Welch's one-sided test that the values of `first` are larger: two groups of independent values, not paired.

    `wins` and `losses` count the values of `first` above and below the mean of `second`, and `pairs` is the size of the
    smaller group. Without two values in each, or where none differs from its group's mean, nothing can be shown (p 1).

    >>> higher([0.95, 0.96, 0.94], [0.40, 0.45, 0.42]).p < 0.001
    True
    >>> higher([0.95], [0.40]).p
    1.0
    """
    a, b = _finite(first), _finite(second)
    count = min(len(a), len(b))
    middle = float(b.mean()) if len(b) else math.nan
    wins, losses = int((a > middle).sum()), int((a < middle).sum())
    if count < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return PairedSuccess(count, wins, losses, 1.0)
    result: Any = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    return PairedSuccess(count, wins, losses, float(result.pvalue))


def paired_exact(first: Outcomes, second: Outcomes, alternative: str = "greater") -> PairedSuccess:
    """Exact sign test of success, target by target; for one victim per target it is the exact McNemar test.

    Target i of `first` is compared with target i of `second` by mean success over victims. Both arms use the same
    number of victims (the first min(V1, V2)): a mean of 8 victims against a single one would break the symmetry that
    the test stands on. Ties are dropped; under "no difference" each of the other targets is a fair coin.

    Args:
        first: outcomes[target][victim] of the arm expected to do better.
        second: the same targets in the same order under the other arm.
        alternative: "greater" (one-sided, the default), "less" or "two-sided".

    Reference: McNemar. Psychometrika 12, 1947; sign test.

    Raises:
        ValueError: the arms have different numbers of targets.

    >>> paired_exact([[1], [1], [1], [0]], [[0], [0], [0], [0]])
    PairedSuccess(pairs=4, wins=3, losses=0, p=0.125)
    """
    _same_length(first, second)
    pairs = [(a, b, min(len(a), len(b))) for a, b in zip(first, second, strict=True)]
    steps = [sum(a[:victims]) - sum(b[:victims]) for a, b, victims in pairs if victims]
    wins, losses = sum(s > 0 for s in steps), sum(s < 0 for s in steps)
    decided = wins + losses
    p = float(stats.binomtest(wins, decided, 0.5, alternative=alternative).pvalue) if decided else 1.0
    return PairedSuccess(len(steps), wins, losses, p)


def holm(p_values: Sequence[float | None]) -> list[float]:
    """p-values adjusted for being read together, in their order: whatever is at most `LEVEL` then is shown.

    The chance of even one false claim among all of them stays below the level, whatever depends on what. A p-value that
    is missing (None or NaN) was no test: it stays NaN and counts for nothing.

    Reference: Holm. "A simple sequentially rejective multiple test procedure". Scandinavian Journal of Statistics 6,
    1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None and not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        adjusted[place] = largest
    return adjusted


def paired_margin(first: Numbers, second: Numbers) -> PairedMargin:
    """One-sided paired test that the margins of `first` are larger, with the mean difference and its interval.

    Up to `EXACT_PAIRS` pairs all sign flips of the differences are enumerated (exact when differences are symmetric
    about 0 under "no difference"); beyond, scipy's Wilcoxon signed-rank test. The interval is Student's, and
    `cluster_bootstrap` from `BOOTSTRAP_CLUSTERS` pairs on.

    Args:
        first: one margin per target (mean over its victims) in logits.
        second: the same targets in the same order under the other arm.

    Raises:
        ValueError: the arms have different numbers of targets.

    >>> paired_margin([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p
    0.125
    """
    _same_length(first, second)
    steps = _finite([a - b for a, b in zip(first, second, strict=True)])
    if not len(steps) or not steps.any():
        return PairedMargin(mean(steps), 1.0, "no difference to test")
    interval = mean(steps) if len(steps) < BOOTSTRAP_CLUSTERS else cluster_bootstrap(steps, range(len(steps)))
    if len(steps) <= EXACT_PAIRS:
        return PairedMargin(interval, sign_flip(steps), "exact sign-flip permutation")
    result: Any = stats.wilcoxon(steps, alternative="greater")
    return PairedMargin(interval, float(result.pvalue), "Wilcoxon signed-rank")


def sign_flip(differences: Numbers) -> float:
    """One-sided exact permutation p: the share of all 2^n sign flips whose sum is at least the one seen.

    Raises:
        ValueError: more than 20 differences (a million flips).

    >>> sign_flip([1.0, 2.0, -0.5])
    0.25
    """
    if len(differences) > 20:
        raise ValueError(f"{len(differences)} differences have too many sign flips to list; use paired_margin")
    steps = np.asarray(differences, dtype=float)
    signs = np.array(list(product((1.0, -1.0), repeat=len(steps))))
    slack = 1e-12 * float(np.abs(steps).sum())
    return float((signs @ steps >= steps.sum() - slack).mean())


def cluster_bootstrap(values: Numbers, clusters: Sequence[int], draws: int = 4000, seed: int = 0) -> Mean:
    """Mean of `values` with a percentile interval from resampling whole clusters with replacement.

    Args:
        values: any numbers.
        clusters: the cluster (target) of each value.
        draws: resampled sets.
        seed: of the resampling, so that a report is the same each time it is written.

    Raises:
        ValueError: fewer than `BOOTSTRAP_CLUSTERS` clusters, where the interval would be too narrow.

    >>> cluster_bootstrap([0.0, 1.0] * 20, [i // 2 for i in range(40)])
    Mean(value=0.5, low=0.5, high=0.5, n=20)
    """
    array = np.asarray(values, dtype=float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < BOOTSTRAP_CLUSTERS:
        raise ValueError(f"{count} clusters; resampling needs {BOOTSTRAP_CLUSTERS}, so use mean() of the cluster means")
    sums, sizes = np.bincount(index, array, count), np.bincount(index, minlength=count)
    picks = np.random.default_rng(seed).integers(count, size=(draws, count))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Mean(float(array.mean()), float(low), float(high), count)


def _finite(values: Numbers) -> np.ndarray:
    """The values that are numbers: JSON has null for a margin that could not be measured."""
    array = np.array([math.nan if v is None else v for v in values], dtype=float)
    return array[np.isfinite(array)]


def _same_length(first: Sized, second: Sized) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} targets against {len(second)}; a paired test needs the same targets in both arms"
        )
