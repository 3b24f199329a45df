"""Audit: attacks, their controls and defences against one training pipeline, planned, rehearsed, run and reported."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mithridate.core.data import ImageData
from mithridate.core.engines import Workers, engine, is_local
from mithridate.core.members import members_by
from mithridate.core.ray_workers import held
from mithridate.core.sources import Arrays, DataSource
from mithridate.core.training import Learner
from mithridate.experiments.loader import write_loader
from mithridate.experiments.panels import Panel, dosed, plan_audit, stepped
from mithridate.experiments.presets import general_audit
from mithridate.experiments.rehearsal import rehearse
from mithridate.experiments.report import write_report
from mithridate.experiments.scenarios import home_scenario, scenario, usual_threat
from mithridate.experiments.sequential import run_until_decided
from mithridate.experiments.store import Store
from mithridate.experiments.study import Pair, check_folder, load_results, run_study
from mithridate.experiments.table import Table, table
from mithridate.experiments.trial import Trial, crafted, hold_out, pretrained, surrogate_of
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Task

FOLDER = Path("runs/audit")
"""Where results go unless told otherwise."""

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
    recipe: Learner,
    train: ImageData | DataSource,
    test: ImageData | None = None,
    *,
    attacks: Sequence[Attack] | None = None,
    defenses: Sequence[Stack] | None = None,
    scenarios: Sequence[str] | None = None,
    surrogate: Learner | None = None,
    adaptive: bool = False,
    trusted: int = 0,
    eps: float | Sequence[float] | None = None,
    budget: float | Sequence[float] | None = None,
    trials: int | None = None,
    victims: int | None = None,
    clean_victims: int | None = None,
    seed: int = 0,
    out: str | Path = FOLDER,
    workers: Workers = 1,
    device: str = "cpu",
    keep_models: bool = False,
    until: Literal["decided"] | None = None,
    command: str | None = None,
) -> Audit:
    """Poisons a training pipeline, with and without defences, beside the controls; writes a report.

    Args:
        recipe: How your models are trained: a recipe, several `Mixed`, or `mi.learner` of your own training function.
        train: Training images, or a data source that brings test images too.
        test: Test images.
        attacks: Each at the dose of its paper; None: a backdoor, feature collision and gradient matching.
        defenses: Each alone (a sequence inside is applied together); None: one of each kind there is, `()`: none.
        scenarios: "from-scratch", "fine-tuning", "transfer", each also with "-grey-box" or "-black-box" after it; None:
            for each attack the one its paper is about.
        surrogate: What the attacker trains in place of your learner.
        adaptive: Measure every defence against an attacker who knows it as well.
        trusted: Clean rows held out for defences that need them.
        eps: Largest change of a pixel in [0, 1] in place of the attacks' own; several are several doses.
        budget: Fraction of the training set in place of the attacks' own; several are several doses.
        trials: Cases per cell, the same ones in every cell. None: 20; for an attack on accuracy one.
        victims: Models trained on each poison. None: 1; for an attack on accuracy 3.
        clean_victims: Models trained on clean data, shared by all cases. None: 8; for an attack on accuracy 3.
        seed: First seed of the cases; trial i uses seed + i.
        out: Results folder. The same call resumes.
        workers: Worker processes of one thread each, 1: this process, with the threads it has; "ray" and what else
            `--workers` takes; or something with the signature of ``map``, such as `ray_workers`.
        device: Where models run.
        keep_models: Keep the poisoned victims, and write a loader for them.
        until: "decided": stop each comparison once it is shown, or hardly will be; `trials` is then the most.
        command: What to run to repeat this, for the report.

    Raises:
        ValueError: Something in settings or data that no trial could run with; found before any training.
        TypeError: Attack, goal, learner and defences do not fit together.
        StudyErrors: Some trials failed; the others are finished.

    >>> import tempfile
    >>> from mithridate import BadNets, Digits, Recipe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recipe, data = Recipe(model="mlp", epochs=1), Digits(train=100)
    ...     done = audit(
    ...         recipe, data, attacks=[BadNets()], defenses=[], trials=1, clean_victims=1, out=folder
    ...     )
    >>> [row.attack for row in done.table.rows]
    ['badnets', 'random-noise', 'no-attack']
    """
    panels = panels_of(
        recipe,
        attacks=attacks,
        defenses=defenses,
        scenarios=scenarios,
        surrogate=surrogate,
        adaptive=adaptive,
        trusted=trusted,
    )
    panels = dosed([panel.sized(trials, victims, clean_victims) for panel in panels], eps=eps, budget=budget)
    study = plan_audit(panels, source_of(train, test), seed=seed)
    return run_audit(study, out, workers=workers, device=device, keep_models=keep_models, until=until, command=command)


def dose(
    recipe: Learner,
    train: ImageData | DataSource,
    test: ImageData | None = None,
    *,
    attacks: Sequence[Attack],
    defenses: Sequence[Stack] = (),
    of: Literal["budget", "eps"] = "budget",
    levels: int = 5,
    factor: float = 2.0,
    eps: float | None = None,
    budget: float | None = None,
    trials: int | None = None,
    victims: int | None = None,
    clean_victims: int | None = None,
    seed: int = 0,
    out: str | Path = "runs/dose",
    workers: Workers = 1,
    device: str = "cpu",
) -> Audit:
    """Runs attacks at geometric doses, on the same cases each time, and fits the dose that moves half of them.

    ``table.doses()`` of what comes back has the fits, with and without each defence; the report shows the curves.

    Args:
        recipe: How your models are trained, as for `audit`.
        train: Training images, or a data source that brings test images too.
        test: Test images.
        attacks: Their own dose is the largest, unless eps or budget says otherwise.
        defenses: Each alone (a sequence inside is applied together).
        of: What a dose is: poisoned images (budget) or the largest change of a pixel (eps).
        levels: Doses.
        factor: Each dose by the one before it.
        eps: Largest change of a pixel in [0, 1], in place of the attacks' own.
        budget: Fraction of the training set, in place of the attacks' own.
        trials: Cases, the same at every dose. None: 20.
        victims: Models trained on each poison.
        clean_victims: Models trained on clean data.
        seed: First seed of the cases.
        out: Results folder. The same call resumes.
        workers: As for `audit`.
        device: Where models run.

    Raises:
        ValueError: Doses that are no ladder, or an attack that has no eps.
        StudyErrors: Some trials failed; the others are finished.

    >>> import tempfile
    >>> from mithridate import BadNets, Digits, Recipe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recipe, data = Recipe(model="mlp", epochs=1), Digits(train=100)
    ...     done = dose(
    ...         recipe,
    ...         data,
    ...         attacks=[BadNets()],
    ...         budget=0.08,
    ...         levels=3,
    ...         trials=1,
    ...         clean_victims=1,
    ...         out=folder,
    ...     )
    >>> done.table.doses()[0].doses
    (2.0, 4.0, 8.0)
    """
    panels = [
        panel.sized(trials, victims, clean_victims) for panel in panels_of(recipe, attacks=attacks, defenses=defenses)
    ]
    steps = [step for panel in dosed(panels, eps=eps, budget=budget) for step in stepped(panel, of, levels, factor)]
    study = plan_audit(steps, source_of(train, test), seed=seed)
    return run_audit(study, out, workers=workers, device=device)


def source_of(train: ImageData | DataSource, test: ImageData | None) -> DataSource:
    """Returns a data source of images in memory, or the one that was given.

    Raises:
        ValueError: Test images are missing, or there are two sets of them.
    """
    if isinstance(train, ImageData):
        if test is None:
            raise ValueError("test images are missing; pass both, train and test")
        return Arrays(train, test)
    if test is not None:
        raise ValueError("a data source brings its own test images; pass the source alone")
    return train


# --- what belongs to an audit ----------------------------------------------------------------------------------------


def panels_of(
    recipe: Learner,
    *,
    attacks: Sequence[Attack] | None = None,
    defenses: Sequence[Stack] | None = None,
    scenarios: Sequence[str] | None = None,
    surrogate: Learner | None = None,
    **settings: Any,
) -> list[Panel]:
    """Returns the panels of attacks x scenarios, each with every defence and the same other settings.

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
            scenario=scenario(name, recipe, surrogate),
            defenses=stacks,
            **settings,
        )
        for attack in attacks
        for name in scenarios or (home_scenario(attack, recipe),)
    ]


def _stack(defense: Stack) -> tuple[Defense, ...]:
    return (defense,) if isinstance(defense, Defense) else tuple(defense)


# --- running it ------------------------------------------------------------------------------------------------------


def run_audit(
    trials: Sequence[Trial],
    out: str | Path = FOLDER,
    *,
    workers: Workers = 1,
    device: str = "cpu",
    keep_models: bool = False,
    until: Literal["decided"] | None = None,
    command: str | None = None,
    check: bool = True,
) -> Audit:
    """Rehearses the trials, runs those that are not finished, writes the report.

    Args:
        trials: Of `plan_audit`, or any others.
        out: Results folder.
        workers: As for `audit`. They share out the trials; of a single trial, the models of each fit.
        device: Where models run.
        keep_models: Keep the poisoned victims, and write a loader for them.
        until: "decided": as `run_until_decided` does it.
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
    work = engine(workers, device=device)
    alone = len(trials) == 1 and not is_local(work)
    work_off = run_study if until is None else run_until_decided
    settings = {"device": device, "keep_models": keep_models, "command": command}
    try:
        with members_by(work) if alone else held():
            pairs = work_off(trials, folder, map=builtins.map if alone else work, **settings)
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
