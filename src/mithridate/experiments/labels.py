"""Short names for the choices of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mithridate.experiments.cells import CONTROLS, recipes_of, scenario_of

Settings = dict[str, Any]
_PARTS = ("learner", "surrogate")


@dataclass(frozen=True)
class Labels:
    """Short names of the choices in a study: the name alone, with settings only where two variants of it meet.

    Of a setting that is itself a choice, only what differs is told; what is switched off is not mentioned.

    >>> trials = [{"attack": {"type": "badnets", "size": 2}}, {"attack": {"type": "badnets", "size": 3}}]
    >>> Labels.of(trials).attack(trials[1])
    'badnets (size=3)'
    """

    varying: dict[str, frozenset[str]]
    """By type (learners: by scenario and model; inside of settings: with their path): what differs between cells."""

    @classmethod
    def of(cls, trials: Sequence[Settings]) -> Labels:
        """Look at all trials of a study to see which settings tell choices apart."""
        choices = [(c["type"], c) for t in trials for c in (t["attack"], *(t.get("defenses") or ()))]
        choices += [(_learner_kind(t, part), _merged(t[part])) for t in trials for part in _PARTS if t.get(part)]
        seen: dict[str, dict[str, set[str]]] = {}
        while choices:
            kind, choice = choices.pop()
            for key, value in choice.items():
                seen.setdefault(kind, {}).setdefault(key, set()).add(str(value))
                if _is_choice(value):
                    choices.append((_inside(kind, key, value), value))
        return cls({kind: frozenset(k for k, v in keys.items() if len(v) > 1) for kind, keys in seen.items()})

    def attack(self, trial: Settings) -> str:
        """Attack, and the surrogate where it is not the victim's own recipe; of a control the name alone."""
        attack, surrogate = trial["attack"], trial.get("surrogate")
        label = attack["type"] if attack["type"] in CONTROLS else self._label(attack)
        if not surrogate:
            return label
        suffix = self._suffix(_merged(surrogate), _learner_kind(trial, "surrogate"))
        return f"{label} via {model_of(surrogate)}{suffix}"

    def defense(self, trial: Settings) -> str:
        """Defences joined by " + ", or "none"."""
        return " + ".join(self._label(defense) for defense in trial.get("defenses") or ()) or "none"

    def model(self, trial: Settings) -> str:
        """The victim's architecture."""
        learner = trial.get("learner") or {}
        return model_of(learner) + self._suffix(_merged(learner), _learner_kind(trial, "learner"))

    @staticmethod
    def surrogate(trial: Settings) -> str:
        """The architecture that the attacker trains."""
        return model_of(trial.get("surrogate") or trial.get("learner") or {})

    @staticmethod
    def data(trial: Settings) -> str:
        """The data set: its folder, its name, the function that makes it, or its type."""
        data = trial["data"]
        if isinstance(data.get("datasets"), dict):
            return _function_name(data["datasets"])
        path = PurePath(str(data.get("path") or data.get("name") or data.get("type") or "data"))
        return path.parent.name or path.stem if path.suffix else path.name

    def _label(self, choice: Settings) -> str:
        return choice["type"] + self._suffix(choice, choice["type"])

    def _suffix(self, choice: Settings, kind: str) -> str:
        parts = self._parts(choice, kind)
        return f" ({', '.join(parts)})" if parts else ""

    def _parts(self, choice: Settings, kind: str) -> list[str]:
        """The settings that differ, as text; switches by name where they are on."""
        keys = self.varying.get(kind, frozenset())
        told = {key: self._told(value, _inside(kind, key, value)) for key, value in choice.items() if key in keys}
        return [
            key if choice[key] is True else f"{key}={text}" for key, text in told.items() if choice[key] is not False
        ]

    def _told(self, value: Any, kind: str) -> str:
        if not _is_choice(value):
            return setting(value)
        return ":".join(filter(None, (value["type"], ",".join(self._parts(value, kind)))))


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _inside(kind: str, key: str, value: Any) -> str:
    """The kind of a setting that is itself a choice."""
    return f"{kind}/{key}={value['type']}" if _is_choice(value) else kind


def _learner_kind(trial: Settings, part: str) -> str:
    """Learners are told apart within a model and a scenario: the recipes of two scenarios always differ."""
    return f"{part}, {scenario_of(trial)}: {model_of(trial.get(part) or {})}"


def _merged(learner: Settings) -> Settings:
    """A learner's settings on one level: where the recipes of several mixed differ, the values side by side."""
    recipes = recipes_of(learner)
    if len(recipes) == 1:
        return learner
    merged = {}
    for key in recipes[0]:
        values = list(dict.fromkeys(setting(recipe.get(key)) for recipe in recipes))
        merged[key] = recipes[0][key] if len(values) == 1 else " + ".join(values)
    return merged


def model_of(learner: Settings) -> str:
    """The architecture a learner trains, of several mixed all; of the user's own training code the function's name.

    >>> model_of({"type": "mixed", "recipes": [{"model": "convnet"}, {"model": "resnet18:width=16"}]})
    'convnet + resnet18:width=16'
    >>> model_of(
    ...     {
    ...         "type": "train-function",
    ...         "train": {"function": "mine.training:fit", "source": "1f"},
    ...         "model": None,
    ...     }
    ... )
    'fit'
    """
    return " + ".join(dict.fromkeys(_model_name(recipe) for recipe in recipes_of(learner)))


def _model_name(recipe: Settings) -> str:
    named = [recipe.get(key) for key in ("train", "train_fn", "model")]
    for name in named:
        if isinstance(name, dict) and "function" in name:
            return _function_name(name)
    model = recipe.get("model")
    if isinstance(model, str) and "." in model.partition(":")[0]:  # package.module:function
        return model.rpartition(":")[2]
    return str(model or recipe.get("type") or "model")


def _function_name(function: Settings) -> str:
    """The last part of a function's name in JSON."""
    name = str(function.get("function", "function")).rpartition(":")[2]
    return name.rpartition(".")[2].strip("<>") or "function"


def setting(value: Any) -> str:
    """A setting as the command line would spell it.

    >>> setting({"type": "linf", "eps": 8 / 255}), setting(0.30000000000000004), setting([1, None])
    ('linf:eps=8/255', '0.3', '1, none')
    """
    if isinstance(value, dict):
        if "function" in value:
            return str(value["function"])
        rest = ",".join(f"{key}={setting(item)}" for key, item in value.items() if key != "type")
        return ":".join(part for part in (str(value.get("type", "")), rest) if part)
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """A number with six digits; a long one that is so many 255ths, as changes of 8-bit pixels are, as that."""
    text, levels = f"{value:.6g}", round(value * 255)
    eight_bit = 0 < levels < 255 and abs(value - levels / 255) < 1e-9
    return f"{levels}/255" if eight_bit and len(text) > len("0.1234") else text
