"""Rehearsal: what no trial of a study could run with is found in seconds, before any training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from mithridate.core.data import ImageData
from mithridate.core.models import last_linear
from mithridate.core.progress import quiet
from mithridate.experiments.plan import Untrained, few
from mithridate.experiments.store import DataSets
from mithridate.experiments.trial import Trial, hold_out, wrap


def rehearse(trials: Iterable[Trial], device: str = "cpu") -> None:
    """Finds what no trial could run with, in seconds and before any training.

    Draws every case, wraps every learner in its defences, builds every model and lets every attack take one step
    against a hardly trained one.

    Raises:
        ValueError: The data, the budget or the model do not have what a trial needs.
        TypeError: Attack, goal, learner and defences do not fit together.
        ThreatModelViolation: An attack oversteps its threat model.
    """
    loaded: dict[Any, DataSets] = {}
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
            place = (trial.data, trial.pretrain, trial.trusted, trial.learner)
            data = loaded[trial.data]
            once("case", trial.threat, trial.seed, *place, do=lambda t=trial, d=data: _task(t, d))
            once("model", trial.defenses, *place, do=lambda t=trial, d=data: _build(t, d))
        for trial in trials:
            key = ("craft", trial.attack, trial.threat, trial.data, trial.pretrain, trial.learner, trial.surrogate)
            once(*key, do=lambda t=trial: _one_step(t, loaded[t.data]))


def _task(trial: Trial, data: DataSets) -> Any:
    train, _ = hold_out(data.train, trial.trusted, trial.surrogate_seed)
    train = train if trial.pretrain is None else _half(train)
    return trial.threat.draw(train, data.test, seed=trial.seed)


def _half(train: ImageData) -> ImageData:
    """Half of the rows: as many as `pretrain` leaves to poison."""
    return train.select(train.ids[::2])


def _build(trial: Trial, data: DataSets) -> None:
    for learner in (trial.learner, trial.surrogate):
        if learner is None:
            continue
        wrap(learner, trial.defenses, None)
        for recipe in getattr(learner, "recipes", (learner.recipe,)):
            if recipe is not None:
                module = recipe.module(data.train, seed=0)
                if trial.pretrain is not None or any(defense.kind == "filter" for defense in trial.defenses):
                    last_linear(module)


def _one_step(trial: Trial, data: DataSets) -> None:
    recipe = (trial.surrogate or trial.learner).recipe
    if recipe is None:
        return
    task = _task(trial, data)
    brief: Any = trial.attack
    for setting in ("steps", "restarts"):
        if hasattr(brief, setting):
            brief = replace(brief, **{setting: 1})
    task.check(brief.craft(task, Untrained(recipe, few(task.train, 1)), trial.seed))
