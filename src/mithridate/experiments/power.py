"""What a number of paired targets can show, and how many a claim needs."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from mithridate.experiments.statistics import FEWEST_PAIRS, LEVEL, percent


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


def detectable(n: int, p0: float = 0.0, power: float = 0.8) -> float | None:
    """Smallest true success rate (in whole percent) that `n` paired targets show with this power; None if none does.

    >>> detectable(5) is None, detectable(20)
    (True, 0.37)
    """
    rates = [r / 100 for r in range(math.floor(100 * p0) + 1, 101)]
    if not rates or power_of_paired(n, rates[-1], p0) < power:
        return None
    low, high = 0, len(rates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_paired(n, rates[middle], p0) >= power else (middle + 1, high)
    return rates[low]


def what_n_shows(n: int, p0: float = 0.0) -> str:
    """One sentence for `--plan`: what a cell of `n` paired targets can tell from its control.

    >>> what_n_shows(5)
    '5 paired targets can show nothing: even 5 of 5 against 0 of 5 gives p = 0.031, not 0.025; take 6 or more.'
    >>> what_n_shows(20)
    '20 paired targets show a true success rate of 37 % or more against a control of 0 % in 4 of 5 such studies.'
    """
    name = "paired target" + "s" * (n != 1)
    if n < FEWEST_PAIRS:
        best = f"even {n} of {n} against 0 of {n} gives p = {0.5**n:.2g}, not {LEVEL}; take {FEWEST_PAIRS} or more"
        return f"{n} {name} can show nothing: {best}."
    least, control = detectable(n, p0), f"a control of {percent(p0)} %"
    if least is None:
        return f"{n} {name} show no success rate against {control} in 4 of 5 such studies; take more."
    return (
        f"{n} {name} show a true success rate of {percent(least)} % or more against {control} in 4 of 5 such studies."
    )
