"""One line per piece of work, from the rows of all benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.measure import Ratio, Report, Row, Setup, best_of, row_of


@dataclass(frozen=True, kw_only=True)
class Line:
    """One case: mithridate beside the straightforward version and the best way found."""

    work: str
    unit: str
    mithridate: float | None
    straightforward: float | None
    faster: Ratio | None
    """How many times as fast as the straightforward version, round by round."""
    best: str
    """Name of the best way found, or what became of it."""
    of_best: Ratio | None
    """Speed as a share of that way's, round by round; above one where mithridate is faster."""
    ceiling_share: float | None
    """Share of the speed of a large matrix product."""
    rounds: int
    tried: Sequence[str]
    """All ways tried, besides mithridate and the straightforward version."""
    note: str = ""


def lines_of(reports: Sequence[Report]) -> list[Line]:
    """One line for each case that has a row of mithridate."""
    lines = []
    for report in reports:
        cases = dict.fromkeys(row.case for row in report.rows)
        found = [_line([row for row in report.rows if row.case == case]) for case in cases]
        lines += [line for line in found if line is not None]
    return lines


def _line(rows: Sequence[Row]) -> Line | None:
    ours = next((row for row in rows if row.role == "mithridate"), None)
    if ours is None:
        return None
    plain, best, failed = row_of(rows, "straightforward"), best_of(rows), not ours.by_round
    return Line(
        work=ours.case,
        unit=ours.unit,
        mithridate=ours.value,
        straightforward=None if plain is None else plain.value,
        faster=None if plain is None or failed else Ratio.of(plain.by_round, ours.by_round),
        best="" if best is None else best.arm,
        of_best=None if best is None or failed else Ratio.of(best.by_round, ours.by_round),
        ceiling_share=ours.ceiling_share,
        rounds=ours.rounds,
        tried=[row.arm for row in rows if row.role == "variant"],
        note=ours.note if ours.value is None else "",
    )


def table_of(lines: Sequence[Line], title: str) -> Table:
    """The lines as they are printed."""
    table = Table(title=title, title_justify="left")
    left = ("work", "unit", "best way found")
    numbers = ("mithridate", "straightforward", "times faster"), ("share of it", "share of ceiling", "n")
    for heading in (*left[:2], *numbers[0], left[2], *numbers[1]):
        table.add_column(heading, justify="left" if heading in left else "right")
    for line in lines:
        table.add_row(
            line.work,
            line.unit,
            _number(line.mithridate) if not line.note else line.note,
            _number(line.straightforward),
            _ratio(line.faster),
            line.best or "-",
            _ratio(line.of_best),
            "-" if line.ceiling_share is None else f"{line.ceiling_share:.0%}",
            str(line.rounds),
        )
    return table


def write_table(reports: Sequence[Report], folder: Path, setup: Setup, environment: dict[str, object]) -> Path:
    """Write ``table-<device>.json``: hardware, versions, all lines and all claims."""
    path = folder / f"table-{setup.device.partition(':')[0]}.json"
    content = {
        "environment": environment,
        "setup": asdict(setup),
        "benchmarks": [report.name for report in reports],
        "lines": [asdict(line) for line in lines_of(reports)],
        "claims": [asdict(claim) for report in reports for claim in report.claims],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
