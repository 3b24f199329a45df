"""What invert does."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mithridate.core.engines import Map, described, slots
from mithridate.core.schema import name_of, parse
from mithridate.core.sources import source
from mithridate.core.spelling import split
from mithridate.core.training import Recipe
from mithridate.experiments import invert as inverting
from mithridate.experiments.gates import Condition
from mithridate.experiments.invert import each_cell_once, invert_leak, one_step, plan_invert, run_invert
from mithridate.experiments.leak_report import write_leak_report
from mithridate.experiments.leak_table import LeakTable, leak_table, print_leak_table
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.presets import preset
from mithridate.experiments.store import DataSets, Store
from mithridate.experiments.study import Pair, check_folder, identify
from mithridate.inversion.attack import Inversion
from mithridate.inversion.client import LeakDefense
from mithridate.inversion.leak import Leak
from mithridate.verbs.gates import check_gates, gate, read_gates
from mithridate.verbs.terminal import Show, say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.leaks import InvertOptions
    from mithridate.cli.runs import StudyOptions, TrialOptions

    Running = InvertOptions | StudyOptions | TrialOptions

PROBE = 5
"""Steps of a search that a plan times."""


def invert(options: InvertOptions, command: str) -> int:
    """Does what `mithridate invert` says."""
    gates = read_gates(options.fail_if, LeakTrial.kind)
    workers = start_torch(options.device, options.workers, options.gpus_per_trial)
    attacks = _attacks(options)
    if options.leak is not None:
        return _one_leak(options, attacks, workers, command)
    data = source(options.data, per_class=options.per_class, size=options.size)
    trials = plan_invert(
        data,
        recipes(options),
        batches=inverting.BATCHES if options.batch is None else options.batch,
        attacks=attacks,
        defenses=inverting.DEFENSES if options.defenses is None else [_stack(text) for text in options.defenses],
        adaptive=options.adaptive,
        client=inverting.usual_client(
            knows_labels=not options.unknown_labels, batch_statistics=options.batch_statistics
        ),
        distinct=options.distinct,
        cases=inverting.CASES if options.cases is None else options.cases,
        seed=options.seed,
    )
    check_gates(gates, trials)
    folder = options.out or inverting.FOLDER
    if options.plan:
        return plan_leaks(trials, folder, workers, options.device)
    return run_leaks(trials, folder, workers, options, command, gates)


def recipes(options: InvertOptions) -> list[Recipe]:
    """Returns the models that are measured: as trained as asked, beside it untrained where asked.

    Raises:
        ValueError: A checkpoint together with --untrained.
    """
    begin = preset("digits" if options.data == "digits" else "general").recipe()
    recipe = replace(begin, model=options.model, start_from=options.start_from)
    if options.start_from is not None:
        if options.untrained:
            raise ValueError("--untrained measures random weights and --start-from given ones; choose one")
        return [replace(recipe, epochs=options.epochs or 0)]
    trained = recipe if options.epochs is None else replace(recipe, epochs=options.epochs)
    untrained = [replace(recipe, epochs=0)] if options.untrained and trained.epochs else []
    return [*untrained, trained]


def _attacks(options: InvertOptions) -> Sequence[Inversion]:
    return inverting.ATTACKS if options.attacks is None else [parse(Inversion, text) for text in options.attacks]


def _stack(text: str) -> tuple[LeakDefense, ...]:
    """Defences that are applied together: a+b:setting=1."""
    return tuple(parse(LeakDefense, name) for name in split(text, "+"))


def _one_leak(options: InvertOptions, attacks: Sequence[Inversion], workers: Map, command: str) -> int:
    if len(attacks) != 1:
        raise ValueError(f"--leak is inverted by one attack, but {len(attacks)} are named; choose one")
    assert options.leak is not None
    measured = ("batch", "cases", "defenses", "epochs", "start_from", "size", "per_class")
    idle = [f"--{name.replace('_', '-')}" for name in measured if getattr(options, name) is not None]
    idle += ["--fail-if"] * bool(options.fail_if)
    if idle:
        raise ValueError(f"{idle[0]} is about simulated clients, but --leak comes from a real one; leave it out")
    folder = options.out or Path("runs/invert-leak")
    leak = Leak.load(options.leak, options.model).to(options.device)
    found = invert_leak(leak, attacks[0], out=folder, seed=options.seed, workers=workers)
    facts = {"folder": str(folder), "labels": found.labels.tolist(), "distance": found.value, "notes": found.notes}
    if options.json:
        say(json.dumps(facts))
        return 0
    plural = "s" * (leak.count > 1)
    say(f"{leak.count} image{plural} by {name_of(attacks[0])}, labels {', '.join(map(str, found.labels.tolist()))}")
    say(f"distance of what they would have shared from what was shared: {found.value:.3g} (0: the same)")
    say(f"images: {folder / 'all.png'}")
    say(f"again:  {command}")
    return 0


# --- what study, trial and report do with leaks ----------------------------------------------------------------------


def run_leaks(
    trials: Sequence[LeakTrial],
    folder: Path,
    workers: Map,
    options: Running,
    command: str,
    gates: Sequence[Condition] = (),
) -> int:
    """Inverts leaks, prints their table and judges it."""
    done = run_invert(trials, folder, workers=workers, device=options.device, command=command)
    print_leaks(done.table, as_json=options.json)
    say(f"report: {done.report}", aside=options.json)
    say(f"again:  {command}", aside=options.json)
    return gate(gates, done.table)


def report_leaks(pairs: Sequence[Pair], folder: Path, out: Path | None, *, show: Show) -> Path:
    """Writes the report of a folder of inverted leaks, shows their table and returns where the page is."""
    path = write_leak_report(folder, out)
    if show != "nothing":
        print_leaks(leak_table(pairs), as_json=show == "json")
    return path


# --- from results to text --------------------------------------------------------------------------------------------


def print_leaks(table: LeakTable, *, as_json: bool) -> None:
    """Prints a table on standard output; wide enough for all columns where that is no terminal."""
    if as_json:
        say(json.dumps(table.to_json(), indent=1))
        return
    console = Console(highlight=False)
    print_leak_table(table, console if console.is_terminal else Console(highlight=False, width=160))


def plan_leaks(trials: Sequence[LeakTrial], folder: Path, workers: Map, device: str) -> int:
    """Says what would run and for about how long, after a short search in every cell."""
    store = Store(check_folder(folder))
    left = {name: trial for name, trial in identify(trials, store, device).items() if not store.finished(name)}
    seconds: dict[LeakTrial, float] = {}

    def time_one(trial: LeakTrial, data: DataSets) -> None:
        steps = getattr(trial.attack, "steps", 1)
        begin = time.perf_counter()
        one_step(trial, data, steps=1)
        middle = time.perf_counter()
        one_step(trial, data, steps=1 + PROBE)
        each = (time.perf_counter() - middle - (middle - begin)) / PROBE
        effort = getattr(trial.attack, "restarts", 1) * getattr(trial.attack, "evaluations", 1)
        seconds[replace(trial, seed=0)] = middle - begin + max(0.0, each) * steps * effort

    each_cell_once(left.values(), time_one, device)
    total = sum(seconds[replace(trial, seed=0)] for trial in left.values())
    fits = sum(bool(recipe.epochs) for recipe in {trial.recipe for trial in trials})
    cells = len({replace(trial, seed=0) for trial in trials})
    say(f"{len(trials)} inversions in {cells} cell{'s' * (cells != 1)}; {len(trials) - len(left)} are finished")
    say(f"{fits} model{'s' * (fits != 1)} to train, then about {_duration(total / slots(workers))} of inversion")
    say(f"on {described(workers)} ({device}), into {folder}")
    return 0


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"
