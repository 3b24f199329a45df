"""Verdicts: what a stored row says about a statement of a paper, and the lines of the table that says so."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from mithridate.experiments.leak_table import LeakRow, leak_table
from mithridate.experiments.statistics import Rate
from mithridate.experiments.study import load_results
from mithridate.experiments.table import Row, table

RESULTS = Path(__file__).parent / "results"
Verdict = Literal["agrees", "differs", "undecided"]


class Line(NamedTuple):
    """One statement of a paper."""

    paper: str
    published: str
    setting: str
    ours: str
    verdict: Verdict
    why: str
    """What differs, or limits the comparison; nothing where nothing has to be said."""
    command: str


# --- verdicts --------------------------------------------------------------------------------------------------------


def works(row: Row) -> Verdict:
    """Whether an attack is shown to do more than its strictest control."""
    against = row.against
    if against is None:
        return "undecided"
    return "agrees" if against.shown else "differs" if against.worse_shown else "undecided"


def helps(row: Row) -> Verdict:
    """Whether a defence is shown to lower success."""
    other = row.versus.get("undefended")
    if other is None:
        return "undecided"
    return "agrees" if other.shown else "differs" if other.worse_shown else "undecided"


def holds(rate: Rate, published: float) -> Verdict:
    """Whether an interval holds a published rate.

    >>> holds(Rate(3, 20, 20.0, 0.05, 0.36), 0.22), holds(Rate(3, 20, 20.0, 0.05, 0.36), 0.5)
    ('agrees', 'differs')
    """
    return "agrees" if rate.low <= published <= rate.high else "differs"


# --- reading ---------------------------------------------------------------------------------------------------------


@cache
def rows(name: str) -> tuple[Row, ...]:
    """The attacked rows of a stored study; none where it is not stored."""
    folder = RESULTS / name
    return tuple(row for row in table(load_results(folder)).rows if not row.control) if folder.is_dir() else ()


@cache
def leaks(name: str) -> tuple[LeakRow, ...]:
    """The rows of a stored study of gradients; none where it is not stored."""
    folder = RESULTS / name
    return tuple(leak_table(load_results(folder)).rows) if folder.is_dir() else ()


def find(name: str, attack: str, defense: str = "none", bound: str = "", place: str = "", **more: object) -> Row | None:
    """The one row of a stored study that fits; None where the study is not stored.

    Raises:
        LookupError: It is stored, and not exactly one row fits.
    """
    fits = [
        row
        for row in rows(name)
        if row.attack.startswith(attack)
        and row.defense.startswith(defense)
        and bound in row.budget.bound
        and place in f"{row.scenario} {row.access}"
        and row.adaptive == more.get("adaptive", False)
        and row.budget.count >= float(str(more.get("least", 0)))
        and row.model.startswith(str(more.get("model", "")))
    ]
    if rows(name) and len(fits) != 1:
        raise LookupError(f"{len(fits)} rows of {name} fit {attack}, {defense}, {bound}, {place}, {more}")
    return fits[0] if fits else None


def control_of(row: Row) -> str:
    """What the control did, in words."""
    against = row.against
    if against is None:
        return ""
    share = 100 * against.success.share
    return f"; {against.name} {share:.0f} %, adjusted p = {against.holm:.2g}"


def attack_line(
    paper: str, published: str, setting: str, study: str, row: Row | None, why: str = "", rate: float | None = None
) -> Iterator[Line]:
    """A statement that an attack works, or how often."""
    if row is not None:
        verdict = works(row)
        if rate is not None and (verdict == "agrees" or holds(row.success, rate) == "differs"):
            verdict = holds(row.success, rate)  # a rate that chance has, too, confirms nothing
        yield Line(paper, published, setting, f"{row.success}{control_of(row)}", verdict, why, study)


def defense_line(
    paper: str, published: str, setting: str, study: str, row: Row | None, why: str = "", rate: float | None = None
) -> Iterator[Line]:
    """A statement that a defence lowers success, or to what."""
    if row is not None:
        other = row.versus["undefended"]
        cost = "" if row.cost is None else f"; costs {100 * row.cost.value:.1f} points of accuracy"
        ours = f"{row.success}, undefended {100 * other.success.share:.0f} %, adjusted p = {other.holm:.2g}{cost}"
        verdict = helps(row) if rate is None else holds(row.success, rate)
        yield Line(paper, published, setting, ours, verdict, why, study)
