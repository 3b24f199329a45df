"""What audit and craft do, and what becomes of poisoning trials in other verbs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mithridate.core.devices import on_devices
from mithridate.core.engines import Map, described, slots
from mithridate.core.members import members_by
from mithridate.core.schema import name_of, parse
from mithridate.core.sources import DataSource, source
from mithridate.core.spelling import split
from mithridate.core.training import Learner, Recipe
from mithridate.experiments import audit as audits
from mithridate.experiments.audit import Audit, run_audit
from mithridate.experiments.cells import CONTROLS
from mithridate.experiments.gates import Condition
from mithridate.experiments.loader import FILE
from mithridate.experiments.own_code import fitting
from mithridate.experiments.panels import Panel, dosed, plan_audit
from mithridate.experiments.plan import plan
from mithridate.experiments.power import what_it_takes, what_n_shows
from mithridate.experiments.presets import RECIPES, Preset, preset
from mithridate.experiments.rehearsal import rehearse
from mithridate.experiments.report import write_report
from mithridate.experiments.scenarios import at_home, scenario, usual_threat
from mithridate.experiments.study import Pair
from mithridate.experiments.table import Table, print_table, table
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.threat import FixedCase
from mithridate.verbs import own_code
from mithridate.verbs.gates import check_gates, gate, read_gates
from mithridate.verbs.terminal import Show, say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.pipelines import AuditOptions, CraftOptions
    from mithridate.cli.runs import StudyOptions, TrialOptions

    Running = StudyOptions | TrialOptions

EXAMPLE = 0.25
"""Success rate for which a plan says how many cases would show it."""


# --- verbs -----------------------------------------------------------------------------------------------------------


def audit(options: AuditOptions, command: str) -> int:
    """Does what `mithridate audit` says."""
    panels, data = audit_panels(options)
    return run_panels(panels, data, options, options.out or audits.FOLDER, command)


def run_panels(panels: Sequence[Panel], data: DataSource, options: AuditOptions, folder: Path, command: str) -> int:
    """Runs panels into a folder, or says what would run."""
    gates = read_gates(options.fail_if, Trial.kind)
    workers = start_torch(options.device, options.workers, options.gpus_per_trial, options.devices)
    trials = plan_audit(panels, data, seed=options.seed)
    check_gates(gates, trials)
    if options.plan:
        rehearse(trials, options.device)
        return print_plan(trials, folder, workers, options.device)
    with on_devices(options.devices):
        done = run_audit(
            trials,
            folder,
            workers=workers,
            device=options.device,
            keep_models=options.keep_models,
            until=options.until,
            command=command,
        )
    return print_audit(done, command, as_json=options.json) or gate(gates, done.table)


def craft(options: CraftOptions, command: str) -> int:
    """Does what `mithridate craft` says."""
    workers = start_torch(options.device, options.workers, devices=options.devices)
    begin, recipe, data = pipeline(options)
    panels, learner = begin.panels(recipe), recipe
    names = [options.scenario] if options.scenario else None
    if options.train_fn is not None:
        names = names or [own_code.GREY_BOX]
        learner = own_code.learner_of(options, names)
        panels = fitting(panels, learner)
    panel = _panel(options.attack, panels, learner)
    if options.target is not None:
        panel = replace(panel, threat=replace(panel.threat, case=_case(options)))
    placed = _in_scenarios([panel], names, learner, _theirs(options, recipe))
    panels = dosed(placed, eps=options.eps, budget=options.budget)
    if len(panels) > 1:
        raise ValueError("craft makes one poison, so give one eps and one budget")
    trial = plan_audit(panels, data, seed=options.seed)[0]
    with on_devices(options.devices), members_by(workers):
        rehearse([trial], options.device)
        folder, task, poison = audits.craft(trial, options.out, options.device)
    if options.json:
        say(json.dumps({"folder": str(folder), "case": task.case(), "count": len(poison), "notes": poison.notes}))
        return 0
    notes = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in poison.notes.items())
    say(task.describe())
    say(f"{len(poison)} poisoned image{'s' * (len(poison) > 1)}{f' ({notes})' if notes else ''} in {folder}")
    return 0


# --- what study, trial and report do with poisoning trials -----------------------------------------------------------


def run_poisonings(
    trials: Sequence[Trial],
    folder: Path,
    workers: Map,
    options: Running,
    command: str,
    gates: Sequence[Condition] = (),
) -> int:
    """Runs poisoning trials, prints their table and judges it."""
    done = run_audit(
        trials,
        folder,
        workers=workers,
        device=options.device,
        keep_models=options.keep_models,
        until=getattr(options, "until", None),
        command=command,
    )
    return print_audit(done, command, as_json=options.json) or gate(gates, done.table)


def plan_poisonings(trials: Sequence[Trial], folder: Path, workers: Map, device: str) -> int:
    """Rehearses poisoning trials and says what would run."""
    rehearse(trials, device)
    return print_plan(trials, folder, workers, device)


def report_poisonings(pairs: Sequence[Pair], folder: Path, out: Path | None, *, show: Show) -> Path:
    """Writes the report of a folder of poisoning trials, shows their table and returns where the page is."""
    path = write_report(folder, out)
    if show != "nothing":
        print_results(table(pairs), as_json=show == "json")
    return path


# --- from text to objects --------------------------------------------------------------------------------------------


def audit_panels(options: AuditOptions) -> tuple[list[Panel], DataSource]:
    """Returns what to audit, the preset changed by the other options, and the data.

    An attack that the preset has keeps the preset's dose; another gets the dose of its paper.
    """
    begin, recipe, data = pipeline(options)
    panels, learner, names = begin.panels(recipe), recipe, options.scenarios
    if options.train_fn is not None:
        learner = own_code.learner_of(options, names or [own_code.BLACK_BOX])
        panels = fitting(panels, learner)
    if options.attacks is not None:
        panels = [_panel(text, panels, learner) for text in options.attacks]
    if not panels:
        raise ValueError("no attack to audit; name some after --attacks, or leave it out for the preset's")
    changes: dict[str, Any] = {} if options.trusted is None else {"trusted": options.trusted}
    if options.defenses is not None:
        changes["defenses"] = tuple(_stack(text) for text in options.defenses)
    placed = _in_scenarios(panels, names, learner, _theirs(options, recipe))
    numbers = (options.trials, options.victims, options.clean_victims)
    panels = [replace(panel, **changes, adaptive=options.adaptive).sized(*numbers) for panel in placed]
    return dosed(panels, eps=options.eps, budget=options.budget), data


def pipeline(options: AuditOptions | CraftOptions) -> tuple[Preset, Recipe, DataSource]:
    """Returns the preset, the recipe and the data that the options name."""
    digits = options.data == "digits"
    begin = preset(options.preset or ("digits" if digits else "general"))
    if digits and begin.per_class is not None:
        raise ValueError(
            f"preset {options.preset} is for images on disk; name them, for example --data PATH/TO/cifar10"
        )
    named = {"model": options.model, "epochs": options.epochs, "start_from": options.start_from}
    chosen = RECIPES[options.recipe](begin.recipe())
    recipe = replace(chosen, **{name: value for name, value in named.items() if value is not None})
    per_class = begin.per_class if options.per_class is None else options.per_class
    return begin, recipe, source(options.data, per_class=per_class, size=options.size, cache=options.cache)


def _panel(text: str, known: Sequence[Panel], learner: Learner) -> Panel:
    """The preset's panel of that attack, or a new one beside it, with the settings in the text."""
    attack = parse(Attack, text)
    same = next((panel for panel in known if type(panel.attack) is type(attack)), None)
    if same is None:
        place = at_home(attack, learner)
        stacks = tuple(dict.fromkeys(stack for panel in known for stack in panel.defenses))
        return replace(known[0], attack=attack, threat=usual_threat(attack), scenario=place, defenses=stacks)
    if attack == type(attack)():
        return same
    own = usual_threat(attack)
    return replace(same, attack=attack, threat=replace(own, budget=same.threat.budget, ball=same.threat.ball))


def _theirs(options: AuditOptions | CraftOptions, recipe: Recipe) -> Recipe | None:
    """What the attacker trains where it is not what the victims' owner does."""
    if options.train_fn is not None:
        return replace(recipe, model=options.surrogate or recipe.model)
    return None if options.surrogate is None else replace(recipe, model=options.surrogate, start_from=None)


def _in_scenarios(
    panels: Sequence[Panel], names: Sequence[str] | None, learner: Learner, theirs: Recipe | None
) -> list[Panel]:
    """Every panel in every scenario named (by default its own), with the attacker's own model where one is given."""
    if not names and theirs is None:
        return list(panels)
    return [
        replace(panel, scenario=scenario(name, learner, own_code.known(name, learner, theirs)))
        for panel in panels
        for name in names or (own_code.usual_scenario(panel.attack, learner),)
    ]


def _case(options: CraftOptions) -> FixedCase:
    if options.target is None or options.intended is None:
        raise ValueError("--target needs --intended: the class that the target should get")
    return FixedCase.of(options.target, options.intended, options.true)


def _stack(text: str) -> tuple[Defense, ...]:
    """Defences that are applied together: a+b:setting=1."""
    return tuple(parse(Defense, name) for name in split(text, "+"))


# --- from results to text --------------------------------------------------------------------------------------------


def print_plan(trials: Sequence[Trial], folder: Path, workers: Map, device: str) -> int:
    """Prints what would run and what it could show."""
    say(str(plan(trials, folder, workers=slots(workers), device=device)))
    say(f"on {described(workers)} ({device}), into {folder}")
    attacked = [trial for trial in trials if name_of(trial.attack) not in CONTROLS]
    cells = Counter(replace(trial, seed=0, victims=1) for trial in attacked if not trial.threat.goal.wrong)
    for count in sorted(set(cells.values())):
        say(what_n_shows(count, comparisons=len(cells)))
    if cells:
        say(what_it_takes(EXAMPLE, comparisons=len(cells)))
    models = [trial.victims for trial in attacked if trial.threat.goal.wrong]
    if models:
        say(f"Attacks on accuracy are judged by models, {min(models)} on each side; 2 are the fewest.")
    return 0


def print_audit(done: Audit, command: str, *, as_json: bool) -> int:
    """Prints the table and the sentences of an audit, and where the rest is."""
    print_results(done.table, as_json=as_json)
    say(f"report: {done.report}", aside=as_json)
    if (done.folder / FILE).exists():
        say(f"models: {done.folder / FILE} loads them", aside=as_json)
    say(f"again:  {command}", aside=as_json)
    return 0


def print_results(results: Table, *, as_json: bool) -> None:
    """Prints a table on standard output; wide enough for all columns where that is no terminal."""
    if as_json:
        say(json.dumps(results.to_json(), indent=1))
        return
    console = Console(highlight=False)
    print_table(results, console if console.is_terminal else Console(highlight=False, width=160))
