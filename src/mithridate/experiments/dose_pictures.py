"""Dose-response curves as plots: what was measured at each dose, the fit, and the dose that moves half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mithridate.experiments.doses import DoseResponse, Series
from mithridate.experiments.plots import FAINT, INK, LINES, NARROW, WIDE, panels_of, svg

MARKERS = ("o", "s", "D", "^", "v", "P")
HEIGHT = 300


class Line(NamedTuple):
    """An entry of the legend."""

    name: str
    color: str
    """CSS class of its colour."""
    half: str
    """The dose that moves half."""


class Picture(NamedTuple):
    """One attack: a plot, its legend, and what it says."""

    title: str
    lines: list[Line]
    pictures: list[str]
    """A wide SVG and one for phones."""
    sentences: list[str]


def pictures(found: Sequence[DoseResponse], name: str) -> list[Picture]:
    """One picture per attack and as many more as its defences ask for, the undefended series in each.

    Args:
        found: Of a table.
        name: Begins the ids in the SVGs.
    """
    made = []
    for number, response in enumerate(found):
        bare = [one for one in response.series if one.defense == "none"][:1]
        others = [one for one in response.series if one not in bare]
        step = len(LINES) - len(bare)
        for start in range(0, max(1, len(others)), step):
            shown = [*bare, *others[start : start + step]]
            made.append(_picture(response, shown, f"{name}-{number}-{start}", whole=start == 0))
    return made


def _picture(response: DoseResponse, shown: Sequence[Series], name: str, *, whole: bool) -> Picture:
    title = ", ".join(filter(None, (response.attack, response.place, response.fixed)))
    lines = [Line(one.name, f"l{number}", str(one.half)) for number, one in enumerate(shown)]
    sentences = response.sentences() if whole else []
    spoken = f"Success by dose of {title}. " + " ".join(response.sentences())
    drawn = [svg(_figure(response, shown, width), f"{name}-{width}", spoken) for width in (WIDE, NARROW)]
    return Picture(title, lines, drawn, sentences)


def _figure(response: DoseResponse, shown: Sequence[Series], width: int) -> Any:
    (axes,), figure = panels_of(width, HEIGHT, 1, stacked=True)
    doses = np.log2(response.doses)
    apart = 0.05 * (doses[-1] - doses[0]) / max(1, len(doses) - 1)
    for number, one in enumerate(shown):
        places = np.log2(one.half.doses)
        smooth = np.linspace(places[0], places[-1], 160)
        axes.plot(smooth, 100 * one.half.curve(list(2**smooth)), color=LINES[number], linewidth=1.8)
        side = places + apart * (number - (len(shown) - 1) / 2)
        rates = [row.success for row in one.rows]
        shares = np.array([100 * rate.share for rate in rates])
        ends = [shares - [100 * rate.low for rate in rates], [100 * rate.high for rate in rates] - shares]
        marker = MARKERS[number]
        axes.errorbar(side, shares, np.maximum(ends, 0), fmt=marker, color=LINES[number], markersize=5, linewidth=1)
        _half(axes, one, number, (doses[0], doses[-1]))
    anyway = [one.rows[0].versus["no-attack"].success for one in shown[:1] if "no-attack" in one.rows[0].versus]
    for rate in anyway:
        axes.axhline(100 * rate.share, color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
    axes.axhline(50, color=FAINT, linewidth=0.8)
    axes.set_ylim(-3, 104)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlim(doses[0] - 0.25, doses[-1] + 0.25)
    axes.set_xticks(doses, [_tick(dose) for dose in response.doses])
    axes.set_title("success, %", loc="left", color=INK, fontsize=11, pad=8)
    of = f"of {response.train:,} training images" if response.of == "budget" else "largest change of a pixel"
    axes.set_xlabel(f"{response.unit} ({of})", color=FAINT, fontsize=10.5)
    return figure


def _half(axes: Any, one: Series, number: int, edges: tuple[float, float]) -> None:
    """The dose that moves half, with its interval, as a bar near 50 %; what lies beyond the plot is cut off."""
    low = max(edges[0] - 0.25, math.log2(one.half.low) if one.half.low else edges[0] - 0.25)
    high = min(edges[1] + 0.25, math.log2(one.half.high) if math.isfinite(one.half.high) else edges[1] + 0.25)
    height = 50 - 2.5 * number
    if low < high:
        axes.plot([low, high], [height, height], color=LINES[number], linewidth=5, alpha=0.35, solid_capstyle="butt")
    if one.half.dose is not None:
        axes.plot([one.half.location], [height], marker="|", color=LINES[number], markersize=11, markeredgewidth=2.2)


def _tick(dose: float) -> str:
    return f"{dose:.3g}"
