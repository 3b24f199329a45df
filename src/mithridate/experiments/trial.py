"""Trial: one attack against one victim pipeline, as a setting; ``run`` carries it out and measures the outcome."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed
from mithridate.core.schema import name_of, to_json
from mithridate.core.seeds import derive, stream
from mithridate.core.sources import DataSource
from mithridate.core.states import Stage, TrainingState
from mithridate.core.training import Fitted, Learner, Recipe, Watch, Wrapper
from mithridate.experiments.facts import (
    TrialResult,
    caught_warnings,
    check_resumable,
    data_facts,
    environment,
    peak_memory_mb,
    plain,
    poison_facts,
    removed,
    versions,
)
from mithridate.experiments.job import Job
from mithridate.experiments.store import WEIGHTS, Crafted, Store, Stored
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Task, ThreatModel

__all__ = ["Trial", "TrialResult", "run", "surrogate_of", "victim_seeds", "wrap"]

WRAPPING = ("filter", "vote", "purification", "guard")
"""Kinds of defences that wrap a learner; the others change its recipe."""


@dataclass(frozen=True, kw_only=True)
class Trial(Job):
    """One attack on one case, against one way of training. Everything random follows from its two seeds.

    >>> from mithridate import BadNets, Digits, Mixup, Recipe
    >>> Trial(
    ...     data=Digits(), threat=BadNets.threat, attack=BadNets(), learner=Recipe(), defenses=(Mixup(),)
    ... ).label()
    'badnets vs mixup, seed 0'
    """

    kind: ClassVar[str] = "poison"
    data: DataSource
    """Where the images come from."""
    threat: ThreatModel
    """What the attacker may do and wants."""
    attack: Attack
    """Crafts the poison."""
    learner: Learner
    """Trains the victims."""
    pretrain: Recipe | None = None
    """Trains features on one half of the rows, which is never poisoned; the learner begins with them on the other."""
    tuned: Literal["head", "all"] = "head"
    """With pretrain, what the learner trains: a new head on the frozen features (transfer), or all weights
    (fine-tuning)."""
    trusted: int = 0
    """Clean rows held out for defences that need them. Equal in all cells of a grid, or poisons are not shared."""
    defenses: tuple[Defense, ...] = ()
    """What the defender adds, in this order."""
    surrogate: Learner | None = None
    """What the attacker believes the victim uses; None: the learner itself."""
    knows_features: bool = True
    """With pretrain: whether the attacker has the victim's own features (white box), or trains some from another seed
    (grey box). A surrogate of another architecture trains its own in any case (black box)."""
    adaptive: bool = False
    """Whether the attacker knows the defences and crafts through them."""
    victims: int = 1
    """Models trained on the poisoned set, each with a seed of its own."""
    seed: int = 0
    """Draws the case, the poison and the victims; equal seeds pair the trials of different cells."""
    surrogate_seed: int = 0
    """Draws what the trials of a study share: surrogates, clean victims, transfer halves, trusted rows."""

    def __post_init__(self) -> None:
        if self.victims < 1:
            raise ValueError(f"victims is {self.victims}; at least one model must be trained")
        if self.trusted < 0:
            raise ValueError(f"trusted is {self.trusted}; it is a number of rows, 0 or more")
        object.__setattr__(self, "defenses", tuple(self.defenses))
        if needy := [name_of(defense) for defense in self.defenses if defense.needs_trusted and not self.trusted]:
            raise ValueError(
                f"{needy[0]} works on clean rows held out for it, but trusted is 0; set it, for example to 100 "
                "(--trusted 100)"
            )

    @property
    def scenario(self) -> str:
        """How the victim trains: ``from scratch``, ``fine-tuning``, ``transfer``."""
        recipe = self.learner.recipe
        if self.pretrain is not None:
            return "transfer" if self.tuned == "head" else "fine-tuning"
        if recipe is None or recipe.start_from is None:
            return "from scratch"
        return "transfer" if recipe.trainable == "head" else "fine-tuning"

    @property
    def access(self) -> str:
        """What the attacker has: ``white box`` (the weights that victims start from), ``grey box`` (their architecture,
        with weights of its own) or ``black box`` (another architecture)."""
        surrogate = self.surrogate or self.learner
        if architectures(surrogate) != architectures(self.learner):
            return "black box"
        begins = [recipe.start_from for recipe in (self.learner.recipe, surrogate.recipe) if recipe is not None]
        given = begins[0] is not None and begins[0] == begins[-1] if begins else False
        return "white box" if (self.pretrain is not None and self.knows_features) or given else "grey box"

    def label(self) -> str:
        """Returns a few words for progress lines."""
        against = " + ".join(name_of(defense) for defense in self.defenses)
        scenario = "" if self.scenario == "from scratch" else f", {self.scenario}"
        return f"{name_of(self.attack)}{f' vs {against}' if against else ''}{scenario}, seed {self.seed}"

    def work(self, fingerprint: str) -> dict[str, Any]:
        """Returns the settings that the result depends on: all of them, with the content of the data for its place."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"data": fingerprint}

    def poison_work(self, fingerprint: str) -> dict[str, Any]:
        """Returns the settings that the poison depends on."""
        names = ["threat", "attack", "pretrain", "trusted", "seed", "surrogate_seed"]
        names += [] if self.pretrain is None else ["tuned", "knows_features"]
        shared = {name: getattr(self, name) for name in names}
        known = {"known_defenses": self.defenses} if self.adaptive else {}
        return shared | known | {"surrogate": self.surrogate or self.learner, "data": fingerprint}

    def shared_work(self, fingerprint: str) -> Any:
        """Returns the settings of the poison; None for clean controls."""
        return None if isinstance(self.attack, NoAttack) else self.poison_work(fingerprint)

    def run(self, store: Store, device: str = "cpu", *, keep_models: bool = False) -> TrialResult:
        """Carries the trial out: see `mithridate.experiments.trial.run`."""
        return run(self, store, device, keep_models=keep_models)


def architectures(learner: Learner) -> set[str]:
    """Returns the models that a learner trains, by name; a user's own code counts as one of its own."""
    recipes = learner.recipes if isinstance(learner, Mixed) else [learner.recipe]
    return {json.dumps(to_json(learner if recipe is None else recipe.model), sort_keys=True) for recipe in recipes}


class Clock:
    """Seconds per phase; time in an inner phase counts for that alone."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = dict.fromkeys(("pretrain", "surrogates", "craft", "victims", "evaluate"), 0.0)
        self._inner = 0.0

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time of the block."""
        outer, self._inner, start = self._inner, 0.0, time.perf_counter()
        try:
            yield
        finally:
            total = time.perf_counter() - start
            self._spent[phase] = self._spent.get(phase, 0.0) + total - self._inner
            self._inner = outer + total

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase so far."""
        return {phase: round(seconds, 3) for phase, seconds in self._spent.items()}


class Setting(NamedTuple):
    """Who trains on what, once features for transfer are there."""

    learner: Learner
    surrogate: Learner
    train: ImageData
    features: dict[str, Any] | None
    """Fit id and number of rows of the pretrained features; None without transfer."""


def run(trial: Trial, store: Store, device: str = "cpu", *, keep_models: bool = False) -> TrialResult:
    """Carries out a trial: draw the case, craft the poison, train the victims, measure.

    Args:
        trial: What to do.
        store: Shared work is taken from there and put there; the result itself is not (see ``run_study``).
        device: Where the images lie and the models run.
        keep_models: Store poisoned victims as well.

    Raises:
        ThreatModelViolation: The attack oversteps its threat model.
        TypeError: Attack, goal, learner and defences do not fit together.
        ValueError: The data do not have what the trial needs.

    >>> import tempfile
    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> control = Trial(
    ...     data=Digits(train=100),
    ...     threat=ThreatModel(),
    ...     attack=NoAttack(),
    ...     learner=Recipe(epochs=1),
    ...     victims=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(run(control, Store(folder)).outcome["accuracy"])
    2
    """
    clock = Clock()
    with caught_warnings() as messages:
        data = store.data(trial.data, device)
        check_resumable(trial.work(data.fingerprint))
        train, trusted = hold_out(data.train, trial.trusted, trial.surrogate_seed)
        with clock("pretrain"):
            setting = pretrained(trial, train, store)
        task = trial.threat.draw(setting.train, data.test, seed=trial.seed)
        work = trial.poison_work(data.fingerprint)
        poison_id = store.identity(work)
        with clock("craft"):
            surrogate = surrogate_of(trial, setting.surrogate, store, clock)
            poison = store.poison(poison_id, lambda: crafted(trial, task, surrogate, work))
        task.check(poison)  # the harness judges, not the attack
        curve = task.curve()
        with clock("victims"):
            victim = wrap(setting.learner, trial.defenses, store if keep_models or not len(poison) else None)
            fitted = victim.fit(
                [poison.apply(setting.train)] * trial.victims, victim_seeds(trial, poison), trusted=trusted, watch=curve
            )
        with clock("evaluate"):
            outcome = task.outcome(fitted, poison, curve)
    return TrialResult(
        trial=store.identity(trial.work(data.fingerprint)),
        outcome={name: plain(value) for name, value in outcome.items()},
        case=task.case(),
        data=data_facts(data.fingerprint, setting.train, data.test, setting.features),
        poison={"id": poison_id, **poison_facts(poison, setting.train)},
        defense=removed(fitted, setting.train, poison),
        guarantees=to_json(fitted.guarantees),
        models=[store.fit_of[model] for model in fitted.models if model in store.fit_of],
        seconds=clock.seconds(),
        peak_memory_mb=peak_memory_mb(),
        threads=torch.get_num_threads(),
        environment=environment(device),
        warnings=list(dict.fromkeys(str(message.message) for message in messages)),
    )


# --- the steps -------------------------------------------------------------------------------------------------------


def hold_out(train: ImageData, count: int, seed: int) -> tuple[ImageData, ImageData | None]:
    """Splits off `count` clean rows for defences that need them; returns (rest, held out or None).

    Raises:
        ValueError: Not enough rows.
    """
    if count == 0:
        return train, None
    if count >= len(train):
        raise ValueError(f"trusted is {count}, but the training set has {len(train)} rows; hold out fewer")
    rows = train.ids[torch.randperm(len(train), generator=stream(seed, "trusted")).to(train.device)[:count]]
    return train.drop(rows), train.select(rows)


def pretrained(trial: Trial, train: ImageData, store: Store) -> Setting:
    """Prepares a trial with `pretrain`: features from one half of the rows, everything else happens on the other half.

    Raises:
        TypeError: A learner that is no recipe.
        ValueError: A learner that already starts from weights.
    """
    learner, surrogate, pretrain = trial.learner, trial.surrogate or trial.learner, trial.pretrain
    if pretrain is None:
        return Setting(learner, surrogate, train, None)
    order = torch.randperm(len(train), generator=stream(trial.surrogate_seed, "halves")).to(train.device)
    first, second = (train.ids[half.sort().values] for half in order.tensor_split([len(train) // 2]))

    def features(recipe: Recipe, *seed: str | int) -> str:
        body = Stored(recipe, store).fit([train.select(first)], [derive(trial.surrogate_seed, *seed)])
        return store.fit_of[body.models[0]]

    fit = features(pretrain, "pretrain")

    def own(number: int, recipe: Recipe) -> Path:
        if trial.knows_features and recipe.model == pretrain.model:
            return store.fit_folder(fit) / WEIGHTS
        body = features(replace(pretrain, model=recipe.model), "surrogate pretrain", number)
        return store.fit_folder(body) / WEIGHTS

    victim = on_features(learner, lambda number, recipe: store.fit_folder(fit) / WEIGHTS, trial.tuned)
    attacker = on_features(surrogate, own, trial.tuned)
    return Setting(victim, attacker, train.select(second), {"fit": fit, "rows": len(first)})


def on_features(learner: Learner, weights: Callable[[int, Recipe], Path], tuned: Literal["head", "all"]) -> Learner:
    """Returns the learner that begins with stored features.

    Args:
        learner: A recipe, or several mixed.
        weights: Number of a recipe and the recipe -> safetensors file.
        tuned: What is trained on them.
    """
    if isinstance(learner, Mixed):
        begun = [_begun(recipe, weights(number, recipe), tuned) for number, recipe in enumerate(learner.recipes)]
        return Mixed(recipes=tuple(begun))
    if isinstance(learner, Recipe):
        return _begun(learner, weights(0, learner), tuned)
    raise TypeError(f"pretrain gives features to a Recipe, but the learner is {name_of(learner)}; leave pretrain out")


def _begun(recipe: Recipe, weights: Path, tuned: Literal["head", "all"]) -> Recipe:
    if recipe.start_from is not None:
        raise ValueError(f"the learner starts from {recipe.start_from} and pretrain is set as well; choose one")
    return replace(recipe, start_from=weights, trainable=tuned)


def wrap(learner: Learner, defenses: Sequence[Defense], store: Store | None, *, attacker: bool = False) -> Learner:
    """Applies defences: those that change the recipe, then the store (if any), then those that wrap.

    Args:
        learner: What is defended.
        defenses: In the order of the trial.
        store: Where plain fits are kept; None: not at all.
        attacker: Build what an adaptive attacker crafts through instead.
    """
    outside = next((i for i, defense in enumerate(defenses) if defense.kind in WRAPPING), len(defenses))
    for i, defense in enumerate(defenses):
        if i == outside and store is not None:
            learner = Stored(learner, store)
        learner = defense.seen_by_attacker(learner) if attacker else defense(learner)
    return Stored(learner, store) if outside == len(defenses) and store is not None else learner


class Surrogates(Wrapper):
    """What an attack gets: it asks for the seeds 0, 1, ..., and all trials of a study share what it is given."""

    def __init__(self, learner: Learner, seed: int, clock: Clock) -> None:
        self.learner, self.seed, self.clock = learner, seed, clock

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains surrogates; the time counts as theirs."""
        with self.clock("surrogates"):
            return self.learner.fit(datasets, self._derived(seeds), trusted=trusted, watch=watch)

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins trainings of surrogates."""
        return self.learner.begin(datasets, self._derived(seeds))

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Follows trainings of surrogates; the time they take counts as theirs."""
        with self.clock("surrogates"):
            return [self._timed(course) for course in self.learner.follow(datasets, self._derived(seeds))]

    def _timed(self, course: Iterator[Stage]) -> Iterator[Stage]:
        while True:
            with self.clock("surrogates"):
                stage = next(course)
            yield stage

    def _derived(self, seeds: Sequence[int]) -> list[int]:
        return [derive(self.seed, "surrogate", seed) for seed in seeds]


def surrogate_of(trial: Trial, learner: Learner, store: Store, clock: Clock | None = None) -> Surrogates:
    """Returns the learner that the attack of a trial trains its surrogates with."""
    known = trial.defenses if trial.adaptive else ()
    return Surrogates(wrap(learner, known, store, attacker=True), trial.surrogate_seed, clock or Clock())


def victim_seeds(trial: Trial, poison: Poison) -> list[int]:
    """Returns one seed per victim; clean victims have the same ones in every trial of a study."""
    seed = trial.seed if len(poison) else trial.surrogate_seed
    return [derive(seed, "victim", i) for i in range(trial.victims)]


def crafted(trial: Trial, task: Task, surrogate: Learner, work: dict[str, Any]) -> Crafted:
    poison = trial.attack.craft(task, surrogate, seed=trial.seed)
    task.check(poison)  # before it is stored: what oversteps must not be found by the next run
    base, target = task.train.pixels(poison.rows), task.test.pixels(task.target_rows)
    return Crafted(poison, base, target, {"work": to_json(work), "case": task.case(), "versions": versions()})
