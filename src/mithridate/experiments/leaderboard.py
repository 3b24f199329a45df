"""Leaderboard entries: one JSON file per attack under a stack of defences, made from a results folder, and checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mithridate.core.schema import choices
from mithridate.experiments.cells import canonical
from mithridate.experiments.columns import plain
from mithridate.experiments.files import read_json, write_json
from mithridate.experiments.rates import mid_p_interval
from mithridate.experiments.study import load_results
from mithridate.experiments.table import Row, table
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense

SCHEMA = 1
LARGEST = 100_000
"""Bytes of an entry."""
GOALS = ("misclassify", "backdoor", "availability")
SLACK = 0.002
"""By which an interval may be narrower than its rate and its independent outcomes allow: rounding."""

Entry = dict[str, Any]
KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "attack": dict,
    "defenses": list,
    "adaptive": bool,
    "goal": str,
    "setting": dict,
    "success": dict,
    "control": (dict, type(None)),
    "accuracy": dict,
    "cost": dict,
    "environment": dict,
    "command": str,
    "source": str,
    "submitted_by": str,
}
SETTING: dict[str, type | tuple[type, ...]] = {
    "data": str,
    "train": int,
    "model": str,
    "scenario": str,
    "access": str,
    "budget": (int, float),
    "poisons": (int, float),
    "bound": str,
    "recipe": dict,
}
RATE = ("share", "low", "high", "n", "n_eff", "cases")

# --- from a results folder -------------------------------------------------------------------------------------------


def entries_of(folder: str | Path, *, source: str = "", submitted_by: str = "") -> Iterator[Entry]:
    """Makes an entry of every attacked row of a results folder of poisoning trials; numbers are those of its table.

    Args:
        folder: Results folder.
        source: Where others find the raw results: a link, or a path in a repository.
        submitted_by: Who answers for them.

    Raises:
        ValueError: No results folder.
    """
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise ValueError(f"{folder} is no results folder: it has no study.json")
    command = str(read_json(folder / "study.json").get("command", ""))
    for row in table(load_results(folder)).rows:
        if not row.control:
            yield _entry(row, command, source or folder.name, submitted_by)


def _entry(row: Row, command: str, source: str, submitted_by: str) -> Entry:
    against = row.against
    learner = row.settings["learner"]
    results = [result for _, result in row.cell.trials.values()]
    success = {key: plain(row.success)[key] for key in ("share", "low", "high", "n", "n_eff")}
    return {
        "schema": SCHEMA,
        "attack": row.settings["attack"],
        "defenses": row.cell.defenses,
        "adaptive": row.adaptive,
        "goal": row.goal,
        "setting": {
            "data": row.data,
            "train": row.budget.train,
            "model": row.model,
            "scenario": row.scenario,
            "access": row.access,
            "budget": row.budget.limit,
            "poisons": row.budget.count,
            "bound": row.budget.bound,
            "recipe": learner,
        },
        "success": success | {"cases": row.trials, "victims": row.victims},
        "control": None
        if against is None
        else {
            "name": against.name,
            "share": plain(against.success.share),
            "n": against.success.n,
            "p_holm": against.holm,
            "shown": against.shown,
        },
        "accuracy": plain(row.accuracy),
        "cost": {
            "accuracy_lost": None if row.cost is None else plain(row.cost)["value"],
            "seconds_per_victim": row.seconds.get("victims", 0.0) / max(1, row.victims),
            "seconds_per_poison": (row.seconds.get("craft", 0.0) + row.seconds.get("surrogates", 0.0))
            / max(1, row.trials),
        },
        "environment": results[0].get("environment") or {},
        "command": command,
        "source": source,
        "submitted_by": submitted_by,
    }


def identity(entry: Entry) -> str:
    """Returns what the file of an entry is called: from what was measured, not from what came out."""
    kept = {key: entry.get(key) for key in ("attack", "defenses", "adaptive", "goal", "setting", "source")}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()[:16]


def write_entries(entries: Iterator[Entry] | list[Entry], folder: str | Path) -> list[Path]:
    """Writes each entry to `identity.json` in a folder, and returns where."""
    paths = []
    for entry in entries:
        paths.append(Path(folder) / f"{identity(entry)}.json")
        write_json(paths[-1], entry)
    return paths


def read_entries(folder: str | Path) -> list[Entry]:
    """Reads all entries of a folder, ordered by setting and success.

    Raises:
        ValueError: A file that is not in order, with all that is wrong with it.
    """
    found = []
    for path in sorted(Path(folder).glob("**/*.json")):
        if problems := check_file(path):
            raise ValueError(f"{path}: " + "; ".join(problems))
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda entry: (place(entry), -entry["success"]["share"], canonical(entry["attack"])))


def place(entry: Entry) -> str:
    """Returns the setting of an entry in words: where entries may be compared.

    >>> setting = {"data": "digits", "train": 1000, "model": "mlp", "scenario": "from scratch"}
    >>> place({"goal": "backdoor", "setting": setting})
    'digits (1,000 images), mlp, from scratch: backdoor'
    """
    own = entry["setting"]
    return f"{own['data']} ({own['train']:,} images), {own['model']}, {own['scenario']}: {entry['goal']}"


# --- checks ----------------------------------------------------------------------------------------------------------


def check_file(path: str | Path) -> list[str]:
    """Returns what is wrong with the file of an entry; nothing if it is in order. Nothing in the file is run."""
    path = Path(path)
    if not path.is_file():
        return ["there is no such file"]
    if path.stat().st_size > LARGEST:
        return [f"it has {path.stat().st_size:,} bytes; an entry has at most {LARGEST:,}"]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return [f"it is no JSON ({str(error)[:100]})"]
    problems = check_entry(content)
    if not problems and path.stem != identity(content):
        problems.append(f"it is called {path.name}; by what it holds it should be {identity(content)}.json")
    return problems


def check_entry(content: Any) -> list[str]:
    """Returns what is wrong with an entry: keys, types, ranges, and numbers that contradict each other."""
    if not isinstance(content, dict):
        return [f"it is a {type(content).__name__}; an entry is an object with {', '.join(KEYS)}"]
    problems = [*_shape(content, KEYS, "")]
    if problems:
        return problems
    if content["schema"] != SCHEMA:
        return [f"schema is {content['schema']}; this version reads {SCHEMA}"]
    problems += _shape(content["setting"], SETTING, "setting.")
    problems += _names(content)
    if content["goal"] not in GOALS:
        problems.append(f"goal is {content['goal']!r}; it is one of {', '.join(GOALS)}")
    if not content["command"].strip():
        problems.append("command is empty; say what was run, so that others can run it")
    problems += _rate(content["success"], counted=content["goal"] != "availability")
    problems += _control(content["control"])
    problems += _accuracy(content["accuracy"])
    return problems


def _shape(content: Mapping[str, Any], keys: Mapping[str, type | tuple[type, ...]], where: str) -> Iterator[str]:
    for key, kind in keys.items():
        if key not in content:
            yield f"{where}{key} is missing"
        elif not isinstance(content[key], kind) or (isinstance(content[key], bool) and kind is not bool):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            yield f"{where}{key} is a {type(content[key]).__name__}; expected {wanted}"
    if unknown := sorted(set(content) - set(keys)):
        yield f"{where}{unknown[0]} is not known; these are: {', '.join(keys)}"


def _names(content: Entry) -> Iterator[str]:
    parts = [("attack", Attack, content["attack"]), *(("defence", Defense, one) for one in content["defenses"])]
    for words, family, part in parts:
        name = part.get("type") if isinstance(part, dict) else None
        known = choices(family)  # pyright: ignore[reportArgumentType]
        if not isinstance(name, str) or (name not in known and not re.fullmatch(r"[\w.]+:\w+", name)):
            yield f"{name!r} is no {words} of this version, and no module:Class either"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rate(rate: Mapping[str, Any], *, counted: bool) -> Iterator[str]:
    """`counted`: successes among outcomes; otherwise the mean of models, with an interval of their spread."""
    if wrong := [key for key in RATE if not _number(rate.get(key))]:
        yield f"success.{wrong[0]} is {rate.get(wrong[0])!r}; success needs numbers: {', '.join(RATE)}"
        return
    share, low, high, n, n_eff, cases = (rate[key] for key in RATE)
    if not 0 <= low <= share <= high <= 1:
        yield f"success is {share:g} in {low:g} to {high:g}; expected 0 <= low <= share <= high <= 1"
        return
    if n < 1 or cases < 1 or not 0 < n_eff <= n + 1e-9 or cases > n:
        yield f"success has n {n:g}, n_eff {n_eff:g} and {cases:g} cases; expected 1 <= cases <= n and 0 < n_eff <= n"
        return
    if abs(share * n - round(share * n)) > 1e-6 * n:
        yield f"success.share is {share:g} of {n:g}, which is no whole number of successes"
    if not counted:
        return
    least, most = mid_p_interval(share, n_eff)
    if low > least + SLACK or high < most - SLACK:
        yield (
            f"the interval {low:.3f} to {high:.3f} is narrower than {n_eff:g} independent outcomes allow "
            f"({least:.3f} to {most:.3f})"
        )


def _control(control: Mapping[str, Any] | None) -> Iterator[str]:
    if control is None:
        return
    for key in ("share", "p_holm"):
        if not _number(control.get(key)) or not 0 <= control[key] <= 1:
            yield f"control.{key} is {control.get(key)!r}; expected a number from 0 to 1"
    if control.get("shown") is True and _number(control.get("p_holm")) and control["p_holm"] > 0.05:
        yield f"control.shown is true with an adjusted p of {control['p_holm']:g}"


def _accuracy(accuracy: Mapping[str, Any]) -> Iterator[str]:
    value: Any = accuracy.get("value")
    if not _number(value) or not 0 <= value <= 1:
        yield f"accuracy.value is {value!r}; expected a share from 0 to 1"
