"""Dose-response: from which dose on an attack moves half of its targets, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, logsumexp
from scipy.stats import t as student

from mithridate.experiments.statistics import CONFIDENCE

Numbers = Sequence[Sequence[float]] | np.ndarray

_NODES = np.linspace(-4.5, 4.5, 121)
_WEIGHTS = -0.5 * _NODES**2 - logsumexp(-0.5 * _NODES**2)
"""Log weights of a standard normal on a grid: steps are steeper than Gauss-Hermite nodes are close."""
_BOUNDS = [(math.log(0.1), math.log(4.0)), (math.log(0.1), math.log(4.0)), (-12.0, 6.0)]
"""Of the logarithms of spread and width, both in doublings of the dose, and of the floor's logit."""
_STARTS = tuple(np.array(start) for start in ((0.0, -1.0, -4.0), (-1.5, 0.0, -4.0)))
_BEYOND = 6.0
"""How many doublings beyond the doses tried an LD50 is looked for."""


@dataclass(frozen=True)
class HalfDose:
    """The dose that moves half of the targets that do not move by themselves (LD50)."""

    dose: float | None
    """In the unit of the doses; None where it lies outside of the doses tried."""
    low: float
    """Lower end of the interval; 0 where there is none."""
    high: float
    """Upper end; infinity where there is none."""
    doses: tuple[float, ...]
    """The doses tried."""
    targets: int
    location: float
    """Binary logarithm of the fitted LD50, wherever it lies."""
    spread: float
    """Standard deviation of the targets' own thresholds, in doublings of the dose."""
    width: float
    """How many doublings take one target's logit up by 1."""
    floor: float
    """Share of targets that move without poison."""

    def __str__(self) -> str:
        ends = f"({_short(self.low)} to {'no end' if math.isinf(self.high) else _short(self.high)})"
        if self.dose is not None:
            return f"{_short(self.dose)} {ends}"
        beyond = self.location > math.log2(self.doses[-1])
        return f"{'>' if beyond else '<'} {_short(self.doses[-1] if beyond else self.doses[0])} {ends}"

    def curve(self, doses: Sequence[float]) -> np.ndarray:
        """Returns the share of targets that each dose moves, [n].

        >>> fitted = half_dose([1, 2, 4, 8, 16], [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]] * 4)
        >>> 0.4 < float(fitted.curve([fitted.dose])[0]) < 0.6
        True
        """
        place = (np.log2(doses)[:, None] - self.location - self.spread * _NODES) / self.width
        return (self.floor + (1 - self.floor) * expit(place)) @ np.exp(_WEIGHTS)


def half_dose(
    doses: Sequence[float],
    successes: Numbers,
    tried: Numbers | None = None,
    *,
    control: tuple[float, float] = (0.0, 0.0),
    confidence: float = CONFIDENCE,
) -> HalfDose:
    """Fits thresholds of targets and returns the dose that moves half of them.

    Each target has a threshold of its own, normally distributed over doublings of the dose; a victim moves with a
    chance that rises as a logistic curve around it, from a floor that is the share of targets that move anyway. The
    same targets at all doses are thus no independent targets, and victims of one poison are not either. The interval
    holds the LD50s whose profile likelihood is not rejected by the likelihood-ratio test, with Student's quantile for
    so many targets in place of the normal one; it is open to the side on which no dose was tried.

    Reference: Finney, "Probit Analysis", 3rd ed. 1971 (tolerance distributions, natural response); the random
    threshold is that of Stiratelli, Laird, Ware, "Random-Effects Models for Serial Observations with Binary Response",
    Biometrics 40, 1984.

    Args:
        doses: [J] positive, ascending.
        successes: [T][J] of each target at each dose; fractions are allowed.
        tried: [T][J] victims behind each; 0 where a target was not tried at a dose; None: 1 each.
        control: Successes and victims without poison.
        confidence: Of the interval.

    Raises:
        ValueError: Doses that do not ascend, numbers that do not fit together, or nothing tried.

    >>> str(half_dose([1, 2, 4, 8], [[0, 0, 0, 0]] * 12))[:3]
    '> 8'
    """
    hits = np.asarray(successes, float)
    counts = np.ones_like(hits) if tried is None else np.asarray(tried, float)
    places = _checked(doses, hits, counts)
    profile = _Profile(places, hits, counts, control)
    location, smallest, rest = profile.best()
    targets = int((counts.sum(1) > 0).sum())
    allowed = smallest + float(student.ppf(0.5 + confidence / 2, max(1, targets - 1))) ** 2 / 2
    low = profile.end(location, rest, allowed, places[0] - _BEYOND)
    high = profile.end(location, rest, allowed, places[-1] + _BEYOND)
    inside = places[0] <= location <= places[-1]
    return HalfDose(
        dose=2.0**location if inside else None,
        low=0.0 if low is None else 2.0**low,
        high=math.inf if high is None else 2.0**high,
        doses=tuple(float(dose) for dose in doses),
        targets=targets,
        location=location,
        spread=math.exp(rest[0]),
        width=math.exp(rest[1]),
        floor=float(expit(rest[2])),
    )


# --- likelihood ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Profile:
    """What was seen, and how badly an LD50 fits it when everything else fits as well as it can."""

    places: np.ndarray
    """[J] binary logarithms of the doses."""
    hits: np.ndarray
    counts: np.ndarray
    control: tuple[float, float]

    def loss(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log likelihood of location, log spread, log width and logit of the floor; and its gradient."""
        location, spread, width = parameters[0], math.exp(parameters[1]), math.exp(parameters[2])
        floor = float(expit(parameters[3]))
        place = (self.places[:, None] - location - spread * _NODES) / width  # [J, Q]
        rising = expit(place)
        chance = (floor + (1 - floor) * rising).clip(1e-9, 1 - 1e-9)
        of_target = self.hits @ np.log(chance) + (self.counts - self.hits) @ np.log1p(-chance) + _WEIGHTS  # [T, Q]
        total = logsumexp(of_target, axis=1, keepdims=True)
        weight = np.exp(of_target - total)
        slope = (self.hits.T @ weight) / chance - ((self.counts - self.hits).T @ weight) / (1 - chance)  # [J, Q]
        steep = slope * (1 - floor) * rising * (1 - rising)
        moved, victims = self.control
        gradient = np.array(
            [
                -steep.sum() / width,
                -(steep * _NODES).sum() * spread / width,
                -(steep * place).sum(),
                (slope * (1 - rising)).sum() * floor * (1 - floor) + moved - victims * floor,
            ]
        )
        anyway = moved * math.log(floor) + (victims - moved) * math.log1p(-floor)
        return -float(total.sum() + anyway), -gradient

    def at(self, location: float, starts: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
        """The smallest loss at a location, and the other parameters there."""

        def loss(rest: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(np.array([location, *rest]))
            return value, gradient[1:]

        found = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=_BOUNDS) for start in starts]
        best = min(found, key=lambda one: one.fun)
        return float(best.fun), best.x

    def best(self) -> tuple[float, float, np.ndarray]:
        """Location, loss and other parameters of the best fit of all."""
        bounds = [(self.places[0] - _BEYOND, self.places[-1] + _BEYOND), *_BOUNDS]
        found = [
            minimize(self.loss, [place, *start], jac=True, method="L-BFGS-B", bounds=bounds)
            for place in np.linspace(self.places[0] - 1, self.places[-1] + 1, len(self.places) + 2)
            for start in _STARTS
        ]
        best = min(found, key=lambda one: one.fun)
        return float(best.x[0]), float(best.fun), best.x[1:]

    def end(self, location: float, rest: np.ndarray, allowed: float, edge: float) -> float | None:
        """Where the loss rises over what is allowed on the way to an edge; None where it never does."""
        inside, steps = location, max(2, math.ceil(abs(edge - location) * 4))
        for place in np.linspace(location, edge, steps + 1)[1:]:
            loss, rest = self.at(float(place), (rest, *_STARTS))
            if loss > allowed:
                return self._crossing(inside, float(place), rest, allowed)
            inside = float(place)
        return None

    def _crossing(self, inside: float, outside: float, rest: np.ndarray, allowed: float) -> float:
        """Where the loss is what is allowed, between a place where it is less and one where it is more."""
        place: Any = brentq(lambda one: self.at(one, (rest, *_STARTS))[0] - allowed, inside, outside, xtol=1e-3)
        return float(place)


def _checked(doses: Sequence[float], hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Binary logarithms of the doses."""
    given = np.asarray(doses, float)
    if len(given) < 2 or (given <= 0).any() or (np.diff(given) <= 0).any():
        raise ValueError(f"doses are {list(doses)[:8]}; expected two or more positive ones that ascend")
    if hits.ndim != 2 or hits.shape[1] != len(given) or hits.shape != counts.shape:
        raise ValueError(
            f"successes are {list(hits.shape)} and tried {list(counts.shape)}; expected one row for each target, one "
            f"column for each of {len(given)} doses"
        )
    if not counts.sum() or (hits < 0).any() or (hits > counts).any():
        raise ValueError("successes must lie between 0 and the number of victims tried, and some must be tried")
    return np.log2(given)


def _short(dose: float) -> str:
    return f"{dose:.3g}"
