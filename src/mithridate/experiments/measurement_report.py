"""The page of a study of measurements: a chart and a table per kind of measurement. It opens offline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mithridate.experiments import pages
from mithridate.experiments.cells import Pair
from mithridate.experiments.measurement_table import (
    Found,
    MeasurementGroup,
    MeasurementTable,
    measurement_table,
    number,
    words,
)
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.plots import ATTACK, FAINT, NARROW, WIDE, axes_of, label, svg
from mithridate.experiments.reading import Gathered, gather

LINE = 22
"""Height of a row of a chart in CSS pixels."""
CHARTED = 40
"""Rows up to which a chart is drawn; of more, the table says it better."""


class Chart(NamedTuple):
    """One measured thing, a dot and an interval per row."""

    name: str
    pictures: list[str]
    """The same for a screen and for a phone."""


def write_measurement_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a study of measurements, finished or not.

    Args:
        folder: Results folder of the study.
        out: The HTML file; by default `report.html` in the folder.

    Returns:
        Where the report is.

    Raises:
        ValueError: `folder` is not a results folder.
    """
    folder = Path(folder)
    path = folder / "report.html" if out is None else Path(out)
    return pages.write(render(collect_measurements(folder)), path)


def collect_measurements(folder: Path) -> Gathered[MeasurementTable]:
    """Reads all measurements of a results folder.

    Raises:
        ValueError: There are no trials in it.
    """
    return gather(folder, measurement_table, _stranger)


def _stranger(pair: Pair) -> str | None:
    return None if pair[1].get("kind") == Measurement.kind else "a trial that is no measurement: it has its own report"


def render(collected: Gathered[MeasurementTable]) -> str:
    """The page as text."""
    groups = collected.made.groups
    warnings = Counter(text for _, result in collected.pairs for text in result.get("warnings") or ())
    return (
        pages.environment()
        .get_template("measurements.html.j2")
        .render(
            title=", ".join(short(group.name) for group in groups) or "No measurement",
            groups=[(number_, group, charts(group, number_)) for number_, group in enumerate(groups)],
            short=short,
            words=words,
            warnings=warnings,
            problems=Counter(collected.problems),
            methods=[(short(group.name), group.common) for group in groups],
            machine=pages.machine(collected.pairs),
            command=collected.study.get("command"),
            finished=len(collected.pairs),
        )
    )


def short(name: str) -> str:
    """A measurement's name without its module.

    >>> short("studies.witchcraft:Duel")
    'Duel'
    """
    return name.rpartition(":")[2]


def charts(group: MeasurementGroup, place: int) -> list[Chart]:
    """One chart for each measured thing that every row has a number of."""
    if not 1 < len(group.rows) <= CHARTED:
        return []
    found = []
    for name in group.columns:
        values = [row.found.get(name) for row in group.rows]
        if any(value is None or not math.isfinite(number(value)["value"]) for value in values):
            continue
        names = [row.name for row in group.rows]
        spoken = f"{name}: " + "; ".join(f"{row}: {words(value)}" for row, value in zip(names, values, strict=True))
        wide, narrow = (
            svg(_figure(names, [value for value in values if value], width), f"m{place}-{name}-{width}", spoken)
            for width in (WIDE, NARROW)
        )
        found.append(Chart(name, [wide, narrow]))
    return found


def _figure(names: Sequence[str], values: Sequence[Found], width: int) -> Any:
    """Dots with intervals, one per row; on a phone names stand above them."""
    narrow = width == NARROW
    line = 2 * LINE if narrow else LINE
    left = 12 if narrow else min(0.55 * width, 16 + 5.6 * max(map(len, names)))
    axes, figure = axes_of(width, line * len(names) + 44, left=left, right=16)
    scale = 100 if all(hasattr(value, "share") for value in values) else 1
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        shown: dict[str, Any] = {key: None if part is None else scale * part for key, part in number(value).items()}
        low, middle, high = (shown[key] for key in ("low", "value", "high"))
        if low is not None and high is not None:
            axes.plot([low, high], [-place, -place], color=ATTACK, linewidth=2.4, alpha=0.45)
        axes.plot([middle], [-place], "o", color=ATTACK, markersize=5)
        text = name if len(name) <= 0.17 * (width if narrow else left) else name[: int(0.17 * left) - 1] + "…"
        label(axes, 0.0, -place + (0.42 if narrow else 0), text, "margin", size=10.5, color=FAINT)
    axes.set_ylim(-len(names) + 0.4, 0.8 if narrow else 0.6)
    if scale == 100:
        axes.set_xlabel("%", color=FAINT, fontsize=10.5)
    return figure
