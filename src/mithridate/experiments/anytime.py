"""Tests and intervals that hold however often one looks and whenever one stops, for studies that stop once decided.

Reference: Ville, "Étude critique de la notion de collectif", 1939; Robbins, "Statistical Methods Related to the Law of
the Iterated Logarithm", Annals of Mathematical Statistics 41, 1970 (mixtures); Ramdas, Gruenwald, Vovk, Shafer,
"Game-Theoretic Statistics and Safe Anytime-Valid Inference", Statistical Science 38, 2023, arXiv 2210.01948.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincc, betaln, gammaln, logsumexp
from scipy.stats import binom

from mithridate.experiments.rates import effective_n
from mithridate.experiments.statistics import CONFIDENCE, LEVEL, Outcomes, PairedSuccess, Rate, holm, paired_exact

FINAL = 0.6
"""Share of the level that is kept for the exact test of all targets planned; .5 to .7 make little difference."""
HOPELESS = 0.02
"""Chance below which a comparison that is not shown yet counts as one that will not be."""


def evidence(wins: int, losses: int) -> float:
    """Logarithm of how much better the order of wins and losses is foretold by "wins are likelier" than by a fair coin.

    The chance of a win is mixed over all values above one half, each as likely. If the coin is fair, the chance that
    this ever exceeds log(1 / a), however many targets follow, is at most a.

    >>> evidence(8, 0) > math.log(40) > evidence(7, 0)
    True
    """
    above = float(betaincc(wins + 1, losses + 1, 0.5))
    density = math.log(2 * above) if above else -math.inf
    return (wins + losses) * math.log(2) + float(betaln(wins + 1, losses + 1)) + density


def anytime_paired(first: Outcomes, second: Outcomes, most: int) -> PairedSuccess:
    """The question of `paired_exact`, with a p-value that holds at whatever target one stopped.

    The level is spent in two parts: `FINAL` of it on the exact test once all targets that were planned are there, the
    rest on stopping early.

    Args:
        first: outcomes[target][victim] of the arm expected to do better, in the order in which targets were run.
        second: The same targets in the same order under the other arm.
        most: Targets that were planned, settled before the first was run.

    Raises:
        ValueError: The arms have different numbers of targets.

    >>> anytime_paired([[1]] * 9, [[0]] * 9, 20).p <= 0.025 < anytime_paired([[1]] * 8, [[0]] * 8, 20).p
    True
    >>> anytime_paired([[1]] * 7 + [[0]] * 13, [[0]] * 20, 20).p <= 0.025
    True
    """
    plain = paired_exact(first, second)
    wins = losses = 0
    largest = 0.0
    for step in steps(first, second):
        wins, losses = wins + (step > 0), losses + (step < 0)
        largest = max(largest, evidence(wins, losses))
    early = math.exp(-largest) / (1 - FINAL)
    final = plain.p / FINAL if plain.pairs >= most else 1.0
    return dataclasses.replace(plain, p=min(1.0, early, final))


def steps(first: Outcomes, second: Outcomes) -> list[float]:
    """By how many victims the first arm did better on each target that both arms tried."""
    pairs = [(a, b, min(len(a), len(b))) for a, b in zip(first, second, strict=True)]
    return [sum(a[:victims]) - sum(b[:victims]) for a, b, victims in pairs if victims]


def anytime_rate(outcomes: Outcomes) -> Rate:
    """A share of successes with an interval that holds at whatever target one stopped.

    A uniform mixture over all shares, on as many successes and failures as the outcomes are worth (`effective_n`).
    Where victims of a target are alike, that number is an estimate, and the interval is as good as it.

    >>> print(anytime_rate([[1]] * 8))
    100 % (52 to 100 %; 8 of 8)
    """
    values = [value for group in outcomes for value in group]
    if not values:
        return Rate(0, 0, 0.0, 0.0, 1.0)
    share, worth = sum(values) / len(values), effective_n(outcomes)
    hits, misses = share * worth, (1 - share) * worth
    most = float(betaln(hits + 1, misses + 1)) + math.log(1 - CONFIDENCE)

    def excess(place: float) -> float:
        """Positive where a share is refuted."""
        return most - (hits * math.log(place) + misses * math.log1p(-place))

    edge = 1e-12
    low: Any = 0.0 if share <= edge or excess(edge) <= 0 else brentq(excess, edge, min(share, 1 - edge))
    high: Any = 1.0 if share >= 1 - edge or excess(1 - edge) <= 0 else brentq(excess, max(share, edge), 1 - edge)
    return Rate(sum(values), len(values), worth, float(low), float(high))


def chance_to_show(wins: int, losses: int, ties: int, more: int, level: float = LEVEL) -> float:
    """How likely a comparison is shown once `more` targets have followed, if these are like the ones so far.

    Nothing was known before about how often a target is a win, a loss or a tie (each mixture of the three is equally
    likely), so early on little is called hopeless.

    Args:
        wins: Targets on which the first arm did better.
        losses: On which it did worse.
        ties: On which both did the same.
        more: Targets that may follow.
        level: p that counts as shown.

    >>> chance_to_show(0, 0, 11, 9) < 0.02 < chance_to_show(2, 0, 9, 9)
    True
    """
    lost, won = np.meshgrid(np.arange(more + 1), np.arange(more + 1), indexing="ij")
    same = more - lost - won
    shown = (same >= 0) & (_p(wins + won, losses + lost) <= FINAL * level)
    if not shown.any():
        return 0.0
    whole = gammaln(more + 1) - gammaln(more + wins + losses + ties + 3) + gammaln(wins + losses + ties + 3)
    for new, old in ((won, wins), (lost, losses), (same, ties)):
        new = new[shown]
        whole = whole + gammaln(new + old + 1) - gammaln(old + 1) - gammaln(new + 1)
    return float(np.exp(logsumexp(whole)))


def _p(wins: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """One-sided p of the exact sign test."""
    return binom.sf(wins - 1, wins + losses, 0.5)


def decided(results: Sequence[tuple[Outcomes, Outcomes]], most: Sequence[int]) -> list[bool]:
    """Of comparisons that are read together: which are shown, or will hardly be.

    Args:
        results: (arm expected to do better, other arm) of each, targets in the order in which they were run.
        most: Targets planned of each.

    >>> decided([([[1]] * 12, [[0]] * 12), ([[0]] * 12, [[0]] * 12), ([[1]] * 3, [[0]] * 3)], [20] * 3)
    [True, True, False]
    """
    found = [anytime_paired(*arms, planned) for arms, planned in zip(results, most, strict=True)]
    adjusted = holm([one.p for one in found])
    level = LEVEL / max(1, sum(p > LEVEL for p in adjusted))
    verdicts = []
    for one, p, planned in zip(found, adjusted, most, strict=True):
        ties, more = one.pairs - one.wins - one.losses, planned - one.pairs
        done = p <= LEVEL or more <= 0 or chance_to_show(one.wins, one.losses, ties, more, level) < HOPELESS
        verdicts.append(done)
    return verdicts
