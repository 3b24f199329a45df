"""Rows of a table as columns: of a spreadsheet, of JSON, and of the printed table."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mithridate.experiments import cells as grid, words
from mithridate.experiments.cells import Cell
from mithridate.experiments.compare import UNDEFENDED, Versus
from mithridate.experiments.statistics import Mean, Rate, percent

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

_NAMES = ("scenario", "access", "data", "model", "surrogate", "attack", "defense", "adaptive", "control")
RIGHT = ("of", "control", "radius")
"""Columns that are set to the right."""
WHOLE = ("attack", "defence", "success (95 %)", "static (95 %)", "adaptive (95 %)")
"""Columns whose words are never broken."""


def share(row: Row | None) -> float | None:
    """Success of a row, if there is one."""
    return None if row is None else row.success.share


def plain(value: Any) -> Any:
    """JSON values; a number that is not one (NaN) becomes null, and a row's cell its settings and seeds."""
    if isinstance(value, Cell):
        return {"settings": value.setting, "seeds": list(value.trials)}
    if isinstance(value, Rate):
        return {"share": plain(value.share)} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Versus):
        shown = {"shown": value.shown, "worse_shown": value.worse_shown, "margin_shown": value.margin_shown}
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)} | shown
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record(row: Row, adaptive: Row | None) -> dict[str, Any]:
    """One line of a spreadsheet, None where nothing was measured; `adaptive` is the row of the attacker who knows the
    defence."""
    line: dict[str, Any] = {name: getattr(row, name) for name in _NAMES}
    line |= {"budget": row.budget.limit, "poisons": row.budget.count, "bound": row.budget.bound}
    line |= {"trials": row.trials, "victims": row.victims, "successes": row.success.successes, "n": row.success.n}
    line |= {"success": row.success.share, "low": row.success.low, "high": row.success.high, "n_eff": row.success.n_eff}
    line |= {"eligible_success": row.eligible.share if row.eligible else None, "margin": row.margin.value}
    line |= {"adaptive_success": share(adaptive)}
    for name in (*grid.CONTROLS, UNDEFENDED):
        other = row.versus.get(name)
        line[f"{name} success"] = other.success.share if other else None
        line[f"{name} p"] = other.paired.p if other else None
        line[f"{name} p (Holm)"] = other.holm if other else None
        line[f"{name} margin difference"] = other.margin.difference.value if other else None
        line[f"{name} margin p"] = other.margin.p if other else None
        line[f"{name} margin p (Holm)"] = other.margin_holm if other else None
    line |= {"accuracy": row.accuracy.value, "highest": row.highest.value}
    line |= {"true_label": row.right.value, "cost": row.cost.value if row.cost else None}
    line |= {"removed": row.detection.removed if row.detection else None}
    for name in ("recall", "precision", "false_alarms"):
        found = getattr(row.detection, name, None)
        line |= {name: None if found is None else found.value if isinstance(found, Mean) else found.share}
        line |= {f"{name} {end}": getattr(found, end, None) for end in ("low", "high")}
    line |= {"median_radius": row.certificate.median if row.certificate else None}
    line |= {"seconds": sum(row.seconds.values()), "warnings": "; ".join(row.warnings)}
    return plain(line)


def spreadsheet(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV, the names of the columns first; empty = not measured.

    >>> print(spreadsheet([{"attack": "badnets", "success": 0.5, "cost": None}]), end="")
    attack,success,cost
    badnets,0.5,
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


# --- printed ---------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One printed line: a row, and the row of the attacker who knows the defence."""

    row: Row
    adaptive: Row | None
    """The row itself where the static attacker was not run."""

    @property
    def static(self) -> Row | None:
        """The row of the attacker who does not know the defence."""
        return None if self.row is self.adaptive else self.row


def side_by_side(rows: Iterable[Row], adaptive_of: Callable[[Row], Row | None]) -> list[Line]:
    """Lines of a scene: a static row and its adaptive one share a line."""
    twins = [(row, adaptive_of(row)) for row in rows]
    paired = {id(twin) for _, twin in twins}
    return [Line(row, row if row.adaptive else twin) for row, twin in twins if id(row) not in paired]


def entries(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The columns that have anything in them, by their heading; Holm's where it differs from single p-values."""
    both = any(line.adaptive for line in lines)
    columns = _START | (_STATIC_AND_ADAPTIVE if both else _SUCCESS) | _END
    made = {name: [entry(line) for line in lines] for name, entry in columns.items()}
    if made["Holm"] == made["p"]:
        del made["Holm"]
    return {name: column for name, column in made.items() if any(column)}


def _success(row: Row | None) -> str:
    return f"{percent(row.success.share)} % ({words.span(row.success)})" if row and row.success.n else ""


def _counted(row: Row | None) -> str:
    return words.counted(row.success) if row else ""


def _control(row: Row) -> str:
    return words.counted(row.against.success) if row.against else ""


def _p(row: Row | None) -> str:
    return words.bare_p(row.against.paired.p) if row and row.against else ""


def _holm(row: Row | None) -> str:
    return words.bare_p(row.against.holm) if row and row.against else ""


def _p_and_holm(row: Row | None) -> str:
    return _p(row) if _p(row) == _holm(row) else f"{_p(row)} (Holm {_holm(row)})"


def _accuracy(row: Row) -> str:
    loss = f" ({words.signed(-100 * row.cost.value)})" if row.cost else ""
    return f"{100 * row.accuracy.value:.1f} %{loss}" if row.accuracy.n else ""


def _highest(row: Row) -> str:
    return f"{100 * row.highest.value:.1f} %" if row.highest.n else ""


def _right(row: Row) -> str:
    return f"{100 * row.right.value:.1f} %" if row.right.n else ""


def _margin(row: Row) -> str:
    if not row.against or not row.against.exact:
        return ""
    margin, adjusted = row.against.margin, row.against.margin_holm
    tested = words.p_text(margin.p) if margin.p == adjusted else f"Holm {words.bare_p(adjusted)}"
    return f"{words.signed(margin.difference.value, 2)} ({tested})"


def _found(row: Row) -> str:
    found = row.detection
    return f"{percent(found.recall.share)} %" if found and found.recall and not row.control else ""


def _alarms(row: Row) -> str:
    return f"{100 * row.detection.false_alarms.value:.1f} %" if row.detection else ""


Columns = dict[str, Callable[[Line], str]]
_START: Columns = {
    "attack": lambda line: line.row.attack + (" (adaptive)" if line.row.adaptive else ""),
    "defence": lambda line: line.row.defense.replace(" + ", " +\n"),
}
_SUCCESS: Columns = {
    "success (95 %)": lambda line: _success(line.row),
    "of": lambda line: _counted(line.row),
    "control": lambda line: _control(line.row),
    "p": lambda line: _p(line.row),
    "Holm": lambda line: _holm(line.row),
}
_STATIC_AND_ADAPTIVE: Columns = {
    "static (95 %)": lambda line: _success(line.static),
    "of": lambda line: _counted(line.static or line.adaptive),
    "adaptive (95 %)": lambda line: _success(line.adaptive),
    "control": lambda line: _control(line.row),
    "p": lambda line: _p(line.static),
    "Holm": lambda line: _holm(line.static),
    "adaptive p": lambda line: _p_and_holm(line.adaptive),
}
_END: Columns = {
    "margin vs control": lambda line: _margin(line.row),
    "accuracy (points)": lambda line: _accuracy(line.row),
    "best epoch": lambda line: _highest(line.row),
    "true label": lambda line: _right(line.row),
    "found": lambda line: _found(line.row),
    "false alarms": lambda line: _alarms(line.row),
    "radius": lambda line: f"{line.row.certificate.median:g}" if line.row.certificate else "",
}
