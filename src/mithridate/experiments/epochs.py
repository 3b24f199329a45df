"""Clean test accuracy from epoch to epoch, as plots: stopping early helps a victim whose data are made useless."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from mithridate.experiments import words
from mithridate.experiments.plots import FAINT, INK, LINES, NARROW, WIDE, panels_of, svg

if TYPE_CHECKING:
    from mithridate.experiments.table import Row


class Course(NamedTuple):
    """Mean accuracy of the models of one row."""

    name: str
    color: str
    """CSS class of its colour."""
    accuracies: tuple[float, ...]
    """After each epoch, in [0, 1]."""


class Picture(NamedTuple):
    """Courses in one plot."""

    courses: list[Course]
    pictures: list[str]
    """A wide SVG and one for phones."""


def pictures(rows: Sequence[Row], name: str) -> list[Picture]:
    """As many plots as it takes, clean training first in each; nothing where epochs were not watched.

    Args:
        rows: Of a table.
        name: Begins the ids in the SVGs.
    """
    found = [(row, course) for row in rows if (course := _course(row))]
    clean = [(row, course) for row, course in found if row.attack == "no-attack" and row.defense == "none"][:1]
    others = [entry for entry in found if entry not in clean]
    others.sort(key=lambda entry: entry[1][-1])
    step = len(LINES) - len(clean)
    return [
        _picture([*clean, *others[start : start + step]], rows, f"{name}-{start}")
        for start in range(0, len(others), step)
    ]


def _course(row: Row) -> tuple[float, ...]:
    """Mean over models, as far as all were trained."""
    lines = [line for result in row.cell.results for line in result["outcome"].get("epochs") or ()]
    return tuple(fmean(values) for values in zip(*lines, strict=False))


def _picture(found: Sequence[tuple[Row, tuple[float, ...]]], rows: Sequence[Row], name: str) -> Picture:
    courses = [Course(_named(row, rows), f"l{number}", course) for number, (row, course) in enumerate(found)]
    spoken = "Clean test accuracy by epoch. " + " ".join(
        f"{course.name}: {100 * max(course.accuracies):.0f} % at best, {100 * course.accuracies[-1]:.0f} % at the end."
        for course in courses
    )
    return Picture(courses, [svg(_figure(courses, width), f"{name}-{width}", spoken) for width in (WIDE, NARROW)])


def _named(row: Row, rows: Sequence[Row]) -> str:
    watched = [other for other in rows if other.goal == row.goal]
    doses = {(other.budget.limit, other.budget.bound) for other in watched if other.attack != "no-attack"}
    dose = str(row.budget) if len(doses) > 1 and row.attack != "no-attack" else ""
    defense = "" if row.defense == "none" else f"with {row.defense}"
    adaptive = "adaptive" if row.adaptive else ""
    return ", ".join(filter(None, (row.attack, defense, adaptive, dose, words.where(row, watched))))


def _figure(courses: Sequence[Course], width: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    (axes,), figure = panels_of(width, 270, 1, stacked=True)
    for number, course in enumerate(courses):
        x = range(1, len(course.accuracies) + 1)
        axes.plot(x, [100 * value for value in course.accuracies], color=LINES[number], linewidth=1.8)
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlim(1, max(2, *(len(course.accuracies) for course in courses)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("clean test accuracy, %", loc="left", color=INK, fontsize=11, pad=8)
    axes.set_xlabel("epoch", color=FAINT, fontsize=10.5)
    return figure
