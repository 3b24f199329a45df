"""A study for other programs: JSON, CSV, parquet, JUnit, SARIF, TensorBoard."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mithridate import __version__
from mithridate.experiments.cautions import Caution, cautions
from mithridate.experiments.cells import Pair
from mithridate.experiments.entries import AnyTable, Entry, entries, kind_of
from mithridate.experiments.gates import Breach, Condition, judge
from mithridate.experiments.junit import to_junit
from mithridate.experiments.leak_cautions import leak_cautions
from mithridate.experiments.leak_report import collect_leaks
from mithridate.experiments.measurement_report import collect_measurements
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.pages import write_bytes
from mithridate.experiments.report import collect
from mithridate.experiments.sarif import to_sarif
from mithridate.experiments.scalars import write_scalars

COLUMNS_SCHEMA = 1
"""Version of the columns of CSV and parquet and of the keys of JSON: raised when one changes its meaning or goes."""
_TEXTS = ("scenario", "access", "data", "model", "surrogate", "attack", "defense", "bound", "warnings", "sharing")
TEXTS = (*_TEXTS, "knowledge", "standing", "measurement", "settings", "measured")
FLAGS = ("adaptive", "control")
COUNTS = ("trials", "victims", "n", "batch", "images", "candidates")
"""Columns of whole numbers; columns in none of these lists hold numbers."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a results folder holds, judged: all that any format is made of."""

    folder: Path
    page: Path
    """The HTML report."""
    kind: str
    """Of the trials: poison, leak or measurement."""
    table: AnyTable
    pairs: list[Pair]
    rows: list[Entry]
    cautions: list[Caution]
    problems: list[str]
    """Trials that failed, did not finish or cannot be read: one line each."""
    command: str | None
    """What to run to repeat the study."""
    conditions: Sequence[Condition]
    breaches: list[Breach]

    @property
    def unfinished(self) -> list[str]:
        """The problems that are trials: what was not measured."""
        return [problem for problem in self.problems if not problem.startswith("study.json")]


def findings(folder: Path, kind: str, conditions: Sequence[Condition] = (), page: Path | None = None) -> Findings:
    """Reads a results folder and judges what is in it.

    Args:
        folder: The results folder.
        kind: Of its trials: poison, leak or measurement.
        conditions: What counts as a failure.
        page: The HTML report; by default `report.html` in the folder.

    Raises:
        ValueError: There are no trials in it.
    """
    made: AnyTable
    if kind == Measurement.kind:
        measured = collect_measurements(folder)
        pairs, problems, study, made = measured.pairs, measured.problems, measured.study, measured.made
        doubts = []
    elif kind == "leak":
        leaks = collect_leaks(folder)
        pairs, problems, study, made = leaks.pairs, leaks.problems, leaks.study, leaks.made
        doubts = leak_cautions(leaks.made.rows)
    else:
        found = collect(folder)
        pairs, problems, study, made = found.pairs, found.problems, found.study, found.table
        doubts = cautions(found.table.rows)
    rows = entries(made)
    return Findings(
        folder=folder,
        page=folder / "report.html" if page is None else page,
        kind=kind_of(made),
        table=made,
        pairs=pairs,
        rows=rows,
        cautions=doubts,
        problems=problems,
        command=study.get("command"),
        conditions=conditions,
        breaches=judge(conditions, rows),
    )


# --- formats ---------------------------------------------------------------------------------------------------------


def to_json(found: Findings) -> str:
    """The table with all its numbers and sentences, cautions, problems, and how the conditions were judged."""
    judged = [
        {
            "condition": condition.text,
            "broken": [
                {"row": breach.entry.name if breach.entry else None, "value": breach.value, "text": breach.text}
                for breach in found.breaches
                if breach.condition is condition
            ],
        }
        for condition in found.conditions
    ]
    content: dict[str, Any] = {"schema": COLUMNS_SCHEMA, "mithridate": __version__, "kind": found.kind}
    content |= {"command": found.command, "conditions": judged, **found.table.to_json()}
    content |= {"cautions": [{"kind": kind.name, "text": text} for text, kind in found.cautions]}
    return json.dumps(content | {"problems": found.problems}, indent=1) + "\n"


def to_csv(found: Findings) -> str:
    """One line per row."""
    return found.table.to_csv()


def to_parquet(found: Findings) -> bytes:
    """One record per row, with typed columns; null = not measured. The version of the columns is in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = found.table.records()
    names = list(records[0]) if records else []
    facts = {"schema": str(COLUMNS_SCHEMA), "version": __version__, "kind": found.kind, "command": found.command or ""}
    schema = pa.schema(
        [pa.field(name, _column_type(name)) for name in names],
        metadata={f"mithridate.{name}": value for name, value in facts.items()},
    )
    columns = {name: [_text(record[name]) for record in records] for name in names}
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), out)
    return out.getvalue()


def _text(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _column_type(name: str) -> Any:
    import pyarrow as pa

    if name in TEXTS:
        return pa.string()
    if name in FLAGS:
        return pa.bool_()
    return pa.int64() if name in COUNTS else pa.float64()


class Format(NamedTuple):
    """How a study is written in one format."""

    ending: str
    """What its file is called, after "report"."""
    made: Callable[[Findings], str | bytes]


FORMATS = {
    "json": Format(".json", to_json),
    "csv": Format(".csv", to_csv),
    "parquet": Format(".parquet", to_parquet),
    "junit": Format(".junit.xml", to_junit),
    "sarif": Format(".sarif", to_sarif),
}
"""Formats of one file each, by their names on the command line."""
PLAIN = ("json", "csv", "parquet")
"""Those that any table has; the others are about attacks."""
TENSORBOARD = "tensorboard"
"""The format that is a folder."""


def is_text(name: str) -> bool:
    """Whether a format can be printed.

    >>> is_text("csv"), is_text("parquet"), is_text("tensorboard")
    (True, False, False)
    """
    return name not in ("parquet", TENSORBOARD)


def place_of(name: str, folder: Path) -> Path:
    """Where a format goes unless told otherwise: beside the report.

    >>> str(place_of("junit", Path("runs/audit")))
    'runs/audit/report.junit.xml'
    """
    return folder / (TENSORBOARD if name == TENSORBOARD else f"report{FORMATS[name].ending}")


def export(found: Findings, name: str, path: Path) -> Path:
    """Writes one format, whole or not at all.

    Args:
        found: A study.
        name: json, csv, parquet, junit, sarif or tensorboard.
        path: The file, or for TensorBoard the folder.

    Raises:
        ValueError: The folder for TensorBoard holds other things, or the format is about attacks and there are none.
        MissingExtra: TensorBoard is not installed.
    """
    _check_has_attacks(found, name)
    if name == TENSORBOARD:
        return write_scalars(found, path)
    return write_bytes(content_of(found, name), path)


def content_of(found: Findings, name: str) -> bytes:
    """The content of a format of one file; text in UTF-8, where what a file name may hold and text may not is "?"."""
    _check_has_attacks(found, name)
    made = FORMATS[name].made(found)
    return made.encode(errors="replace") if isinstance(made, str) else made


def _check_has_attacks(found: Findings, name: str) -> None:
    if found.kind == Measurement.kind and name not in PLAIN:
        raise ValueError(
            f"{name} says which attacks succeed, and {found.folder} holds measurements; write them as "
            f"{' or '.join(PLAIN)}"
        )
