"""Trial by trial: one line per drawn case of each cell, so that a rate can be followed down to what it counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mithridate.experiments import cells as grid, pictures, words
from mithridate.experiments.cells import Cell, Pair, is_number
from mithridate.experiments.heatmaps import anchors

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

LONGEST = 200
"""Lines of a cell that are listed; what is left out is counted."""
THUMBNAILS = 150
"""Different targets whose picture is shown."""
THUMBNAIL_SIDE = 40
"""Pixels; larger images are reduced."""
NAMED_TARGETS = 3


@dataclass(frozen=True)
class Line:
    """One trial."""

    seed: int
    case: str
    """True class, wanted class, and which target."""
    thumbnail: str
    """Name of the target's picture; empty where there is none."""
    hits: float
    of: int
    """Successes of outcomes: one per victim and target, or per victim and triggered image."""
    margin: float | None
    control: float | None
    """Mean margin of the control in the same case."""
    accuracy: float | None
    notes: str
    poisons: int
    seconds: float
    warnings: list[int]
    """Numbers of its warnings in the list below the table."""


@dataclass(frozen=True)
class Drill:
    """The trials of one cell."""

    row: Row
    anchor: str
    place: str
    """Where and at what dose, where the study has several."""
    lines: list[Line]
    left_out: int
    control: str
    """Name of the control whose margins stand beside; empty where there is none."""
    warnings: list[str]

    @property
    def title(self) -> str:
        """Attack and defence."""
        defense = "no defence" if self.row.defense == "none" else f"with {self.row.defense}"
        return f"{self.row.attack}, {defense}{', adaptive' if self.row.adaptive else ''}"

    def any(self, name: str) -> bool:
        """Whether a column has anything in it."""
        return any(getattr(line, name) not in (None, "", [], 0) for line in self.lines)


@dataclass
class Thumbnails:
    """Pictures of targets, each once in the page however many cells aim at it."""

    folder: Path
    found: dict[tuple[str, str], str] = field(default_factory=dict)
    """(fingerprint of the data, test row or file) -> data URI."""

    def look(self, pairs: Iterable[Pair]) -> None:
        """Take the pictures that lie beside stored poisons."""
        for _, result in pairs:
            keys = _pictured(result)
            if keys and keys[0] not in self.found and len(self.found) < THUMBNAILS:
                image = pictures.target(self.folder / "poisons" / str((result.get("poison") or {}).get("id")))
                if image is not None:
                    self.found[keys[0]] = pictures.png(pictures.reduced(image, THUMBNAIL_SIDE))

    def name(self, result: dict[str, Any]) -> str:
        """Name of a trial's picture in the page, or nothing."""
        key = next((key for key in _pictured(result) if key in self.found), None)
        return f"target-{list(self.found).index(key) + 1}" if key else ""

    def symbols(self) -> dict[str, str]:
        """Name -> data URI."""
        return {f"target-{number}": uri for number, uri in enumerate(self.found.values(), 1)}


def _pictured(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The first target of a case; only where single images are aimed at."""
    case = result.get("case") or {}
    rows = case.get("target_rows") or []
    if case.get("goal") in ("backdoor", "availability") or not rows:
        return []
    which = str((case.get("target_files") or rows)[0])  # a user's own files have rows that only their case knows
    return [(str((result.get("data") or {}).get("fingerprint")), which)]


def drilldown(rows: Sequence[Row], thumbnails: Thumbnails) -> list[Drill]:
    """The trials of every cell, successes first, then by margin."""
    named = anchors(rows)
    for row in rows:
        thumbnails.look(row.cell.trials.values())
    return [_drill(row, rows, named[id(row)], thumbnails) for row in rows]


def _drill(row: Row, rows: Sequence[Row], anchor: str, thumbnails: Thumbnails) -> Drill:
    name = row.against.name if row.against else ""
    control = grid.control_of(row.cell, [other.cell for other in rows], name) if name else None
    beside = _margins(control, grid.paired(row.cell, control)) if control else {}
    lines = [_line(row, seed, pair, beside.get(seed), thumbnails) for seed, pair in row.cell.trials.items()]
    lines.sort(key=lambda line: (-line.hits / max(1, line.of), -_or(line.margin, -math.inf), line.seed))
    left_out, control = max(0, len(lines) - LONGEST), name if beside else ""
    return Drill(row, anchor, _place(row, rows), lines[:LONGEST], left_out, control, list(row.warnings))


def _place(row: Row, rows: Sequence[Row]) -> str:
    doses = {row.budget.bound for row in rows if not row.control}
    return ", ".join(filter(None, (words.where(row, rows), row.budget.bound if len(doses) > 1 else "")))


def _line(row: Row, seed: int, pair: Pair, control: float | None, thumbnails: Thumbnails) -> Line:
    result = pair[1]
    outcome, poison = result["outcome"], result.get("poison") or {}
    hits = [value for victim in outcome.get("success") or () for value in victim if value is not None]
    accuracies = [value for value in outcome.get("accuracy") or () if value is not None]
    notes = {name: value for name, value in (poison.get("notes") or {}).items() if is_number(value)}
    return Line(
        seed=seed,
        case=_case(result.get("case") or {}, row.goal),
        thumbnail=thumbnails.name(result),
        hits=sum(hits),
        of=len(hits),
        margin=_margins(row.cell, [seed]).get(seed),
        control=control,
        accuracy=fmean(accuracies) if accuracies else None,
        notes=", ".join(f"{name} {value:.3g}" for name, value in notes.items()),
        poisons=int(poison.get("count") or 0),
        seconds=sum(value or 0.0 for value in (result.get("seconds") or {}).values()),
        warnings=[row.warnings.index(text) + 1 for text in dict.fromkeys(result.get("warnings") or ())],
    )


def _case(case: dict[str, Any], goal: str) -> str:
    if goal == "availability":
        return "any → wrong"
    true, wanted = (list(dict.fromkeys(case.get(key) or ())) for key in ("target_classes", "intended"))
    answer = ", ".join(map(str, wanted))
    if goal == "backdoor":
        return "any → the class after its own" if len(wanted) > 1 else f"any → {answer}"
    files = [str(name) for name in case.get("target_files") or ()]
    rows = files or [f"{row}" for row in case.get("target_rows") or ()]
    more = f" and {len(rows) - NAMED_TARGETS} more" if len(rows) > NAMED_TARGETS else ""
    which = f"{'' if files else 'row '}{', '.join(rows[:NAMED_TARGETS])}{more}" if rows else ""
    return f"{', '.join(map(str, true))} → {answer}{f' ({which})' if which else ''}"


def _margins(cell: Cell, seeds: Iterable[int]) -> dict[int, float]:
    """Mean margin over victims and targets, by seed."""
    values = cell.outcomes("margin")
    return {seed: fmean(values[seed]) for seed in seeds if values.get(seed)}


def _or(value: float | None, other: float) -> float:
    return other if value is None or math.isnan(value) else value
