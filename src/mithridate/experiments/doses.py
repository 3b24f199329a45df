"""Rows of a table that differ in their dose alone, read together: how much poison moves half of the targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from mithridate.experiments import words
from mithridate.experiments.cells import Cell, canonical, static_settings
from mithridate.experiments.columns import plain
from mithridate.experiments.dose_response import HalfDose, half_dose

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

FEWEST = 3
"""Doses below which rows are no dose-response."""
KINDS = ("budget", "eps")


@dataclass(frozen=True, eq=False)
class Series:
    """One attacker against one defence, at every dose."""

    defense: str
    """Its name, or "none"."""
    adaptive: bool
    rows: tuple[Row, ...]
    """By dose."""
    half: HalfDose
    """The dose that moves half of the targets."""

    @property
    def name(self) -> str:
        """The defence in words."""
        known = ", known to the attacker" if self.adaptive else ""
        return "no defence" if self.defense == "none" else f"with {self.defense}{known}"


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """One attack in one place: the series without a defence first."""

    attack: str
    place: str
    """What tells it from the same attack elsewhere; may be empty."""
    of: str
    """What was varied: budget or eps."""
    fixed: str
    """The other of the two, in words."""
    train: int
    """Training images."""
    series: tuple[Series, ...]

    @property
    def doses(self) -> tuple[float, ...]:
        """All doses tried: images of the training set, or 255 x eps."""
        return tuple(sorted({dose for one in self.series for dose in one.half.doses}))

    @property
    def unit(self) -> str:
        """What a dose is counted in."""
        return "poisoned images" if self.of == "budget" else "eps x 255"

    def said(self, dose: float) -> str:
        """A dose with its unit.

        >>> DoseResponse("badnets", "", "budget", "patch", 1000, ()).said(4.2)
        '4.2 of 1,000 images (0.42 %)'
        """
        if self.of == "eps":
            return f"eps {_number(dose)}/255"
        share = f" ({_number(100 * dose / self.train)} %)" if self.train else ""
        return f"{_number(dose)} of {self.train:,} images{share}"

    def sentences(self) -> list[str]:
        """What each series showed, the undefended one first."""
        where = ", ".join(filter(None, (self.place, self.fixed)))
        bare = next((one for one in self.series if one.defense == "none"), None)
        return [
            f"{self.attack}{f' ({where})' if where else ''}, {one.name}: {self._half(one)}{self._shift(one, bare)}."
            for one in self.series
        ]

    def _half(self, one: Series) -> str:
        half, row = one.half, one.rows[-1]
        tried = f"{half.targets} {words.subjects(row)}, {len(half.doses)} doses"
        if half.dose is None and half.location > math.log2(half.doses[-1]):
            bound = f", the 95 % interval begins at {_number(half.low)}" if half.low > half.doses[0] else ""
            return f"half do not move at the largest dose, {self.said(half.doses[-1])} ({tried}{bound})"
        if half.dose is None:
            return f"more than half move at the smallest dose, {self.said(half.doses[0])} ({tried})"
        end = "no end" if math.isinf(half.high) else _number(half.high)
        return f"half move at {self.said(half.dose)}, 95 % interval {_number(half.low)} to {end} ({tried})"

    def _shift(self, one: Series, bare: Series | None) -> str:
        """How far a defence moves the dose."""
        if bare is None or one is bare:
            return ""
        if one.half.low > bare.half.high:
            least = f"at least {_number(one.half.low / bare.half.high)} times the dose"
            return f"; the defence asks for more poison ({least}: the intervals do not meet)"
        if one.half.high < bare.half.low:
            return "; less poison is needed than without it (the intervals do not meet)"
        return "; not shown to differ from no defence"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: doses, rates and fits."""
        return {
            "attack": self.attack,
            "place": self.place,
            "of": self.of,
            "unit": self.unit,
            "train": self.train,
            "series": [
                {
                    "defense": one.defense,
                    "adaptive": one.adaptive,
                    "doses": list(one.half.doses),
                    "success": [plain(row.success) for row in one.rows],
                    "half_dose": plain(one.half),
                }
                for one in self.series
            ],
        }


def dose_responses(rows: Sequence[Row]) -> list[DoseResponse]:
    """Returns the dose-responses among the rows of a table: at least three doses of what is otherwise equal.

    A study that varies budget and eps has them both ways.
    """
    attacks = [row for row in rows if not row.control and row.success.n]
    return [found for of in KINDS for found in _of_kind(of, attacks)]


def _of_kind(of: str, attacks: Sequence[Row]) -> list[DoseResponse]:
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in attacks:
        if (dose := _nominal(of, row)) is not None and dose > 0:
            group = groups.setdefault(canonical(_without(of, row.cell, "defenses", "adaptive")), {})
            group.setdefault(canonical(_without(of, row.cell)), []).append(row)
    made = []
    for group in groups.values():
        lines = [sorted(line, key=lambda row: _nominal(of, row) or 0.0) for line in group.values()]
        series = [_series(of, line) for line in lines if len({_nominal(of, row) for row in line}) >= FEWEST]
        if series:
            made.append(_response(of, series, attacks))
    return made


def _response(of: str, series: list[Series], attacks: Sequence[Row]) -> DoseResponse:
    series.sort(key=lambda one: (one.defense != "none", one.defense, one.adaptive))
    row = series[0].rows[-1]
    fixed = row.budget.bound if of == "budget" else f"{100 * row.budget.share:.3g} % poison"
    return DoseResponse(row.attack, words.where(row, attacks), of, fixed, row.budget.train, tuple(series))


def _series(of: str, line: Sequence[Row]) -> Series:
    doses = [_nominal(of, row) or 0.0 for row in line]
    counts = [row.budget.count for row in line]
    if of == "budget":  # what was really changed, where that tells the doses apart
        ascending = all(a < b for a, b in pairwise(counts)) and counts[0] > 0
        doses = counts if ascending else [dose * line[0].budget.train for dose in doses]
    hits, tried = _outcomes([row.cell for row in line])
    control = line[0].versus.get("no-attack")
    anyway = (control.success.share * control.success.n_eff, control.success.n_eff) if control else (0.0, 0.0)
    return Series(line[0].defense, line[0].adaptive, tuple(line), half_dose(doses, hits, tried, control=anyway))


def _outcomes(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """Successes and victims of every case at every dose, [T, J]: a victim counts for the share of its targets."""
    seeds = sorted({seed for cell in cells for seed in cell.trials})
    hits, tried = np.zeros((2, len(seeds), len(cells)))
    for column, cell in enumerate(cells):
        for line, seed in enumerate(seeds):
            if seed in cell.trials:
                victims = [v for v in cell.trials[seed][1]["outcome"].get("success") or () if v]
                hits[line, column] = sum(fmean(victim) for victim in victims)
                tried[line, column] = len(victims)
    return hits, tried


def _nominal(of: str, row: Row) -> float | None:
    """The dose that a threat model allows; None where it has none of that kind."""
    threat = row.settings["threat"]
    return threat.get("budget") if of == "budget" else _eps(threat.get("ball") or {})


def _eps(ball: dict[str, Any]) -> float | None:
    """255 x eps of the Linf part of a ball."""
    if ball.get("type") == "sum":
        return next((found for part in ball["balls"] if (found := _eps(part)) is not None), None)
    return 255 * ball["eps"] if ball.get("type") == "linf" else None


def _without(of: str, cell: Cell, *names: str) -> dict[str, Any]:
    """What rows of one series share, or without some names what those of one attack do."""
    settings = static_settings(cell.setting)
    threat = dict(settings["threat"])
    if of == "budget":
        threat.pop("budget", None)
    else:
        threat["ball"] = _unsized(threat.get("ball") or {})
    return {name: value for name, value in (settings | {"threat": threat}).items() if name not in names}


def _unsized(ball: dict[str, Any]) -> dict[str, Any]:
    if ball.get("type") == "sum":
        return ball | {"balls": [_unsized(part) for part in ball["balls"]]}
    return ball | {"eps": None} if ball.get("type") == "linf" else ball


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
