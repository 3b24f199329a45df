"""Coverage: how often the interval of a success rate contains the true rate, for correlated victims. A simulation."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, median

import numpy as np
import scipy
from scipy import stats

from benchmarks.measure import Claim, Report, Row, Setup, environment
from mithridate.experiments.rates import intraclass_correlation, rate
from mithridate.experiments.statistics import CONFIDENCE

TARGETS = (5, 10, 20, 50)
VICTIMS = (1, 2, 8)
CORRELATIONS = (0.0, 0.3, 0.8)
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
ASKED = 0.93
BACKDOORS = ((8, 60), (20, 60), (8, 500))
"""Cases and triggered images of backdoors, beyond the grid: nothing is asked of these."""
BACKDOOR_CORRELATIONS = (0.01, 0.1, 0.3)
Interval = tuple[float, float]
Known = dict[tuple[int, int], tuple[Interval, Interval]]


def beta_binomial(truth: float, rho: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Every target has its own chance of success, drawn from the beta distribution of that mean and correlation."""
    scale = (1 - rho) / rho
    return rng.beta(truth * scale, (1 - truth) * scale, shape)


def two_point(truth: float, rho: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Targets are easy (a share of `truth`) or hard; the two chances lie as far apart as the correlation asks."""
    easy = rng.random(shape) < truth
    return (1 - math.sqrt(rho)) * truth + math.sqrt(rho) * easy


def common_fate(truth: float, rho: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A share rho of the targets has all victims succeed or all fail; victims of the others are independent."""
    return np.where(rng.random(shape) < rho, rng.random(shape) < truth, truth)


GENERATORS = {"beta-binomial": beta_binomial, "two-point": two_point, "common fate": common_fate}
"""Ways to draw the chances of targets with a given mean and intraclass correlation."""


def coverage(counts: np.ndarray, victims: int, truth: float, known: Known) -> np.ndarray:
    """Share of simulated studies whose interval contains the truth, and mean width: [[now, before], [now, before]].

    Args:
        counts: successes of each target, [simulations, targets].
        victims: of each target.
        truth: the true rate.
        known: intervals found so far, by what they depend on, the sums of counts and of their squares; is added to.
    """
    sums = np.stack([counts.sum(1), (counts**2).sum(1)], 1)
    keys, first, times = np.unique(sums, axis=0, return_index=True, return_counts=True)
    found = []
    for key, index in zip(map(tuple, keys.tolist()), first, strict=True):
        if key not in known:
            outcomes = [[1] * hits + [0] * (victims - hits) for hits in counts[index].tolist()]
            now = rate(outcomes)
            known[key] = (now.low, now.high), before(outcomes)
        found.append(known[key])
    ends = np.array(found)  # [distinct, now or before, low or high]
    inside = (ends[..., 0] <= truth) & (truth <= ends[..., 1])
    weights = times / times.sum()
    return np.stack([weights @ inside, weights @ (ends[..., 1] - ends[..., 0])])


def before(outcomes: list[list[int]]) -> Interval:
    """The rule before: Wilson's interval, the plain estimate of rho, Student's quantile for several victims."""
    targets, victims = len(outcomes), len(outcomes[0])
    n = max(targets, targets * victims / (1 + (victims - 1) * intraclass_correlation(outcomes)))
    z = _quantile(targets if victims > 1 else None)
    share = sum(map(sum, outcomes)) / (targets * victims)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


@functools.cache
def _quantile(targets: int | None) -> float:
    """The normal 97.5 % point, or Student's for so many targets."""
    middle = 0.5 + CONFIDENCE / 2
    return float(stats.norm.ppf(middle) if targets is None else stats.t.ppf(middle, targets - 1))


def cell(
    targets: int,
    victims: int,
    rho: float,
    simulations: int,
    known: Known,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> dict[tuple[str, float], np.ndarray]:
    """Simulate one cell of the grid: by (generator, true rate) what `coverage` found."""
    rng = np.random.default_rng([targets, victims, round(100 * rho)])
    found, shape = {}, (simulations, targets)
    for name, truth in product(GENERATORS, rates):
        if victims == 1 or not rho:  # independent outcomes are the same by any name
            found["independent", truth] = coverage(rng.binomial(victims, truth, shape), victims, truth, known)
        else:
            chances = GENERATORS[name](truth, rho, shape, rng)
            found[name, truth] = coverage(rng.binomial(victims, chances), victims, truth, known)
    return found


def run(setup: Setup) -> Report:
    """Simulate the grid, and backdoors beyond it."""
    simulations, fewer = (20, 5) if setup.small else (20_000, 500)
    grid = [((*size, rho), simulations) for size in product(TARGETS, VICTIMS) for rho in CORRELATIONS]
    grid += [((*size, rho), fewer) for size in BACKDOORS for rho in BACKDOOR_CORRELATIONS]
    rows: list[Row] = []
    smallest: list[float] = []
    known: dict[tuple[int, int], Known] = {}
    for (targets, victims, rho), times in grid:
        found = cell(targets, victims, rho, times, known.setdefault((targets, victims), {}))
        rows += _rows(f"{targets} targets, {victims} victims, rho {rho:g}", found, times)
        smallest += [float(values[0, 0]) for values in found.values()] if times == simulations else []
    now = [row for row in rows if row.arm == "now" and row.rounds == simulations]
    means = [row.value for row in now if row.value is not None]
    claims = [
        _claim("coverage of a cell of the grid, mean over true rates (median, smallest, largest cell)", means),
        _claim("coverage at one true rate of the grid (median, smallest, largest)", smallest),
    ]
    settings = {
        "value": "share of intervals that contain the true rate, mean over true rates and generators",
        "rates": RATES,
        "generators": {name: draw.__doc__ for name, draw in GENERATORS.items()},
        "simulations": "rounds: studies simulated per true rate and generator; seed (targets, victims, 100 rho)",
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    return Report(name="coverage", settings=settings, rows=rows, claims=claims, environment=environment("cpu"))


def _rows(case: str, found: Mapping[tuple[str, float], np.ndarray], simulations: int) -> list[Row]:
    made = []
    for arm, name in enumerate(("now", "before")):
        shares = {key: float(values[0, arm]) for key, values in found.items()}
        worst = min(shares, key=lambda key: shares[key])
        width = fmean(float(values[1, arm]) for values in found.values())
        note = f"smallest {shares[worst]:.3f} ({worst[0]}, rate {worst[1]:g}); mean width {width:.3f}"
        mean = fmean(shares.values())
        made.append(Row(case=case, arm=name, value=mean, unit="coverage", rounds=simulations, note=note))
    return made


def _claim(text: str, values: Sequence[float]) -> Claim:
    low, high = min(values), max(values)
    return Claim(
        claim=text, value=median(values), low=low, high=high, required=f"at least {ASKED:g}", holds=low >= ASKED
    )
