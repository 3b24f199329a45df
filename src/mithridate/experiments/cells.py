"""Cells: trials that differ in nothing but their seed, and the control cells that each of them is compared with.

Works on the plain JSON of trials and results, so that old results folders, other languages and tests need no objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from mithridate.experiments.statistics import Mean, difference, mean

Pair = tuple[dict[str, Any], dict[str, Any]]
"""trial.json and result.json, read."""

CONTROLS = ("random-noise", "no-attack")
"""Attacks that are there to be compared with, the stricter first."""
SCENARIOS = ("from scratch", "fine-tuning", "transfer")
USUAL_ACCESS = {"from scratch": "grey box", "fine-tuning": "white box", "transfer": "white box"}
"""What the attacker has unless a study says otherwise, by scenario."""
GOALS = ("misclassify", "backdoor", "availability")
ACCESSES = ("white box", "grey box", "black box")
DEFAULTS = {"tuned": "head", "knows_features": True, "surrogate": None, "adaptive": False}
"""Settings that older trial.json files lack."""
_UNITS = ("seed", "victims", "id")
_MEANS = ("attack", "surrogate", "knows_features", "adaptive")


@dataclass(frozen=True, eq=False)
class Cell:
    """Trials that share all settings but the seed: one seed = one drawn case = one independent unit."""

    setting: dict[str, Any]
    """trial.json of the first of them."""
    trials: dict[int, Pair]
    """By seed, ascending."""

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return self.setting["attack"]["type"]

    @property
    def control(self) -> bool:
        """Whether this is something to compare with, not an attack."""
        return self.attack in CONTROLS

    @property
    def defenses(self) -> list[dict[str, Any]]:
        """Settings of the defences, in the order in which they wrap the learner."""
        return list(self.setting.get("defenses") or ())

    @property
    def goal(self) -> str:
        """What the attacker wants: misclassify, backdoor or availability."""
        return goal_of(self.setting)

    @property
    def scenario(self) -> str:
        """From scratch, fine-tuning or transfer."""
        return scenario_of(self.setting)

    @property
    def access(self) -> str:
        """White box, grey box or black box; nothing for a control, which uses none of the attacker's means."""
        return "" if self.control else access_of(self.setting)

    @cached_property
    def static(self) -> str:
        """What an adaptive cell shares with the cell of the attacker who does not know the defences."""
        return canonical(
            {name: value for name, value in (DEFAULTS | self.setting).items() if name not in (*_UNITS, "adaptive")}
        )

    @cached_property
    def planned(self) -> int | None:
        """Cases planned, where the study stopped comparisons once they were decided; None where it runs them all."""
        return max((result.get("planned") or 0 for result in self.results), default=0) or None

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """result.json of each trial, by seed."""
        return [result for _, result in self.trials.values()]

    def outcomes(self, key: str, eligible: dict[int, list[bool]] | None = None) -> dict[int, list[float]]:
        """Outcomes of each trial as one list, victim after victim; optionally of the eligible targets alone."""
        found = {}
        for seed, (_, result) in self.trials.items():
            keep = None if eligible is None else eligible.get(seed, [])
            rows = result["outcome"].get(key) or []
            found[seed] = [
                value
                for victim in rows
                for index, value in enumerate(victim)
                if value is not None and (keep is None or (index < len(keep) and keep[index]))
            ]
        return found

    def accuracies(self) -> list[float]:
        """Independent values of clean test accuracy: one per trial; for a single poison one per victim.

        Clean victims are shared by all cases of a study, so an unattacked cell counts each of them once. Values that
        are all equal come from one deterministic fit made several times, and count once too.
        """
        values = self._independent(lambda outcome: outcome.get("accuracy") or [])
        return values if len(set(values)) > 1 else values[:1]

    def highest(self) -> list[float]:
        """The same of the highest clean test accuracy of any epoch; nothing where epochs were not watched."""
        return self._independent(lambda outcome: [max(epochs) for epochs in outcome.get("epochs") or ()])

    def wrong(self) -> list[float]:
        """The same of the share of successes: of test images that come out wrong, where that is the goal."""
        values = self._independent(lambda outcome: [fmean(victim) for victim in outcome.get("success") or () if victim])
        return values[:1] if len(self.accuracies()) == 1 else values

    def right(self) -> list[float]:
        """The same of the share of triggered images that get their true label; nothing where none carry a trigger."""
        if self.goal != "backdoor":
            return []
        return self._independent(lambda outcome: [fmean(victim) for victim in outcome.get("correct") or () if victim])

    def _independent(self, of: Callable[[dict[str, Any]], list[float]]) -> list[float]:
        """One value per trial, the mean over its victims; of a single poison, and of clean fits, one per victim."""
        lists = [of(result["outcome"]) for result in self.results]
        if self.attack == "no-attack":
            shared = {trial.get("surrogate_seed", 0): [] for trial, _ in self.trials.values()}
            for (trial, _), values in zip(self.trials.values(), lists, strict=True):
                shared[trial.get("surrogate_seed", 0)] = max(shared[trial.get("surrogate_seed", 0)], values, key=len)
            return [value for values in shared.values() for value in values]
        lists = [values for values in lists if values]
        return lists[0] if len(lists) == 1 else [fmean(values) for values in lists]

    def notes(self) -> dict[str, Mean]:
        """What the attack noted about itself (its final objective), over trials."""
        notes = [(result.get("poison") or {}).get("notes") or {} for result in self.results]
        names = sorted({name for note in notes for name in note})
        numbers = {name: [note[name] for note in notes if is_number(note.get(name))] for name in names}
        return {name: mean(values) for name, values in numbers.items() if values}


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number (True is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def recipes_of(learner: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The recipes inside a learner's JSON: of several mixed all, of a wrapper what it wraps, else the learner."""
    learner = learner or {}
    if isinstance(learner.get("recipes"), list):
        return [inner for recipe in learner["recipes"] for inner in recipes_of(recipe)] or [learner]
    return recipes_of(learner["learner"]) if isinstance(learner.get("learner"), dict) else [learner]


def scenario_of(trial: dict[str, Any]) -> str:
    """How the victim of a trial.json trains.

    >>> scenario_of({"learner": {"type": "recipe"}, "pretrain": {"type": "recipe"}, "tuned": "all"})
    'fine-tuning'
    """
    recipe = recipes_of(trial.get("learner"))[0]
    if trial.get("pretrain"):
        return "fine-tuning" if trial.get("tuned") == "all" else "transfer"
    if recipe.get("trainable") == "head":
        return "transfer"
    return "fine-tuning" if recipe.get("start_from") else "from scratch"


def access_of(trial: dict[str, Any]) -> str:
    """What the attacker of a trial.json has of the victim.

    White box: the weights that the victim starts from. Grey box: its architecture, with weights of the attacker's own.
    Black box: another architecture.

    >>> (
    ...     access_of({"learner": {"model": "convnet"}}),
    ...     access_of({"learner": {"model": "convnet"}, "pretrain": {"a": 1}}),
    ... )
    ('grey box', 'white box')
    >>> access_of({"learner": {"model": "convnet"}, "surrogate": {"model": "resnet18"}})
    'black box'
    """
    victim, surrogate = (recipes_of(trial.get(name) or trial.get("learner")) for name in ("learner", "surrogate"))
    if {_architecture(recipe) for recipe in victim} != {_architecture(recipe) for recipe in surrogate}:
        return "black box"
    start = victim[0].get("start_from")
    given = start is not None and start == surrogate[0].get("start_from")
    known = trial.get("pretrain") and trial.get("knows_features", True)
    return "white box" if known or given else "grey box"


def _architecture(recipe: dict[str, Any]) -> str:
    """What tells architectures apart; training code of the user's own counts as one of its own."""
    return canonical(recipe.get("model") if recipe.get("type", "recipe") == "recipe" else recipe)


def goal_of(trial: dict[str, Any]) -> str:
    """Name of the attacker's goal in a trial.json."""
    return (trial["threat"].get("goal") or {}).get("type", "misclassify")


def canonical(value: Any) -> str:
    """Text that is equal for equal settings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def static_settings(trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial.json shares with the others of its cell."""
    return {name: value for name, value in (DEFAULTS | trial).items() if name not in _UNITS}


def cell_name(trial: dict[str, Any], fingerprint: str) -> str:
    """Name of the cell of a trial, equal for all its seeds."""
    units = static_settings(trial)
    return hashlib.sha256(canonical(units | {"data": fingerprint}).encode()).hexdigest()[:16]


def with_plan(pairs: Iterable[Pair], planned: dict[str, int] | None) -> list[Pair]:
    """The pairs of a study that stopped comparisons once they were decided, each with how many cases its cell may have.

    Args:
        pairs: (trial.json, result.json).
        planned: What ``study.json`` says: cases by `cell_name`; None or empty for a study that ran all.
    """
    if not planned:
        return list(pairs)
    return [
        (
            trial,
            result | {"planned": planned.get(cell_name(trial, (result.get("data") or {}).get("fingerprint", "")), 0)},
        )
        for trial, result in pairs
    ]


def cells(pairs: Iterable[Pair]) -> list[Cell]:
    """Group finished trials; of two with the same seed the one with more victims stays (it includes the other).

    Data are known by their content: a folder that was moved between two runs is the same data.
    """
    groups: dict[str, dict[int, Pair]] = {}
    places: dict[str, Any] = {}
    for trial, result in pairs:
        content = (result.get("data") or {}).get("fingerprint")
        trial = trial | ({"data": places.setdefault(content, trial["data"])} if content else {})
        key = canonical(static_settings(trial))
        group = groups.setdefault(key, {})
        seed = int(trial.get("seed", 0))
        if seed not in group or trial.get("victims", 1) > group[seed][0].get("victims", 1):
            group[seed] = (trial, result)
    ordered = [dict(sorted(group.items())) for group in groups.values()]
    return sorted((Cell(next(iter(group.values()))[0], group) for group in ordered), key=_order)


def _order(cell: Cell) -> tuple:
    rank = CONTROLS.index(cell.attack) + 1 if cell.control else 0
    threat = cell.setting["threat"]
    return (
        SCENARIOS.index(cell.scenario),
        canonical(cell.setting["data"]),
        canonical(cell.setting.get("learner")),
        GOALS.index(cell.goal) if cell.goal in GOALS else len(GOALS),
        threat.get("budget", 0),
        canonical(threat),
        len(cell.defenses),
        canonical(cell.defenses),
        rank,
        cell.attack,
        ("", *ACCESSES).index(cell.access),
        canonical(cell.setting["attack"]),
        canonical(cell.setting.get("surrogate")),
        bool(cell.setting.get("adaptive")),
        canonical(cell.setting),
    )


def _place(cell: Cell, *without: str) -> str:
    """What two cells must share to be compared; an attacker's means never count."""
    skip = {*_UNITS, *_MEANS, *without}
    return canonical({name: value for name, value in (DEFAULTS | cell.setting).items() if name not in skip})


def _means(cell: Cell) -> str:
    """How the attacker works, but for knowing the defences."""
    return canonical([(DEFAULTS | cell.setting)[name] for name in _MEANS if name != "adaptive"])


def _aim(cell: Cell) -> str:
    threat = cell.setting["threat"]
    return canonical([threat.get("goal"), threat.get("targets", 1), threat.get("case")])


def control_of(cell: Cell, others: Sequence[Cell], name: str) -> Cell | None:
    """The control cell of that name in the same place (data, learner, defences).

    It must have the same threat model. `no-attack` uses no budget, so there the same aim (goal, targets) is enough.
    """
    same = [o for o in others if o.attack == name and o is not cell and _place(o, "threat") == _place(cell, "threat")]
    trigger = cell.setting["attack"].get("trigger")  # a control shows the attack's own trigger at test time
    same = [o for o in same if trigger is None or o.setting["attack"].get("trigger") in (None, trigger)] or same
    exact = [o for o in same if canonical(o.setting["threat"]) == canonical(cell.setting["threat"])]
    if name == "no-attack":
        exact = exact or [o for o in same if _aim(o) == _aim(cell)]
    return max(exact, key=lambda o: len(o.trials.keys() & cell.trials.keys()), default=None)


def undefended(cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The same attacker against the learner without defences; for an adaptive attack the static one."""
    if not cell.defenses:
        return None
    place, means = _place(cell, "defenses"), _means(cell)
    same = [o for o in others if not o.defenses and _place(o, "defenses") == place and _means(o) == means]
    return min(same, key=lambda o: bool(o.setting.get("adaptive")), default=None)


def adaptive_of(cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The cell that differs from a static, defended one only in that its attacker knows the defences."""
    if cell.control or not cell.defenses or cell.setting.get("adaptive"):
        return None
    return next((o for o in others if o.setting.get("adaptive") and o.static == cell.static), None)


def clean(cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The unattacked, undefended cell of the same data, learner and aim."""
    place = _place(cell, "defenses", "threat")
    same = [
        o for o in others if o.attack == "no-attack" and not o.defenses and _place(o, "defenses", "threat") == place
    ]
    return next((o for o in same if _aim(o) == _aim(cell)), same[0] if same else None)


def eligible(cell: Cell, unattacked: Cell | None) -> dict[int, list[bool]] | None:
    """By seed, which targets most clean victims classify rightly; None where clean trials did not store `correct`."""
    if unattacked is None or _aim(cell) != _aim(unattacked):
        return None
    found = {}
    for seed in cell.trials:
        victims = unattacked.trials[seed][1]["outcome"].get("correct") if seed in unattacked.trials else None
        if victims:
            found[seed] = [fmean(column) > 0.5 for column in zip(*victims, strict=True)]
    return found or None


def paired(first: Cell, second: Cell) -> Iterator[int]:
    """Seeds at which both cells aim at the same targets."""
    for seed in first.trials:
        if seed in second.trials and _case(first, seed) == _case(second, seed):
            yield seed


def _case(cell: Cell, seed: int) -> tuple[Any, ...]:
    case = cell.trials[seed][1].get("case") or {}
    return tuple(case.get(name) for name in ("target_rows", "target_files", "intended"))


def cost(cell: Cell, unattacked: Cell | None) -> Mean | None:
    """Accuracy lost against the clean, undefended cell, as a share (0.01 = one point); None for that cell itself."""
    if unattacked is None or unattacked is cell:
        return None
    return difference(unattacked.accuracies(), cell.accuracies())
