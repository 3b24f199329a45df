"""Stopping once decided, and the dose that moves half: simulated studies against what is true of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from scipy.special import expit

from benchmarks.measure import Claim, Report, Row, Setup, environment
from mithridate.experiments.anytime import anytime_paired, decided
from mithridate.experiments.dose_response import half_dose
from mithridate.experiments.sequential import FIRST_LOOK, STEP
from mithridate.experiments.statistics import CONFIDENCE, LEVEL, holm, paired_exact

STUDIES: dict[str, tuple[tuple[float, ...], float]] = {
    "one attack, 90 % against 5 %": ((0.9,), 0.05),
    "one attack, 50 % against 5 %": ((0.5,), 0.05),
    "one attack, 30 % against 5 %": ((0.3,), 0.05),
    "one attack that does nothing (5 %)": ((0.05,), 0.05),
    "four attacks, 90, 50, 5 and 5 % against 5 %": ((0.9, 0.5, 0.05, 0.05), 0.05),
    "four attacks that do nothing (30 %)": ((0.3, 0.3, 0.3, 0.3), 0.3),
}
"""True success of the attacks, and of their common control."""
CASES = (20, 50)
DOSES = (1, 2, 4, 8, 16)


class Truth(NamedTuple):
    """How targets of a simulated dose-response differ."""

    targets: int
    half: float
    spread: float
    """Of their thresholds, in doublings."""
    width: float
    floor: float = 0.0
    victims: int = 1

    def said(self) -> str:
        """The truth in words."""
        return (
            f"{self.targets} targets x {self.victims}, half at {self.half:g} of doses 1 to {DOSES[-1]}, thresholds "
            f"+-{self.spread:g} doublings, width {self.width:g}, floor {self.floor:g}"
        )


TRUTHS = (
    Truth(20, 4.0, 1.0, 0.3),
    Truth(12, 4.0, 1.0, 0.3, victims=2),
    Truth(20, 11.0, 1.0, 0.3),
    Truth(20, 4.0, 0.3, 0.6, floor=0.05),
    Truth(40, 3.0, 1.5, 0.5, floor=0.1),
    Truth(20, 40.0, 1.0, 0.3),
)


class Played(NamedTuple):
    """One study, run to its end and stopped early."""

    fixed: list[bool]
    """Whether each comparison is shown with all cases."""
    early: list[bool]
    share: float
    """Cases that were run, of those planned."""


def play(rates: tuple[float, ...], control: float, most: int, rng: np.random.Generator) -> Played:
    """Simulates a study of attacks that share one control."""
    bare = _column(rng.random(most) < control)
    arms = [_column(rng.random(most) < rate) for rate in rates]
    ran = [most] * len(arms)
    for look in range(FIRST_LOOK, most, STEP):
        seen = [(arm[: min(look, n)], bare[: min(look, n)]) for arm, n in zip(arms, ran, strict=True)]
        verdicts = decided(seen, [most] * len(arms))
        ran = [min(look, n) if done else n for n, done in zip(ran, verdicts, strict=True)]
    fixed = holm([paired_exact(arm, bare).p for arm in arms])
    early = holm([anytime_paired(arm[:n], bare[:n], most).p for arm, n in zip(arms, ran, strict=True)])
    return Played([p <= LEVEL for p in fixed], [p <= LEVEL for p in early], sum(ran) / most / len(arms))


def dosed(truth: Truth, rng: np.random.Generator) -> tuple[bool, float]:
    """Simulates a dose-response: whether the interval holds the truth, and how many doublings it spans."""
    thresholds = rng.normal(math.log2(truth.half), truth.spread, truth.targets)
    chance = truth.floor + (1 - truth.floor) * expit((np.log2(DOSES) - thresholds[:, None]) / truth.width)
    hits = rng.binomial(truth.victims, chance)
    control = (rng.binomial(truth.targets, truth.floor), truth.targets)
    found = half_dose(DOSES, hits, np.full(hits.shape, truth.victims), control=control)
    return found.low <= truth.half <= found.high, math.log2(found.high / found.low) if found.low else math.inf


def run(setup: Setup) -> Report:
    """Simulates both."""
    studies, doses = (4, 2) if setup.small else (500, 200)
    rows: list[Row] = []
    false: list[float] = []
    for number, (case, (rates, control)) in enumerate(STUDIES.items()):
        for most in CASES:
            rng = np.random.default_rng([number, most])
            played = [play(rates, control, most, rng) for _ in range(studies)]
            rows += _rows(f"{case}, {most} cases", played)
            if max(rates) <= control:
                false.append(float(np.mean([any(one.early) for one in played])))
    covered: list[float] = []
    for truth in TRUTHS:
        rng = np.random.default_rng([truth.targets, round(10 * truth.half), round(10 * truth.spread)])
        found = [dosed(truth, rng) for _ in range(doses)]
        covered.append(float(np.mean([inside for inside, _ in found])))
        note = f"half the intervals span at most {np.median([wide for _, wide in found]):.2f} doublings"
        rows.append(_row(truth.said(), "interval of the dose that moves half", covered[-1], "coverage", doses, note))
    claims = [
        _claim(
            "false claims of a study of attacks that do nothing (largest)",
            false,
            f"at most {LEVEL:g}",
            max(false) <= LEVEL,
        ),
        _claim("coverage of the dose that moves half", covered, "at least 0.93", min(covered) >= 0.93),
    ]
    settings = {
        "looks": f"after {FIRST_LOOK} cases, then every {STEP}",
        "doses": DOSES,
        "confidence": CONFIDENCE,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    return Report(name="stopping", settings=settings, rows=rows, claims=claims, environment=environment("cpu"))


def _rows(case: str, played: list[Played]) -> list[Row]:
    count = len(played)
    same = np.mean([a == b for one in played for a, b in zip(one.fixed, one.early, strict=True)])
    shown = {name: np.mean([value for one in played for value in getattr(one, name)]) for name in ("fixed", "early")}
    return [
        _row(case, "all cases", float(shown["fixed"]), "shown", count),
        _row(case, "until decided", float(shown["early"]), "shown", count, f"same verdict in {100 * same:.1f} %"),
        _row(case, "cases run", float(np.mean([one.share for one in played])), "of those planned", count),
    ]


def _row(case: str, arm: str, value: float, unit: str, rounds: int, note: str = "") -> Row:
    return Row(case=case, arm=arm, value=value, unit=unit, rounds=rounds, note=note)


def _claim(text: str, values: list[float], required: str, holds: bool) -> Claim:
    middle = float(np.median(values))
    return Claim(claim=text, value=middle, low=min(values), high=max(values), required=required, holds=holds)


def _column(values: np.ndarray) -> list[list[int]]:
    return [[int(value)] for value in values]
