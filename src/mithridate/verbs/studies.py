"""What study, trial and report do, whatever kind of trials it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mithridate.core.devices import on_devices
from mithridate.experiments.definitions import definition
from mithridate.experiments.exports import TENSORBOARD, content_of, export, findings, is_text, place_of
from mithridate.experiments.files import read_json
from mithridate.experiments.job import Job
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.study import kind_of, load_results, read_trial
from mithridate.experiments.trial import Trial
from mithridate.verbs.gates import check_gates, gate, read_gates
from mithridate.verbs.leaks import plan_leaks, report_leaks, run_leaks
from mithridate.verbs.measurements import plan_measurements, report_measurements, run_measurements
from mithridate.verbs.pipelines import plan_poisonings, report_poisonings, run_poisonings
from mithridate.verbs.terminal import Show, say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.runs import ReportOptions, StudyOptions, TrialOptions


class Kind(NamedTuple):
    """What is done with trials of one kind."""

    run: Callable[..., int]
    plan: Callable[..., int]
    report: Callable[..., Path]


KINDS: dict[str, Kind] = {
    Trial.kind: Kind(run_poisonings, plan_poisonings, report_poisonings),
    LeakTrial.kind: Kind(run_leaks, plan_leaks, report_leaks),
    Measurement.kind: Kind(run_measurements, plan_measurements, report_measurements),
}


def trial(options: TrialOptions, command: str) -> int:
    """Does what `mithridate trial` says."""
    workers = start_torch(options.device, options.workers, options.gpus_per_trial, options.devices)
    stored = read_trial(read_json(options.file))
    with on_devices(options.devices):
        return KINDS[stored.kind].run([stored], options.out, workers, options, command)


def study(options: StudyOptions, command: str) -> int:
    """Does what `mithridate study` says."""
    workers = start_torch(options.device, options.workers, options.gpus_per_trial, options.devices)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}; at least 1 trial is needed")
    trials: list[Job] = definition(options.function)[: options.limit]
    if not trials:
        raise ValueError(f"{options.function} returned no trials")
    folder = options.out or Path("runs") / options.function.rpartition(".")[2].replace(":", "-").replace("_", "-")
    kind = KINDS[kind_of(trials)]
    if options.until and kind is not KINDS[Trial.kind]:
        raise ValueError(f"--until {options.until} compares poisoning trials case by case; leave it out for these")
    gates = read_gates(options.fail_if, kind_of(trials))
    check_gates(gates, trials)
    if options.plan:
        return kind.plan(trials, folder, workers, options.device)
    with on_devices(options.devices):
        return kind.run(trials, folder, workers, options, command, gates)


def report(options: ReportOptions, command: str) -> int:
    """Does what `mithridate report` says."""
    places = places_of(options)
    pairs = load_results(options.folder)
    kinds = {result.get("kind", Trial.kind) for _, result in pairs} or {Trial.kind}
    if len(kinds) > 1:
        raise ValueError(f"{options.folder} holds results of several kinds ({', '.join(sorted(kinds))}); separate them")
    kind = kinds.pop()
    gates = read_gates(options.fail_if, kind)
    show: Show = "nothing" if places.printed else ("json" if options.json else "text")
    page = KINDS[kind].report(pairs, options.folder, places.page, show=show)
    say(f"report: {page}", aside=show != "text")
    if not (options.format or gates):
        return 0
    found = findings(options.folder, kind, gates, page)
    for name, path in places.files.items():
        say(f"{name}: {export(found, name, path)}", aside=show != "text")
    for name in places.printed:
        sys.stdout.write(content_of(found, name).decode())
    return gate(gates, found.table, found.unfinished)


class Places(NamedTuple):
    """Where a report goes."""

    page: Path | None
    """The HTML page; None: its usual place."""
    files: dict[str, Path]
    """By format."""
    printed: tuple[str, ...]
    """The format that goes to standard output instead."""


def places_of(options: ReportOptions) -> Places:
    """Returns where the formats that were asked for go.

    Raises:
        ValueError: They cannot go there.
    """
    names, out = tuple(dict.fromkeys(options.format)), options.out
    if out == Path("-"):
        if len(names) != 1 or not is_text(names[0]) or options.json:
            raise ValueError("--out - prints one format that is text: json, csv, junit or sarif; name it with --format")
        return Places(None, {}, names)
    if len(names) > 1 and out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; {len(names)} formats need a folder (--out)")
        return Places(out / "report.html", {name: place_of(name, out) for name in names}, ())
    if not names or out is None:
        return Places(out, {name: place_of(name, options.folder) for name in names}, ())
    name = names[0]
    return Places(None, {name: place_of(name, out) if name != TENSORBOARD and out.is_dir() else out}, ())
