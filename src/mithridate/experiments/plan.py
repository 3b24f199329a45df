"""Plan: what a study would do, what of it is done, and about how long the rest takes, from a short probe."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mithridate.core.classifier import save_weights
from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed, TrainFunction
from mithridate.core.progress import quiet
from mithridate.core.schema import to_json
from mithridate.core.states import Stage, TrainingState
from mithridate.core.training import Fitted, Learner, Recipe, Watch
from mithridate.experiments.own_code import Rehearsed
from mithridate.experiments.store import Store
from mithridate.experiments.study import check_folder, identify
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.defense import Defense

FEATURES, CLEAN, SURROGATES = "features", "clean victims", "surrogates"
PROBED_BATCHES = 8
"""Training steps that are timed."""
LONG_CRAFT = 3
"""Crafting steps that are timed, against one step."""
TIMES = {"filter": 2}
"""How often a kind of defence trains on all rows; a vote trains on many small parts, which takes as long as one fit."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study would do."""

    trials: int
    """Distinct trials."""
    finished: int
    """Of these, already done in the folder."""
    poisons: int
    """Distinct poisons of all trials."""
    poisons_made: int
    """Of these, already in the folder."""
    shared_fits: int
    """Surrogates, clean victims and pretrained features of all trials, each counted once."""
    poisoned_victims: int
    """Victims that no other trial shares."""
    minutes: float | None = None
    """Expected for what is left, an estimate from a short probe; None: not probed, or not possible."""

    def __str__(self) -> str:
        left = f"roughly {_about(self.minutes)} to go" if self.minutes else "no estimate of the time"
        left = "nothing to do" if self.finished == self.trials else left
        return (
            f"{self.trials} trials ({self.finished} finished), {self.poisons} poisons ({self.poisons_made} made), "
            f"{self.shared_fits} shared fits, {self.poisoned_victims} poisoned victims; {left}"
        )


def _about(minutes: float) -> str:
    return "a minute" if minutes < 1.5 else f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def plan(
    trials: Iterable[Trial],
    folder: str | Path | None = None,
    *,
    workers: int = 1,
    device: str = "cpu",
    probe: bool = True,
) -> Plan:
    """Counts the work of a study and estimates its time. Loads the data, writes nothing into the folder.

    Args:
        trials: The study.
        folder: Results folder, which may hold some of it already, or not exist yet.
        workers: Worker processes that will share the work.
        device: Where models will run.
        probe: Time a few training and crafting steps; without it there is no estimate.

    Raises:
        ValueError: The folder holds other things; or the data do not have what a trial needs.

    >>> from mithridate import Digits, NoAttack, Recipe, ThreatModel
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(), victims=8
    ... )
    >>> print(plan([control], probe=False))
    1 trials (0 finished), 1 poisons (0 made), 8 shared fits, 0 poisoned victims; no estimate of the time
    """
    where = tempfile.gettempdir() if folder is None else check_folder(Path(folder))
    store = Store(Path(where) / "nothing" if folder is None else where)
    with quiet():
        named = identify(trials, store, device)
        left = [trial for name, trial in named.items() if not store.finished(name)]
        poisons = {_poison(trial, store, device) for trial in named.values()}
        made = {poison for poison in poisons if (store.poison_folder(poison) / "manifest.json").exists()}
        return Plan(
            trials=len(named),
            finished=len(named) - len(left),
            poisons=len(poisons),
            poisons_made=len(made),
            shared_fits=sum(group.fits for group in shared_fits(named.values())),
            poisoned_victims=sum(t.victims for t in named.values() if not isinstance(t.attack, NoAttack)),
            minutes=_minutes_left(left, made, store, device, workers) if probe else None,
        )


class Shared(NamedTuple):
    """Fits that trials share."""

    kind: str
    trial: Trial
    """One that needs them."""
    models: int
    """How many models are asked for."""

    @property
    def fits(self) -> int:
        """How many fits that takes: a vote trains one per part."""
        return self.models * (_fits_per_victim(self.trial.defenses) if self.kind == CLEAN else 1)


def _fits_per_victim(defenses: Sequence[Defense]) -> int:
    return math.prod(getattr(d, "parts", 1) if d.kind == "vote" else TIMES.get(d.kind, 1) for d in defenses)


def shared_fits(trials: Iterable[Trial]) -> list[Shared]:
    """Groups the fits that trials share; an attack is taken to ask for as many models as its `surrogates` says."""
    groups: dict[str, Shared] = {}

    def need(kind: str, trial: Trial, models: int, *parts: Any) -> None:
        key = f"{kind} {(to_json(trial.data), trial.pretrain, trial.trusted, trial.surrogate_seed, *parts)}"
        if key not in groups or groups[key].models < models:
            groups[key] = Shared(kind, trial, models)

    for trial in trials:
        if trial.pretrain is not None:
            need(FEATURES, trial, 1)
            if trial.access != "white box" and not isinstance(trial.attack, NoAttack):
                need(FEATURES, trial, len(_recipes(trial.surrogate or trial.learner)), trial.surrogate)
        if isinstance(trial.attack, NoAttack):
            need(CLEAN, trial, trial.victims, trial.learner, trial.defenses)
        elif models := getattr(trial.attack, "surrogates", 0):
            known = trial.defenses if trial.adaptive else ()
            need(SURROGATES, trial, models, trial.surrogate or trial.learner, known)
    return list(groups.values())


def _recipes(learner: Learner) -> Sequence[Recipe | None]:
    return learner.recipes if isinstance(learner, Mixed) else [learner.recipe]


# --- the probe -------------------------------------------------------------------------------------------------------


def _minutes_left(left: Sequence[Trial], made: set[str], store: Store, device: str, workers: int) -> float | None:
    """Estimates the minutes that unfinished trials take; None where nothing is known of how a learner trains."""
    learners = [learner for trial in left for learner in (trial.learner, trial.surrogate or trial.learner)]
    if any(learner.recipe is None and not isinstance(learner, TrainFunction) for learner in learners):
        return None
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe trains too briefly not to be warned about
        probe = Probe(store, device, Path(scratch))
        seconds = sum(probe.shared(group) for group in shared_fits(left))
        seconds += sum(probe.victims(trial) for trial in left if not isinstance(trial.attack, NoAttack))
        crafted = {_poison(trial, store, device): trial for trial in left}
        seconds += sum(probe.craft(trial) for poison, trial in crafted.items() if poison not in made)
    return seconds / workers / 60


class Probe:
    """Times a few steps of every distinct recipe and attack, each once."""

    def __init__(self, store: Store, device: str, scratch: Path) -> None:
        self.store, self.device, self.scratch = store, device, scratch
        self._known: dict[str, Any] = {}

    def fit(self, trial: Trial, kind: str = CLEAN) -> float:
        """Returns the seconds of one fit without defences: of a victim, a surrogate, or pretrained features."""
        learner = self._learner(trial, kind)
        if isinstance(learner, TrainFunction):
            return self._rehearsed(learner, trial).seconds
        recipe, train = learner, self._train(trial)
        return self._once(("fit", to_json(trial.data), trial.pretrain, recipe), lambda: fit_seconds(recipe, train))

    def shared(self, group: Shared) -> float:
        """Returns the seconds of fits that trials share."""
        if group.kind == CLEAN:
            return self.victims(group.trial)
        return group.models * self.fit(group.trial, group.kind)

    def victims(self, trial: Trial) -> float:
        """Returns the seconds of all victims of a trial, with its defences."""
        repeats = math.prod(TIMES.get(defense.kind, 1) for defense in trial.defenses)
        return trial.victims * repeats * self.fit(trial)

    def craft(self, trial: Trial) -> float:
        """Returns the seconds that one poison takes, without its surrogates."""
        key = (
            "craft",
            to_json(trial.data),
            trial.pretrain,
            self._learner(trial, SURROGATES),
            trial.attack,
            trial.threat,
        )
        return self._once(key, lambda: self._craft(trial))

    def _craft(self, trial: Trial) -> float:
        train = self._train(trial)
        task = trial.threat.draw(train, self.store.data(trial.data, self.device).test, trial.seed)
        learner = self._learner(trial, SURROGATES)
        own = isinstance(learner, TrainFunction)
        surrogate = self._rehearsed(learner, trial) if own else Untrained(learner, few(train, 1))

        def seconds(attack: Attack) -> float:
            start = time.perf_counter()
            attack.craft(task, surrogate, trial.seed)
            return time.perf_counter() - start

        steps: int | None = getattr(trial.attack, "steps", None)
        if steps is None or steps <= LONG_CRAFT:
            return seconds(trial.attack)
        shorter: Any = trial.attack  # a frozen dataclass, like every choice
        seconds(replace(shorter, steps=1))  # the first run pays for training and for warming up
        short, long = (seconds(replace(shorter, steps=count)) for count in (1, LONG_CRAFT))
        return short + (long - short) / (LONG_CRAFT - 1) * (steps - 1)

    def _train(self, trial: Trial) -> ImageData:
        train = self.store.data(trial.data, self.device).train
        return train if trial.pretrain is None else train.select(train.ids[::2])

    def _rehearsed(self, learner: TrainFunction, trial: Trial) -> Rehearsed:
        return self._once(("own", to_json(trial.data), learner), lambda: Rehearsed(learner, self._train(trial)))

    def _learner(self, trial: Trial, kind: str) -> Recipe | TrainFunction:
        learner = (trial.surrogate if kind == SURROGATES else None) or trial.learner
        if isinstance(learner, TrainFunction):
            return learner
        recipe = trial.pretrain if kind == FEATURES else learner.recipe
        assert recipe is not None
        if kind == FEATURES or trial.pretrain is None:
            return recipe
        pretrain = replace(trial.pretrain, model=recipe.model)
        body = self._once(("body", to_json(trial.data), pretrain), lambda: self._body(trial, pretrain))
        return replace(recipe, start_from=body, trainable=trial.tuned)

    def _body(self, trial: Trial, pretrain: Recipe) -> Path:
        train, path = self._train(trial), self.scratch / f"{len(self._known)}.safetensors"
        save_weights(replace(pretrain, epochs=1).fit([few(train, 1)], [0]).models[0], path)
        return path

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        text = repr(key)
        if text not in self._known:
            self._known[text] = make()
        return self._known[text]


class Untrained(Learner):
    """Gives an attack models that were hardly trained: good enough to take the time with."""

    def __init__(self, recipe: Recipe, data: ImageData) -> None:
        self._recipe, self.data = recipe, data
        self._fitted: dict[int, Fitted] = {}

    @property
    def recipe(self) -> Recipe:
        """The recipe whose training is left out."""
        return self._recipe

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Returns as many models as asked for, trained for one epoch of one batch, once."""
        if len(seeds) not in self._fitted:
            self._fitted[len(seeds)] = self._brief.fit([self.data] * len(seeds), range(len(seeds)))
        return self._fitted[len(seeds)]

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins trainings of one epoch of one batch."""
        return self._brief.begin([self.data] * len(seeds), seeds)

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Stays at the first epoch: following costs nothing, as where a study shares the trainings."""
        rate = self._recipe.learning_rate
        return [itertools.repeat(Stage(model, rate)) for model in self.fit(datasets, seeds).models]

    @property
    def _brief(self) -> Recipe:
        return replace(self._recipe, epochs=1)


def few(data: ImageData, batches: int, batch_size: int = 128) -> ImageData:
    """Returns the first rows of a data set: so many batches, or all there are."""
    return data.select(data.ids[: batches * batch_size])


def fit_seconds(recipe: Recipe, data: ImageData) -> float:
    """Estimates the seconds of one fit: times one epoch of a few batches and scales it by rows and epochs."""
    small = few(data, PROBED_BATCHES, recipe.batch_size)
    if recipe.trainable == "head" and not recipe.transforms:  # solved at once, without epochs
        start = time.perf_counter()
        recipe.fit([small], [0])
        return (time.perf_counter() - start) * len(data) / len(small)
    state = recipe.start(small, seed=0)
    state.run_epoch()  # warms up
    start = time.perf_counter()
    state.run_epoch()
    return (time.perf_counter() - start) * len(data) / len(small) * recipe.epochs


def _poison(trial: Trial, store: Store, device: str) -> str:
    return store.identity(trial.poison_work(store.data(trial.data, device).fingerprint))
