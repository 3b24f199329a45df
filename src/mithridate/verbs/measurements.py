"""What study, trial and report do with measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mithridate.core.engines import Map, described
from mithridate.experiments.gates import Condition
from mithridate.experiments.measurement_report import write_measurement_report
from mithridate.experiments.measurement_table import MeasurementTable, measurement_table, print_measurements
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.store import Store
from mithridate.experiments.study import Pair, StudyErrors, check_folder, identify, run_study
from mithridate.verbs.terminal import Show, say

if TYPE_CHECKING:
    from mithridate.cli.runs import StudyOptions, TrialOptions


def run_measurements(
    trials: Sequence[Measurement],
    folder: Path,
    workers: Map,
    options: StudyOptions | TrialOptions,
    command: str,
    gates: Sequence[Condition] = (),
) -> int:
    """Measures, writes the report and prints the tables. There are no gates: their names are those of attacks."""
    assert not gates
    try:
        pairs = run_study(trials, folder, map=workers, device=options.device, command=command)
    except StudyErrors as error:
        if error.finished:  # what is finished is worth a report
            write_measurement_report(folder)
        raise
    page = write_measurement_report(folder)
    _print(measurement_table(pairs), as_json=options.json)
    say(f"report: {page}", aside=options.json)
    say(f"again:  {command}", aside=options.json)
    return 0


def plan_measurements(trials: Sequence[Measurement], folder: Path, workers: Map, device: str) -> int:
    """Says what would run. How long is not known: nothing of a measurement can be tried in small."""
    store = Store(check_folder(folder))
    named = identify(trials, store, device)
    left = sum(not store.finished(name) for name in named)
    say(f"{len(named)} measurements, of which {len(named) - left} are finished; {left} would run")
    say(f"on {described(workers)} ({device}), into {folder}")
    return 0


def report_measurements(pairs: Sequence[Pair], folder: Path, out: Path | None, *, show: Show) -> Path:
    """Writes the report of a folder of measurements, shows their tables and returns where the page is."""
    path = write_measurement_report(folder, out)
    if show != "nothing":
        _print(measurement_table(pairs), as_json=show == "json")
    return path


def _print(table: MeasurementTable, *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(table.to_json(), indent=1))
        return
    console = Console(highlight=False)
    print_measurements(table, console if console.is_terminal else Console(highlight=False, width=200))
