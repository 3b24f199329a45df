"""What a number of paired targets can show, and how many a claim needs.

A study that compares several settings is read with Holm's correction. What it shows for certain is what passes the
strictest step of it, `level` / comparisons; so everything here is a safe count, which Holm can only undercut.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from mithridate.experiments.statistics import LEVEL, percent

POWER = 0.8
"""Share of studies that find what is there."""
MOST = 10_000
"""Targets beyond which a claim counts as out of reach."""
_TOOTH = 20
"""Targets over which the saw-tooth of power may fall back."""


def fewest_pairs(comparisons: int = 1, level: float = LEVEL) -> int:
    """Fewest paired targets with which a perfect success against none is shown, among so many comparisons.

    >>> [fewest_pairs(comparisons) for comparisons in (1, 7, 8, 24, 32)]
    [6, 9, 9, 10, 11]
    """
    return math.ceil(-math.log2(level / max(1, comparisons)))


def power_of_paired(n: int, p1: float, p0: float = 0.0, level: float = LEVEL) -> float:
    """Probability that `n` paired targets show a true success of `p1` against a control of `p0`.

    Exact power of the one-sided `paired_exact`: one victim per target, attack and control independent of each other.

    >>> [round(power_of_paired(20, p, 0.0), 2) for p in (0.3, 0.4, 0.5)]
    [0.58, 0.87, 0.98]
    """
    win, loss = p1 * (1 - p0), p0 * (1 - p1)
    decided = win + loss
    if decided == 0:
        return 0.0
    m = np.arange(n + 1)  # decided pairs; of m, more wins than the fair coin's quantile give p <= level
    shown = stats.binom.sf(stats.binom.isf(level, m, 0.5), m, win / decided)
    return float((stats.binom.pmf(m, n, decided) * shown).sum())


def detectable(n: int, p0: float = 0.0, power: float = POWER, comparisons: int = 1) -> float | None:
    """Smallest true success rate (in whole percent) that `n` paired targets show with this power; None if none does.

    >>> detectable(5) is None, detectable(20), detectable(20, comparisons=24)
    (True, 0.37, 0.57)
    """
    level = LEVEL / max(1, comparisons)
    rates = [r / 100 for r in range(math.floor(100 * p0) + 1, 101)]
    if not rates or power_of_paired(n, rates[-1], p0, level) < power:
        return None
    low, high = 0, len(rates) - 1
    while low < high:
        middle = (low + high) // 2
        enough = power_of_paired(n, rates[middle], p0, level) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return rates[low]


def targets_needed(
    p1: float, p0: float = 0.0, power: float = POWER, level: float = LEVEL, comparisons: int = 1
) -> int | None:
    """How many paired targets a claim needs: that a success of `p1` beats a control of `p0`.

    Power rises with n in a saw-tooth; this is the number from which on it stays.

    Args:
        p1: true success rate of the attack.
        p0: true success rate of its control.
        power: share of such studies that are to show it.
        level: one-sided level of a single test.
        comparisons: settings compared in the study.

    Returns:
        The number; None where `p1` is not above `p0` or more than `MOST` were needed.

    Raises:
        ValueError: a rate, power or level outside its range.

    >>> targets_needed(0.37), targets_needed(0.37, comparisons=24), targets_needed(0.1, 0.2)
    (20, 32, None)
    """
    _check(p1=p1, p0=p0)
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power is {power} and level is {level}; both are probabilities between 0 and 1")
    level /= max(1, comparisons)

    def enough(n: int) -> bool:
        return power_of_paired(n, p1, p0, level) >= power

    if p1 <= p0 or not enough(MOST):
        return None
    low, high = 1, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return next(n for n in range(low + _TOOTH, 0, -1) if n == 1 or not enough(n - 1))


def what_it_takes(p1: float, p0: float = 0.0, comparisons: int = 1) -> str:
    """One sentence: how many paired targets the claim needs that a success of `p1` beats a control of `p0`.

    >>> what_it_takes(0.5, comparisons=24)
    '24 paired targets show 50 % against a control of 0 % in 4 of 5 studies that compare 24 settings.'
    """
    needed = targets_needed(p1, p0, comparisons=comparisons)
    claim = f"{percent(p1)} % against a control of {percent(p0)} %"
    if needed is None:
        return f"No number of paired targets up to {MOST:,} shows {claim} in 4 of 5 studies{_comparing(comparisons)}."
    return f"{_paired(needed)} {'shows' if needed == 1 else 'show'} {claim} in 4 of 5 studies{_comparing(comparisons)}."


def what_n_shows(n: int, p0: float = 0.0, comparisons: int = 1) -> str:
    """One sentence for `--plan`: what a cell of `n` paired targets can tell from its control.

    >>> what_n_shows(5)
    '5 paired targets can show nothing: even 5 of 5 against 0 of 5 gives p = 0.031, not 0.025; take 6 or more.'
    >>> what_n_shows(20)
    '20 paired targets show a true success rate of 37 % or more against a control of 0 % in 4 of 5 such studies.'
    """
    name, control = _paired(n), f"a control of {percent(p0)} %"
    fewest, level = fewest_pairs(comparisons), LEVEL / max(1, comparisons)
    among = f" ({LEVEL} for {comparisons} comparisons)" if comparisons > 1 else ""
    if n < fewest:
        best = f"even {n} of {n} against 0 of {n} gives p = {0.5**n:.2g}, not {level:.2g}{among}"
        return f"{name} can show nothing: {best}; take {fewest} or more."
    least, studies = detectable(n, p0, comparisons=comparisons), f"in 4 of 5 such studies{_comparing(comparisons)}"
    if least is None:
        return f"{name} show no success rate against {control} {studies}; take more."
    return f"{name} show a true success rate of {percent(least)} % or more against {control} {studies}."


def _paired(n: int) -> str:
    return f"{n:,} paired target{'s' if n != 1 else ''}"


def _comparing(comparisons: int) -> str:
    return f" that compare {comparisons} settings" if comparisons > 1 else ""


def _check(**rates: float) -> None:
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a success rate from 0 to 1, so use 0.5 for 50 %")
