"""Certified accuracy against the number of rows that are changed, as a plot; and what is proven, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mithridate.experiments import words
from mithridate.experiments.plots import FAINT, INK, LINES, NARROW, WIDE, panels_of, svg
from mithridate.experiments.statistics import Mean

if TYPE_CHECKING:
    from mithridate.experiments.table import Row


class Proven(Protocol):
    """A row that knows its defence and what the whole procedure proves."""

    @property
    def defense(self) -> str: ...
    @property
    def guarantees(self) -> tuple[dict[str, Any], ...]: ...


class Curve(NamedTuple):
    """Certified accuracy of one vote."""

    name: str
    color: str
    """CSS class of its colour."""
    inserted: tuple[Mean, ...]
    """Against 0, 1, 2, ... rows that are inserted or deleted."""
    replaced: tuple[Mean, ...]
    """Against 0, 1, 2, ... rows that are replaced."""


def guarantees(rows: Sequence[Proven]) -> list[tuple[str, dict[str, Any]]]:
    """(defence, what it proves), each once."""
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for row in rows:
        for guarantee in row.guarantees:
            found.setdefault((row.defense, str(guarantee.get("statement"))), (row.defense, guarantee))
    return list(found.values())


def curves(rows: Sequence[Row]) -> list[Curve]:
    """One per vote and place: of unattacked data where that was run, else of the first attack."""
    found: dict[str, tuple[tuple[Mean, ...], tuple[Mean, ...]]] = {}
    for row in sorted(rows, key=lambda r: r.attack != "no-attack"):
        if row.certificate and row.certificate.curve:
            place = words.where(row, rows, attacker=False)
            name = f"{row.defense} ({place})" if place else row.defense
            found.setdefault(name, (row.certificate.curve, row.certificate.replaced()))
    return [Curve(name, f"l{i}", *pair) for i, (name, pair) in enumerate(list(found.items())[: len(LINES)])]


def pictures(found: Sequence[Curve], name: str) -> list[str]:
    """The curves as a wide SVG and one for phones; nothing where nothing is certified."""
    spoken = "Certified accuracy. " + " ".join(f"{curve.name}: {_said(curve.inserted)}." for curve in found)
    return [svg(_figure(found, width), f"{name}-{width}", spoken) for width in (WIDE, NARROW)] if found else []


def _said(points: Sequence[Mean]) -> str:
    return ", ".join(f"{100 * point.value:.0f} % against {count}" for count, point in enumerate(points))


def _figure(found: Sequence[Curve], width: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    stacked = width == NARROW
    panels, figure = panels_of(width, 480 if stacked else 270, 2, stacked=stacked)
    parts = ("rows inserted or deleted", "rows replaced (one deletion and one insertion)")
    for axes, title, kind in zip(panels, parts, ("inserted", "replaced"), strict=True):
        for number, curve in enumerate(found):
            points = getattr(curve, kind)
            ends = [(100 * p.value, 100 * (p.low or p.value), 100 * (p.high or p.value)) for p in points]
            ends.append(ends[-1] if len(ends) == 1 else (0.0, 0.0, 0.0))  # beyond the largest radius nothing is sure
            x = range(len(ends))
            axes.step(x, [value for value, _, _ in ends], where="post", color=LINES[number], linewidth=1.8)
            lows, highs = ([end[i] for end in ends] for i in (1, 2))
            axes.fill_between(x, lows, highs, step="post", color=LINES[number], alpha=0.18, linewidth=0)
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.set_xlim(0, max(1, *(len(getattr(curve, kind)) for curve in found)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("certified accuracy, %", loc="left", color=INK, fontsize=11, pad=8)
        axes.set_xlabel(title, color=FAINT, fontsize=10.5)
    return figure
