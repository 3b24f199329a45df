"""Rehearsal: what no trial of a study could run with is found in seconds, before any training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from mithridate.core.data import ImageData
from mithridate.core.data_parallel import batch_norms, divisible
from mithridate.core.devices import chosen_devices
from mithridate.core.learners import TrainFunction
from mithridate.core.models import last_linear
from mithridate.core.progress import quiet
from mithridate.core.training import Learner
from mithridate.experiments.own_code import Rehearsed
from mithridate.experiments.plan import Untrained, few
from mithridate.experiments.store import DataSets
from mithridate.experiments.trial import Trial, hold_out, wrap


def rehearse(trials: Iterable[Trial], device: str = "cpu") -> None:
    """Finds what no trial could run with, in seconds and before any training.

    Draws every case, wraps every learner in its defences, builds every model and lets every attack take one step
    against a hardly trained one. Training code of the user's own is called once, with few images.

    Raises:
        ValueError: The data, the budget or the model do not have what a trial needs; or the user's own code failed.
        TypeError: Attack, goal, learner and defences do not fit together.
        ThreatModelViolation: An attack oversteps its threat model.
    """
    loaded: dict[Any, DataSets] = {}
    called: dict[Any, Rehearsed] = {}
    seen: set[Any] = set()

    def own(learner: TrainFunction, trial: Trial) -> Rehearsed:
        key = (learner, trial.data)
        if key not in called:
            called[key] = Rehearsed(learner, loaded[trial.data].train)
        return called[key]

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
            if isinstance(trial.learner, TrainFunction):
                own(trial.learner, trial)
            key = ("craft", trial.attack, trial.threat, trial.data, trial.pretrain, trial.learner, trial.surrogate)
            once(*key, do=lambda t=trial: _one_step(t, loaded[t.data], own))


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
        defended = wrap(learner, trial.defenses, None).recipe
        if chosen_devices() is not None and defended is not None:
            divisible(defended.gradient)
        for recipe in getattr(learner, "recipes", (learner.recipe,)):
            if recipe is not None:
                module = recipe.module(data.train, seed=0)
                if chosen_devices() is not None:
                    batch_norms(module.train(recipe.trainable == "all"))
                if trial.pretrain is not None or any(defense.kind == "filter" for defense in trial.defenses):
                    last_linear(module)


def _one_step(trial: Trial, data: DataSets, own: Callable[[TrainFunction, Trial], Learner]) -> None:
    surrogate = trial.surrogate or trial.learner
    task = _task(trial, data)
    if isinstance(surrogate, TrainFunction):
        known = own(surrogate, trial)
    elif surrogate.recipe is not None:
        known = Untrained(surrogate.recipe, few(task.train, 1))
    else:
        return
    brief: Any = trial.attack
    for setting in ("steps", "restarts"):
        if hasattr(brief, setting):
            brief = replace(brief, **{setting: 1})
    task.check(brief.craft(task, known, trial.seed))
