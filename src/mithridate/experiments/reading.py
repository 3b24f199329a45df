"""What a results folder holds, read so that nothing in it can stop a report: what cannot be used becomes a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from mithridate.experiments.cells import Pair, with_plan

T = TypeVar("T")
SCHEMA = 1
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a damaged file can raise."""


class Read(NamedTuple):
    """One trial's folder: what is in it, or a line that says why it cannot be used."""

    pair: Pair | None
    problem: str | None
    name: str


class Gathered(NamedTuple, Generic[T]):
    """All trials of a folder, and what was made of those that can be used."""

    pairs: list[Pair]
    problems: list[str]
    """Trials that failed, did not finish or cannot be read: one line each."""
    study: dict[str, Any]
    """study.json; empty where it cannot be read."""
    made: T


def gather(folder: Path, make: Callable[[Iterable[Pair]], T], belongs: Callable[[Pair], str | None]) -> Gathered[T]:
    """Read all trials of a results folder and make something of them.

    Args:
        folder: The results folder.
        make: Makes it of all pairs, or of one alone to see whether that can be used.
        belongs: None, or a line that says why a trial is left out.

    Raises:
        ValueError: There are no trials in it.
    """
    trials = sorted(path for path in folder.glob("trials/*") if path.is_dir())
    if not trials:
        raise ValueError(f"{folder} has no trials/ folder with trials in it; expected the results folder of a study")
    study, problems = _study(folder)
    read = [_sorted_out(_read_trial(path), belongs) for path in trials]
    read = [one._replace(pair=with_plan([one.pair], study.get("planned"))[0]) if one.pair else one for one in read]
    try:
        made = make(pair for pair, _, _ in read if pair)
    except DAMAGED:  # one of them at least; look at each alone
        read = [_checked(trial, make) for trial in read]
        made = make(pair for pair, _, _ in read if pair)
    problems += [problem for _, problem, _ in read if problem]
    return Gathered([pair for pair, _, _ in read if pair], problems, study, made)


def _study(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """study.json, and a line where it cannot be read."""
    try:
        return dict(json.loads((folder / "study.json").read_text(encoding="utf-8"))), []
    except (OSError, ValueError) as error:
        return {}, [f"study.json cannot be read ({type(error).__name__}); the command is not known"]


def _read_trial(path: Path) -> Read:
    try:
        trial = json.loads((path / "trial.json").read_text(encoding="utf-8"))
        name = f"{(trial if 'type' in trial else trial['attack'])['type']}, seed {trial.get('seed', 0)} ({path.name})"
    except DAMAGED as error:
        return Read(None, f"{path.name}: its settings cannot be read ({type(error).__name__})", path.name)
    if not (path / "result.json").exists():
        return Read(None, f"{name}: {_failure(path)}", name)
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        if result.get("schema") != SCHEMA:
            return Read(
                None, f"{name}: its result has schema {result.get('schema')!r}, this version reads {SCHEMA}", name
            )
    except DAMAGED as error:
        return Read(None, f"{name}: its result cannot be read ({type(error).__name__}: {error})", name)
    return Read((trial, result), None, name)


def _sorted_out(trial: Read, belongs: Callable[[Pair], str | None]) -> Read:
    strange = belongs(trial.pair) if trial.pair else None
    return Read(None, strange, trial.name) if strange else trial


def _checked(trial: Read, make: Callable[[Iterable[Pair]], Any]) -> Read:
    """The trial, if something can be made of it alone."""
    try:
        make([trial.pair] if trial.pair else [])
    except DAMAGED as error:
        return Read(None, f"{trial.name}: its result cannot be read ({type(error).__name__}: {error})", trial.name)
    return trial


def _failure(path: Path) -> str:
    try:
        error = json.loads((path / "error.json").read_text(encoding="utf-8"))
        kind = error.get("type") or error.get("error") or "error"
        return f"failed with {kind}: {error.get('message', 'no message')}"
    except FileNotFoundError:
        return "not finished"
    except (OSError, ValueError, AttributeError):
        return "failed; its error.json cannot be read"
