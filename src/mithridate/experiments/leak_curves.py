"""How leakage changes: PSNR and identification against the batch and against the strength of a defence, as plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from mithridate.experiments import leak_words as words
from mithridate.experiments.cells import canonical, is_number
from mithridate.experiments.labels import setting
from mithridate.experiments.plots import FAINT, INK, LINES, NARROW, PAPER, WIDE, panels_of, svg
from mithridate.experiments.statistics import percent
from mithridate.experiments.words import counted, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mithridate.experiments.leak_table import LeakRow, Likeness

MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚")
"""The same as characters, for the legend."""
WEAKER_UPWARDS = ("keep", "bits")
"""Settings of which a larger number is less of a defence; no defence stands to the right of them."""
LOG_RANGE = 8
"""Numbers that span more than this are set on a logarithmic axis."""


class Place(NamedTuple):
    """Where a row stands on the horizontal axis."""

    x: float
    tick: str
    spoken: str


@dataclass(frozen=True)
class Line:
    """Points joined by a line."""

    name: str
    points: list[tuple[Place, LeakRow]]
    bare: tuple[Place, LeakRow] | None = None
    """The undefended point beside them, joined by dots."""


class Key(NamedTuple):
    """One entry of a legend."""

    style: str
    sign: str
    name: str


class Curve(NamedTuple):
    """One plot: a wide SVG and one for phones."""

    title: str
    pictures: list[str]
    legend: list[Key]
    caption: str


def batch_curves(rows: Sequence[LeakRow]) -> list[Curve]:
    """Leakage against the batch size, one line per defence; for attacks that were run with two sizes or more."""
    made = []
    for scene in words.scenes(rows):
        if len({row.batch for row in scene.rows}) < 2:
            continue
        groups: dict[str, list[tuple[Place, LeakRow]]] = {}
        for row in sorted(scene.rows, key=lambda r: (r.batch, r.defense != "none")):
            place = Place(math.log2(row.batch), str(row.batch), words.batches(row.batch))
            groups.setdefault(words.protection(row), []).append((place, row))
        lines = [Line(name, points) for name, points in groups.items()]
        for part, chosen in enumerate(pieces := _pieces(lines)):
            title = scene.attack + _ending(scene.place) + (f" ({part + 1} of {len(pieces)})" if len(pieces) > 1 else "")
            made.append(_curve(title, chosen, "images in a batch", f"batches-{len(made)}"))
    return made


def _pieces(lines: list[Line]) -> list[list[Line]]:
    """As many lines as one plot can hold; what is first (no defence) is in every one."""
    if len(lines) <= len(LINES):
        return [lines]
    step, rest = len(LINES) - 1, lines[1:]
    return [[lines[0], *rest[i : i + step]] for i in range(0, len(rest), step)]


def strength_curves(rows: Sequence[LeakRow]) -> list[Curve]:
    """Leakage against the strength of each defence that was run with two strengths or more, one line per batch size."""
    made = []
    for scene in words.scenes(rows):
        for title, key, found in _strengths(scene.rows):
            lines = _strength_lines(found, key, [row for row in scene.rows if row.defense == "none"])
            for chosen in [lines[i : i + len(LINES)] for i in range(0, len(lines), len(LINES))]:
                head = f"{scene.attack} against {title}{_ending(scene.place)}"
                made.append(_curve(head, chosen, _axis_name(key), f"strength-{len(made)}"))
    return made


def _ending(place: str) -> str:
    return f", {place}" if place else ""


def _axis_name(key: str) -> str:
    return f"{key} of the defence"


def _strengths(rows: Sequence[LeakRow]) -> list[tuple[str, str, list[LeakRow]]]:
    """(defence, the number in which its cells differ, these cells)."""
    groups: dict[tuple[str, str, str], list[LeakRow]] = {}
    for row in rows:
        if len(row.cell.defenses) == 1:
            defense = row.cell.defenses[0]
            for key in (key for key, value in defense.items() if is_number(value)):
                rest = {name: value for name, value in defense.items() if name not in (key, "type")}
                groups.setdefault((defense["type"], key, canonical(rest)), []).append(row)
    found = {name: cells for name, cells in groups.items() if len({_number(row, name[1]) for row in cells}) > 1}
    several = [kind for kind, _, _ in found]
    return [
        (f"{kind} ({_fixed(cells[0], key)})" if several.count(kind) > 1 else kind, key, cells)
        for (kind, key, _), cells in found.items()
    ]


def _fixed(row: LeakRow, key: str) -> str:
    defense = row.cell.defenses[0]
    return ", ".join(f"{name}={setting(value)}" for name, value in defense.items() if name not in (key, "type"))


def _number(row: LeakRow, key: str) -> float:
    return float(row.cell.defenses[0][key])


def _strength_lines(rows: Sequence[LeakRow], key: str, bare: Sequence[LeakRow]) -> list[Line]:
    values = [_number(row, key) for row in rows]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    at = [math.log10(value) if logarithmic else value for value in values]
    gap = 0.22 * (max(at) - min(at))
    aside = max(at) + gap if key in WEAKER_UPWARDS else min(at) - gap
    groups: dict[tuple[int, bool], list[tuple[Place, LeakRow]]] = {}
    for x, value, row in sorted(zip(at, values, rows, strict=True), key=lambda item: item[0]):
        epsilon = "" if row.epsilon is None else f"\nε {words.epsilon(row.epsilon)}"
        spoken = f"{key} {value:g}" + ("" if row.epsilon is None else f" (epsilon {words.epsilon(row.epsilon)})")
        groups.setdefault((row.batch, row.adaptive), []).append((Place(x, f"{value:g}{epsilon}", spoken), row))
    without = {row.batch: (Place(aside, "none", "no defence"), row) for row in bare}
    return [
        Line(words.batches(size) + ", attacker adapting" * adaptive, points, without.get(size))
        for (size, adaptive), points in sorted(groups.items())
    ]


# --- drawing ---------------------------------------------------------------------------------------------------------


def _curve(title: str, lines: list[Line], axis: str, name: str) -> Curve:
    spoken = f"{title}. {_read_out(lines)}"
    drawn = [svg(_figure(lines, axis, width), f"{name}-{width}", spoken) for width in (WIDE, NARROW)]
    legend = [Key(f"l{number}", SIGNS[number], line.name) for number, line in enumerate(lines)]
    dots = " Dotted: to the same attack without a defence." if any(line.bare for line in lines) else ""
    return Curve(title, drawn, legend, f"With 95 % intervals over cases. Dashed: the mean image.{dots}")


def _figure(lines: list[Line], axis: str, width: int) -> Any:
    stacked = width == NARROW
    panels, figure = panels_of(width, 500 if stacked else 290, 2, stacked=stacked)
    candidates = min(row.candidates for line in lines for _, row in _points(line))
    titles = ("PSNR in dB", f"picked out among {candidates:,}, %")
    for panel, title, identified in zip(panels, titles, (False, True), strict=True):
        _panel(panel, lines, identified=identified)
        panel.set_title(title, loc="left", color=INK, fontsize=11, pad=8)
        panel.set_xlabel(axis, color=FAINT, fontsize=10.5)
    return figure


def _points(line: Line) -> list[tuple[Place, LeakRow]]:
    """All points of a line, from left to right."""
    return sorted([*line.points, *filter(None, [line.bare])], key=lambda point: point[0].x)


def _panel(axes: Axes, lines: list[Line], *, identified: bool) -> None:
    places = {place.x: place for line in lines for place, _ in _points(line)}
    across = (max(places) - min(places)) or 1.0
    for number, line in enumerate(lines):
        shift = 0.018 * across * (number - (len(lines) - 1) / 2)
        style: dict[str, Any] = {"color": LINES[number], "linewidth": 1.6}
        ends = [(place.x + shift, *_value(row.found, identified=identified)) for place, row in line.points]
        axes.plot([x for x, *_ in ends], [value for _, value, *_ in ends], **style)
        if line.bare:
            beside = (line.bare[0].x + shift, *_value(line.bare[1].found, identified=identified))
            near = min(ends, key=lambda end: abs(end[0] - beside[0]))
            axes.plot([beside[0], near[0]], [beside[1], near[1]], linestyle=":", **style)
            ends.append(beside)
        for x, value, low, high in ends:
            axes.plot([x, x], [low, high], color=LINES[number], linewidth=1.2, alpha=0.65)
            marked = {"color": LINES[number], "markeredgecolor": PAPER, "markersize": 7, "clip_on": False, "zorder": 3}
            axes.plot([x], [value], MARKERS[number], **marked)
    controls = [
        (x, fmean(_value(like, identified=identified)[0] for like in _controls(lines, x))) for x in sorted(places)
    ]
    axes.plot(*zip(*controls, strict=True), linestyle="--", color=FAINT, linewidth=1.3, zorder=1)
    axes.set_xlim(min(places) - 0.09 * across, max(places) + 0.09 * across)
    axes.set_xticks(list(places), [place.tick for place in places.values()])
    if identified:
        axes.set_ylim(-3, 103)
        axes.set_yticks([0, 25, 50, 75, 100])


def _controls(lines: list[Line], x: float) -> list[Likeness]:
    return [row.control for line in lines for place, row in _points(line) if place.x == x]


def _value(like: Likeness, *, identified: bool) -> tuple[float, float, float]:
    """(value, lower end, upper end); both ends are the value where there is no interval."""
    if identified:
        return 100 * like.identified.share, 100 * like.identified.low, 100 * like.identified.high
    value, low, high = like.psnr.value, like.psnr.low, like.psnr.high
    return value, value if low is None else low, value if high is None else high


def _read_out(lines: Sequence[Line]) -> str:
    """The plot in words, for those who cannot see it."""
    parts = []
    for line in lines:
        said = [f"{place.spoken} {_spoken(row)}" for place, row in _points(line)]
        parts.append(f"{line.name}: {'; '.join(said)}")
    controls = [row.control for line in lines for _, row in _points(line)]
    near = fmean(like.psnr.value for like in controls)
    hits, count = (sum(getattr(like.identified, name) for like in controls) for name in ("successes", "n"))
    return ". ".join(parts) + f". Mean image: {near:.1f} dB, {percent(hits / count)} % picked out."


def _spoken(row: LeakRow) -> str:
    hits = row.found.identified
    return f"{words.decibels(row.found.psnr)}, {counted(hits)} picked out ({span(hits)} %)"
