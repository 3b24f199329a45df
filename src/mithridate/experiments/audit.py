"""Audit: attacks, their controls and defences against one training pipeline, planned, rehearsed, run and reported."""

from __future__ import annotations

import builtins
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.models import last_linear
from mithridate.core.progress import quiet
from mithridate.core.sources import Arrays, DataSource
from mithridate.core.training import Recipe
from mithridate.experiments.loader import write_loader
from mithridate.experiments.plan import Untrained, few
from mithridate.experiments.presets import Panel, general_audit, home_scenario, scenario, usual_threat
from mithridate.experiments.report import write_report
from mithridate.experiments.store import DataSets, Store
from mithridate.experiments.study import Map, Pair, check_folder, load_results, run_study
from mithridate.experiments.table import Table, table
from mithridate.experiments.trial import Trial, crafted, hold_out, pretrained, surrogate_of, wrap
from mithridate.experiments.workers import processes
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Task, ThreatModel
from mithridate.poisoning.triggers import PatchTrigger

FOLDER = Path("runs/audit")
"""Where results go unless told otherwise."""
TRIALS = 20
"""Cases per cell: shows a true success of 37 % or more in 4 of 5 studies."""

Stack = Defense | Sequence[Defense]
"""One defence, or several that are applied in that order."""


@dataclass(frozen=True, eq=False)
class Audit:
    """A finished audit: print it, or look into `table`."""

    table: Table
    """One row per cell, with intervals, comparisons and sentences."""
    report: Path
    """The HTML report."""
    folder: Path
    """All raw results; the same audit into the same folder resumes."""

    def __str__(self) -> str:
        return f"{self.table}\nreport: {self.report}"


def audit(
    recipe: Recipe,
    train: ImageData | DataSource,
    test: ImageData | None = None,
    *,
    attacks: Sequence[Attack] | None = None,
    defenses: Sequence[Stack] | None = None,
    scenarios: Sequence[str] | None = None,
    eps: float | Sequence[float] | None = None,
    budget: float | Sequence[float] | None = None,
    trials: int = TRIALS,
    victims: int = 1,
    clean_victims: int = 8,
    seed: int = 0,
    out: str | Path = FOLDER,
    workers: int = 1,
    device: str = "cpu",
    keep_models: bool = False,
    command: str | None = None,
) -> Audit:
    """Poisons a training pipeline, with and without defences, beside the controls; writes a report.

    Args:
        recipe: How your models are trained.
        train: Training images, or a data source that brings test images too.
        test: Test images.
        attacks: Each at the dose of its paper; None: all there are.
        defenses: Each alone (a sequence inside is applied together); None: one of each kind there is, `()`: none.
        scenarios: "from-scratch", "transfer"; None: for each attack the one its paper is about.
        eps: Largest change of a pixel in [0, 1] in place of the attacks' own; several are several doses.
        budget: Fraction of the training set in place of the attacks' own; several are several doses.
        trials: Cases per cell, the same ones in every cell.
        victims: Models trained on each poison.
        clean_victims: Models trained on clean data, shared by all cases.
        seed: First seed of the cases; trial i uses seed + i.
        out: Results folder. The same call resumes.
        workers: Worker processes of one thread each; 1: this process, with the threads it has.
        device: Where models run.
        keep_models: Keep the poisoned victims, and write a loader for them.
        command: What to run to repeat this, for the report.

    Raises:
        ValueError: Something in settings or data that no trial could run with; found before any training.
        TypeError: Attack, goal, learner and defences do not fit together.
        StudyErrors: Some trials failed; the others are finished.
    """
    panels = panels_of(
        recipe, attacks=attacks, defenses=defenses, scenarios=scenarios, trials=trials, clean_victims=clean_victims
    )
    panels = dosed([replace(panel, victims=victims) for panel in panels], eps=eps, budget=budget)
    study = plan_audit(panels, _source(train, test), seed=seed)
    return run_audit(study, out, workers=workers, device=device, keep_models=keep_models, command=command)


def _source(train: ImageData | DataSource, test: ImageData | None) -> DataSource:
    if isinstance(train, ImageData):
        if test is None:
            raise ValueError("test images are missing; pass audit(recipe, train, test)")
        return Arrays(train, test)
    if test is not None:
        raise ValueError("a data source brings its own test images; pass audit(recipe, source)")
    return train


# --- what belongs to an audit ----------------------------------------------------------------------------------------


def panels_of(
    recipe: Recipe,
    *,
    attacks: Sequence[Attack] | None = None,
    defenses: Sequence[Stack] | None = None,
    scenarios: Sequence[str] | None = None,
    trials: int = TRIALS,
    clean_victims: int = 8,
) -> list[Panel]:
    """Returns the panels of attacks x scenarios, each with every defence.

    >>> from mithridate.experiments.presets import digits_recipe
    >>> from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
    >>> [panel.scenario.pretrain is None for panel in panels_of(digits_recipe(), attacks=[PoisonFrogs()])]
    [False]
    """
    usual = general_audit(recipe)
    attacks = [panel.attack for panel in usual] if attacks is None else attacks
    stacks = usual[0].defenses if defenses is None else tuple(_stack(defense) for defense in defenses)
    return [
        Panel(
            attack=attack,
            threat=usual_threat(attack),
            scenario=scenario(name, recipe),
            defenses=stacks,
            trials=trials,
            clean_victims=clean_victims,
        )
        for attack in attacks
        for name in scenarios or (home_scenario(attack),)
    ]


def _stack(defense: Stack) -> tuple[Defense, ...]:
    return (defense,) if isinstance(defense, Defense) else tuple(defense)


def dosed(
    panels: Iterable[Panel],
    *,
    eps: float | Sequence[float] | None = None,
    budget: float | Sequence[float] | None = None,
) -> list[Panel]:
    """Returns every panel at every dose asked for; None keeps the panel's own.

    An eps means an Linf ball; attacks that mark images with a trigger have no eps and keep their own ball.
    """
    return list(
        dict.fromkeys(
            replace(panel, threat=_at_dose(panel.threat, one_eps, one_budget))
            for panel in panels
            for one_eps, one_budget in itertools.product(_several(eps), _several(budget))
        )
    )


def _several(value: float | Sequence[float] | None) -> Sequence[float | None]:
    return [value] if value is None or isinstance(value, (int, float)) else value


def _at_dose(threat: ThreatModel, eps: float | None, budget: float | None) -> ThreatModel:
    if eps is not None and not threat.goal.triggered:
        threat = replace(threat, ball=Linf(eps=eps))
    return threat if budget is None else replace(threat, budget=budget)


def plan_audit(panels: Iterable[Panel], data: DataSource, *, seed: int = 0) -> list[Trial]:
    """Returns the trials of some panels and of the controls beside them, each once.

    Every panel gets `random-noise` under its own threat model, undefended; and `no-attack`, which needs no budget and
    so is shared by all panels with the same aim, with every defence (its accuracy is what the defence costs).
    """
    panels = list(panels)
    clean: dict[Any, tuple[Panel, int, int]] = {}
    trials: list[Trial] = []
    for panel in panels:
        stacks = dict.fromkeys(((), *panel.defenses))
        trials += [trial for stack in stacks for trial in _cell(panel, data, seed, panel.attack, stack)]
        trials += _cell(panel, data, seed, RandomNoise(trigger=_trigger(panel)), ())
        for stack in stacks:
            key = (panel.scenario, panel.threat.goal, panel.threat.targets, panel.threat.case, _trigger(panel), stack)
            first, cases, victims = clean.get(key, (panel, 0, 0))
            clean[key] = (first, max(cases, panel.trials), max(victims, panel.clean_victims))
    for key, (panel, cases, victims) in clean.items():
        shared = replace(panel, trials=cases, victims=victims)
        trials += _cell(shared, data, seed, NoAttack(trigger=_trigger(panel)), key[-1])
    return list(dict.fromkeys(trials))


def _trigger(panel: Panel) -> Any:
    """The trigger that controls put on test images: the attack's own."""
    return getattr(panel.attack, "trigger", PatchTrigger())


def _cell(panel: Panel, data: DataSource, seed: int, attack: Attack, defenses: tuple[Defense, ...]) -> list[Trial]:
    return [
        Trial(
            data=data,
            threat=panel.threat,
            attack=attack,
            learner=panel.scenario.learner,
            pretrain=panel.scenario.pretrain,
            defenses=defenses,
            victims=panel.victims,
            seed=seed + index,
            surrogate_seed=seed,
        )
        for index in range(panel.trials)
    ]


# --- running it ------------------------------------------------------------------------------------------------------


def run_audit(
    trials: Sequence[Trial],
    out: str | Path = FOLDER,
    *,
    workers: int = 1,
    device: str = "cpu",
    keep_models: bool = False,
    command: str | None = None,
    check: bool = True,
) -> Audit:
    """Rehearses the trials, runs those that are not finished, writes the report.

    Args:
        trials: Of `plan_audit`, or any others.
        out: Results folder.
        workers: Worker processes of one thread each; 1: this process, with the threads it has.
        device: Where models run.
        keep_models: Keep the poisoned victims, and write a loader for them.
        command: What to run to repeat this, for the report.
        check: Rehearse first.

    Raises:
        ValueError: Something in settings or data that no trial could run with; found before any training.
        TypeError: Attack, goal, learner and defences do not fit together.
        StudyErrors: Some trials failed; the others are finished, and the report is written.
    """
    folder = Path(out)
    if check:
        rehearse(trials, device)
    work: Map = builtins.map if workers == 1 else processes(workers)
    try:
        pairs = run_study(trials, folder, map=work, device=device, keep_models=keep_models, command=command)
    except RuntimeError:  # of failed trials: what is finished is worth a report
        if (folder / "trials").is_dir() and load_results(folder):
            write_report(folder)
        raise
    if keep_models:
        write_loader(folder, pairs)
    return finished_audit(folder, pairs)


def finished_audit(folder: Path, pairs: Sequence[Pair]) -> Audit:
    """Writes the report of a folder and returns it with the table of some of its results."""
    return Audit(table(pairs), write_report(folder), folder)


def rehearse(trials: Iterable[Trial], device: str = "cpu") -> None:
    """Finds what no trial could run with, in seconds and before any training.

    Draws every case, wraps every learner in its defences, builds every model and lets every attack take one step
    against a hardly trained one.

    Raises:
        ValueError: The data, the budget or the model do not have what a trial needs.
        TypeError: Attack, goal, learner and defences do not fit together.
        ThreatModelViolation: An attack oversteps its threat model.
    """
    loaded: dict[DataSource, DataSets] = {}
    seen: set[Any] = set()

    def once(*key: Any, do: Callable[[], Any]) -> None:
        if key not in seen:
            do()
            seen.add(key)

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rehearsal trains too briefly not to be warned about
        for trial in trials:
            if trial.data not in loaded:
                loaded[trial.data] = DataSets(*trial.data.load(device), "")
            place = (trial.data, trial.pretrain, trial.learner)
            data = loaded[trial.data]
            once("case", trial.threat, trial.seed, *place, do=lambda t=trial, d=data: _task(t, d))
            once("model", trial.defenses, *place, do=lambda t=trial, d=data: _build(t, d))
        for trial in trials:
            key = ("craft", trial.attack, trial.threat, trial.data, trial.pretrain, trial.learner)
            once(*key, do=lambda t=trial: _one_step(t, loaded[t.data]))


def _task(trial: Trial, data: DataSets) -> Any:
    train = data.train if trial.pretrain is None else _half(data.train)
    return trial.threat.draw(train, data.test, seed=trial.seed)


def _half(train: ImageData) -> ImageData:
    """Half of the rows: as many as transfer leaves to poison."""
    return train.select(train.ids[::2])


def _build(trial: Trial, data: DataSets) -> None:
    wrap(trial.learner, trial.defenses, None)
    if trial.learner.recipe is None:
        return
    module = trial.learner.recipe.module(data.train, seed=0)
    if trial.pretrain is not None or any(defense.kind == "filter" for defense in trial.defenses):
        last_linear(module)


def _one_step(trial: Trial, data: DataSets) -> None:
    if trial.learner.recipe is None:
        return
    task = _task(trial, data)
    brief: Any = trial.attack
    for setting in ("steps", "restarts"):
        if hasattr(brief, setting):
            brief = replace(brief, **{setting: 1})
    surrogate = Untrained(trial.learner.recipe, few(task.train, 1))
    task.check(brief.craft(task, surrogate, trial.seed))


def craft(trial: Trial, folder: str | Path, device: str = "cpu") -> tuple[Path, Task, Poison]:
    """Crafts the poison of a trial without training any victim; the next call finds its surrogates there.

    Returns:
        Folder of the poison inside the results folder, the case, the poison.
    """
    store = Store(check_folder(Path(folder)))
    data = store.data(trial.data, device)
    train, _ = hold_out(data.train, trial.trusted, trial.surrogate_seed)
    setting = pretrained(trial, train, store)
    task = trial.threat.draw(setting.train, data.test, seed=trial.seed)
    work = trial.poison_work(data.fingerprint)
    name = store.identity(work)
    surrogate = surrogate_of(trial, setting.surrogate, store)
    poison = store.poison(name, lambda: crafted(trial, task, surrogate, work))
    task.check(poison)
    return store.poison_folder(name), task, poison
