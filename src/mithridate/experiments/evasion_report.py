"""The page of an evasion: robust accuracy by strength, a table, doubts, and images that were fooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mithridate.experiments import pages, pictures
from mithridate.experiments.evasions import Evaluation, Level, examples
from mithridate.experiments.facts import environment
from mithridate.experiments.plots import FAINT, INK, LINES, NARROW, WIDE, panels_of, svg
from mithridate.experiments.statistics import Rate, percent

PAGE = "report.html"
SIDE = 144
"""Longest side of a picture on the page, in pixels of the file."""
MARKERS = ("o", "s", "D", "^", "v", "P")


class Line(NamedTuple):
    """One attack in the plot."""

    name: str
    color: str
    """CSS class of its colour."""
    points: list[tuple[float, Rate]]
    """(eps, images that stand), the weakest first."""


class Shown(NamedTuple):
    """Images that one attack fooled."""

    title: str
    items: list[tuple[str, str, str, str]]
    """(before, after, difference, what the model says), data URIs."""


def write_evasion_report(
    folder: Path,
    done: Evaluation,
    *,
    title: str,
    classes: Sequence[str],
    settings: Sequence[pages.Part],
    command: str | None,
) -> Path:
    """Writes the page and returns where it is."""
    lines = _lines(done)
    page = pages.environment().get_template("evasion.html.j2")
    text = page.render(
        title=title,
        headline=headline(done),
        done=done,
        lines=lines,
        plots=[svg(_figure(done, lines, width), f"robust-{width}", _spoken(lines)) for width in (WIDE, NARROW)],
        shown=[_shown(level, classes) for level in _strongest(done.levels)],
        strength=strength,
        machine=environment("cpu"),
        methods=pages.methods(settings, ("model", "data", "attack")),
        command=command,
    )
    return pages.write(text, folder / PAGE)


def headline(done: Evaluation) -> str:
    """What was found, in a sentence."""
    ball, eps, found = done.worst()[-1]
    return (
        f"Of {done.accuracy.n:,} test images the model gets {percent(done.accuracy.share)} % right; "
        f"{percent(found.share)} % ({percent(found.low)} to {percent(found.high)} %) under every attack of strength "
        f"{strength(ball, eps)}."
    )


def strength(ball: str, eps: float) -> str:
    """A radius in the unit people use.

    >>> strength("linf", 8 / 255), strength("l2", 0.5)
    ('Linf 8/255', 'L2 0.5')
    """
    return f"Linf {255 * eps:.3g}/255" if ball == "linf" else f"{ball.upper()} {eps:.3g}"


def _lines(done: Evaluation) -> list[Line]:
    found: dict[tuple[str, str], list[tuple[float, Rate]]] = {}
    for level in done.levels:
        found.setdefault((level.attack, level.ball), []).append((level.eps, level.stands))
    balls = {ball for _, ball in found}
    return [
        Line(
            attack if len(balls) == 1 else f"{attack}, {ball}",
            f"l{number % len(LINES)}",
            sorted(points, key=lambda p: p[0]),
        )
        for number, ((attack, ball), points) in enumerate(found.items())
    ]


def _figure(done: Evaluation, lines: Sequence[Line], width: int) -> Any:
    (axes,), figure = panels_of(width, 290, 1, stacked=True)
    scale = 255 if {level.ball for level in done.levels} == {"linf"} else 1
    for number, line in enumerate(lines):
        x = [0.0, *(scale * eps for eps, _ in line.points)]
        rates = [done.accuracy, *(found for _, found in line.points)]
        shares = [100 * found.share for found in rates]
        color, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        axes.plot(x, shares, color=color, linewidth=1.8, marker=marker, markersize=4.5)
        axes.fill_between(
            x, [100 * r.low for r in rates], [100 * r.high for r in rates], color=color, alpha=0.12, linewidth=0
        )
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlim(0, None)
    axes.set_title("right under attack, %", loc="left", color=INK, fontsize=11, pad=8)
    axes.set_xlabel("eps x 255" if scale == 255 else "eps", color=FAINT, fontsize=10.5)
    return figure


def _spoken(lines: Sequence[Line]) -> str:
    parts = [
        f"{line.name}: " + ", ".join(f"{100 * found.share:.0f} % at {eps:.3g}" for eps, found in line.points)
        for line in lines
    ]
    return "Robust accuracy by strength. " + ". ".join(parts)


def _strongest(levels: Sequence[Level]) -> list[Level]:
    """Of each attack its largest strength, if it fooled anything."""
    found: dict[str, Level] = {}
    for level in levels:
        if level.attack not in found or level.eps > found[level.attack].eps:
            found[level.attack] = level
    return list(found.values())


def _shown(level: Level, classes: Sequence[str]) -> Shown:
    kept = examples(level)
    pairs = [(255 * kept[name]).round().byte().numpy() for name in ("before", "after")]
    items = []
    for before, after, answer in zip(*pairs, kept["answers"].tolist(), strict=True):
        images = (before, after, pictures.amplified(before, after))
        first, second, third = (pictures.png(pictures.reduced(np.asarray(image), SIDE)) for image in images)
        items.append((first, second, third, classes[answer] if answer < len(classes) else str(answer)))
    return Shown(f"{level.attack}, {strength(level.ball, level.eps)}", items)
