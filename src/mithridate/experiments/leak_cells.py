"""Cells of gradient-inversion trials: those that differ in nothing but their seed, and what they are compared with.

Works on plain JSON, like `cells` does for poisoning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mithridate.experiments.cells import Cell, Pair, canonical, is_number

DEFAULTS = {"adaptive": False, "distinct": False, "defenses": [], "model_seed": 0}
_UNITS = ("seed", "id")
STATES = ("untrained", "trained", "checkpoint")


def is_leak(trial: dict[str, Any]) -> bool:
    """Whether a trial.json is one of gradient inversion.

    >>> is_leak({"attack": {}, "client": {}}), is_leak({"attack": {}, "threat": {}})
    (True, False)
    """
    return "client" in trial and "threat" not in trial


def leak_cells(pairs: Iterable[Pair]) -> list[Cell]:
    """Group finished trials by all their settings but the seed. Data are known by their content, not by their path."""
    groups: dict[str, dict[int, Pair]] = {}
    places: dict[str, Any] = {}
    for trial, result in pairs:
        content = (result.get("data") or {}).get("fingerprint")
        trial = DEFAULTS | trial | ({"data": places.setdefault(content, trial["data"])} if content else {})
        trial["adaptive"] = bool(trial["adaptive"] and trial["defenses"])
        groups.setdefault(_without(trial), {})[int(trial.get("seed", 0))] = (trial, result)
    ordered = [dict(sorted(group.items())) for group in groups.values()]
    return sorted((Cell(next(iter(group.values()))[0], group) for group in ordered), key=_order)


def state_of(trial: dict[str, Any]) -> str:
    """Where the model's weights come from: untrained, trained, or a checkpoint of the user's.

    >>> state_of({"recipe": {"epochs": 0, "start_from": None}}), state_of({"recipe": {"epochs": 20}})
    ('untrained', 'trained')
    """
    recipe = trial["recipe"]
    if recipe.get("epochs"):
        return "trained"
    return "checkpoint" if recipe.get("start_from") else "untrained"


def batch_of(trial: dict[str, Any]) -> int:
    """Images behind one message, before any defence."""
    return int(trial["client"]["batch"])


def epsilon_of(result: dict[str, Any]) -> float | None:
    """Epsilon of one message, where a defence proves one."""
    found = [guarantee["values"].get("epsilon") for guarantee in result.get("guarantees") or ()]
    return max((value for value in found if is_number(value)), default=None)


def measured(cell: Cell, key: str, part: str = "outcome") -> dict[int, list[float]]:
    """What was measured of each image, by seed; null is left out.

    Raises:
        KeyError: A result lacks it.
    """
    return {
        seed: [float(value) for value in result[part][key] or () if value is not None]
        for seed, (_, result) in cell.trials.items()
    }


def identified(cell: Cell, part: str = "outcome") -> dict[int, list[float]]:
    """By seed, 1 for each image whose rank among the candidates is 1."""
    return {seed: [float(rank == 1) for rank in ranks] for seed, ranks in measured(cell, "rank", part).items()}


def candidates(cell: Cell) -> int:
    """Images among which the true one was looked for; the smallest number of any trial."""
    return min(int(result["outcome"]["candidates"]) for _, result in cell.trials.values())


def undefended(cell: Cell, others: Sequence[Cell]) -> Cell | None:
    """The same attack on the same client without its defences."""
    if not cell.defenses:
        return None
    place = _without(cell.setting, "defenses", "adaptive")
    same = [o for o in others if not o.defenses and _without(o.setting, "defenses", "adaptive") == place]
    return same[0] if same else None


def paired(first: Cell, second: Cell) -> Iterator[int]:
    """Seeds at which both cells attack the same images, or one of them these and some more."""
    for seed in first.trials:
        if seed in second.trials:
            a, b = (list((cell.trials[seed][1].get("case") or {}).get("rows") or ()) for cell in (first, second))
            if a[: len(b)] == b[: len(a)]:
                yield seed


def _without(trial: dict[str, Any], *names: str) -> str:
    return canonical({name: value for name, value in trial.items() if name not in (*_UNITS, *names)})


def _order(cell: Cell) -> tuple:
    """Place, attack, batch, then defences with their numbers ascending."""
    trial = cell.setting
    return (
        canonical(trial["data"]),
        canonical(trial["recipe"].get("model")),
        STATES.index(state_of(trial)),
        canonical(trial["recipe"]),
        canonical(trial["client"] | {"batch": 0}),
        cell.attack,
        canonical(trial["attack"]),
        batch_of(trial),
        len(cell.defenses),
        [strength(defense) for defense in cell.defenses],
        trial["adaptive"],
        canonical(trial),
    )


def strength(defense: dict[str, Any]) -> tuple:
    """Sorts defences by name, and those of one name by their numbers.

    >>> found = [{"type": "quantize", "bits": bits} for bits in (16, 4)]
    >>> [defense["bits"] for defense in sorted(found, key=strength)]
    [4, 16]
    """
    values = [(key, float(value), "") if is_number(value) else (key, 0.0, str(value)) for key, value in defense.items()]
    return (str(defense["type"]), sorted(values))
