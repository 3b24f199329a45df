"""What study, trial and report do, whatever kind of trials it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments.files import read_json
from mithridate.experiments.job import Job
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.study import definition, kind_of, load_results, read_trial
from mithridate.experiments.trial import Trial
from mithridate.verbs.leaks import plan_leaks, report_leaks, run_leaks
from mithridate.verbs.pipelines import plan_poisonings, report_poisonings, run_poisonings
from mithridate.verbs.terminal import start_torch

if TYPE_CHECKING:
    from mithridate.cli.runs import ReportOptions, StudyOptions, TrialOptions


class Kind(NamedTuple):
    """What is done with trials of one kind."""

    run: Callable[..., int]
    plan: Callable[..., int]
    report: Callable[..., int]


KINDS: dict[str, Kind] = {
    Trial.kind: Kind(run_poisonings, plan_poisonings, report_poisonings),
    LeakTrial.kind: Kind(run_leaks, plan_leaks, report_leaks),
}


def trial(options: TrialOptions, command: str) -> int:
    """Does what `mithridate trial` says."""
    workers = start_torch(options.device, options.workers)
    stored = read_trial(read_json(options.file))
    return KINDS[stored.kind].run([stored], options.out, workers, options, command)


def study(options: StudyOptions, command: str) -> int:
    """Does what `mithridate study` says."""
    workers = start_torch(options.device, options.workers)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit is {options.limit}; at least 1 trial is needed")
    trials: list[Job] = definition(options.function)[: options.limit]
    if not trials:
        raise ValueError(f"{options.function} returned no trials")
    folder = options.out or Path("runs") / options.function.rpartition(".")[2].replace(":", "-").replace("_", "-")
    kind = KINDS[kind_of(trials)]
    if options.plan:
        return kind.plan(trials, folder, workers, options.device)
    return kind.run(trials, folder, workers, options, command)


def report(options: ReportOptions, command: str) -> int:
    """Does what `mithridate report` says."""
    pairs = load_results(options.folder)
    kinds = {result.get("kind", Trial.kind) for _, result in pairs} or {Trial.kind}
    if len(kinds) > 1:
        raise ValueError(f"{options.folder} holds results of several kinds ({', '.join(sorted(kinds))}); separate them")
    return KINDS[kinds.pop()].report(pairs, options.folder, options.out, as_json=options.json)
