"""Study: many trials in one results folder. Finished trials are skipped, failed ones reported, none is lost."""

from __future__ import annotations

import builtins
import errno
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mithridate import __version__
from mithridate.core.devices import check_here
from mithridate.core.ray_workers import held
from mithridate.core.schema import SCHEMA, from_json, to_json
from mithridate.experiments.cells import with_plan
from mithridate.experiments.facts import versions
from mithridate.experiments.files import DiskFull, clear, locked, no_room, read_json, write_json
from mithridate.experiments.job import Job
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.live import shown
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.store import STAGES, UNREADABLE, Store
from mithridate.experiments.trial import Trial

Pair = tuple[dict[str, Any], dict[str, Any]]
"""trial.json and result.json, read."""
J = TypeVar("J", bound=Job)
DONE, BUSY = "done", "busy"
KINDS: dict[str, tuple[type[Job], str]] = {
    Trial.kind: (Trial, "poisoning trials"),
    LeakTrial.kind: (LeakTrial, "inversions of leaks"),
    Measurement.kind: (Measurement, "measurements"),
}
"""What a folder may hold many of, and its plural."""
COMPARED_VERSIONS = ("mithridate", "torch")
"""Versions that a folder should hold one of; another is a warning."""


class Map(Protocol):
    """Anything with the signature of builtin ``map``: processes(2), ray_workers(), a joblib adapter, ``map`` itself.

    Where the function could not be run to its end, the exception may stand for the result.
    """

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]: ...


class StudyErrors(RuntimeError):
    """Some trials of a study failed; the others are finished and stay so."""

    def __init__(self, folder: Path, errors: list[dict[str, str]], finished: int) -> None:
        self.folder, self.errors, self.finished = folder, errors, finished
        alike: dict[str, list[str]] = {}
        for error in errors:
            alike.setdefault(f"{error['type']}: {error['message']}", []).append(error["label"])
        lines = [
            f"  {labels[0]}{f' (and {len(labels) - 1} more)' if len(labels) > 1 else ''}: {message}"
            for message, labels in alike.items()
        ]
        super().__init__(
            f"{len(errors)} of {len(errors) + finished} trials failed; {finished} are finished in {folder}, and the "
            "next run tries only the failed ones again:\n" + "\n".join(lines)
        )


def run_study(
    trials: Iterable[Job],
    folder: str | Path,
    *,
    map: Map = builtins.map,
    device: str = "cpu",
    keep_models: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> list[Pair]:
    """Runs the trials that are not finished yet.

    Several processes, also on several machines with a shared folder, may run the same study at once: they share it out.

    Args:
        trials: What to run; equal ones count once.
        folder: Results folder; made if it does not exist. Run the same again to resume.
        map: Where trials run: builtin ``map``, ``processes(2)``, ``ray_workers()``, ...
        device: Where models run.
        keep_models: Store poisoned victims as well, under ``fits/``; ``store.load_model`` reads one.
        command: The command line that runs this study again, for the report.
        progress: Show a progress bar (on a terminal) or a line per trial (elsewhere), on standard error.

    Returns:
        (trial.json, result.json) of each trial, in the order given.

    Raises:
        ValueError: The folder holds results of other data or another schema, or is no results folder; or a map inside
            `on_devices`.
        StudyErrors: Some trials failed; raised after all others have run. Each left an ``error.json``.
        DiskFull: Nothing more can be written; raised at once, and finished work stays.
        KeyboardInterrupt: Ctrl-C; finished work stays.

    >>> import tempfile
    >>> from mithridate import Digits, NoAttack, Recipe, ThreatModel
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(epochs=1)
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ((_, result),) = run_study([control], folder, progress=False)
    >>> result["poison"]["count"], len(result["outcome"]["accuracy"])
    (0, 1)
    """
    check_here(map)
    store = Store(check_folder(Path(folder)))
    named = identify(trials, store, device)
    fingerprints = {store.fingerprint(trial.data, device) for trial in named.values()}
    study = register(store, fingerprints, command, kind_of(named.values()))
    errors: dict[str, dict[str, str]] = {}
    try:
        finished = sum(store.finished(name) for name in named)
        with shown(len(named), finished, lambda name: store.result(name)[1], progress=progress) as tell, held():
            for wait in (False, True):  # first what no other process is at, then wait for what they are at
                work = partial(run_one, store=store, device=device, keep_models=keep_models, wait=wait)
                missing = {n: t for n, t in named.items() if n not in errors and not store.finished(n)}
                items = ordered(missing, store, device)
                for (name, trial), outcome in zip(items, map(work, items), strict=True):
                    if (error := _noted(outcome, name, trial, store)) is not None:
                        errors[name] = error
                    if error is not None or outcome == DONE:
                        tell(name, trial, error)
    except KeyboardInterrupt:
        done = sum(store.finished(name) for name in named)
        raise KeyboardInterrupt(
            f"stopped; {done} of {len(named)} trials are finished in {store.folder}; run the same again to resume"
        ) from None
    except Exception as error:
        if not no_room(error):
            raise
        done = sum(store.finished(name) for name in named)
        reason = (
            f"nothing more can be written ({error}); {done} of {len(named)} trials are finished and stay: free some "
            "room, and run the same again to go on"
        )
        raise DiskFull(errno.ENOSPC, reason, str(store.folder)) from error
    if errors:
        raise StudyErrors(store.folder, list(errors.values()), finished=len(named) - len(errors))
    return with_plan([store.result(name) for name in named], study.get("planned"))


def run_one(item: tuple[str, Job], *, store: Store, device: str, keep_models: bool, wait: bool) -> str | dict[str, str]:
    """Runs one trial and stores its result, or its error.

    Args:
        item: Id and trial.
        store: The results folder.
        device: Where models run.
        keep_models: Store poisoned victims as well.
        wait: Where another process is at it: wait for the result, instead of leaving it.

    Returns:
        ``DONE``, ``BUSY`` (another process is at it), or the content of ``error.json``.
    """
    name, trial = item
    folder = store.trial_folder(name)
    with locked(folder.with_name(f"{name}.lock"), wait=wait) as mine:
        if not mine:
            return BUSY
        if store.finished(name):
            return DONE
        clear(folder)
        write_json(folder / "trial.json", to_json(trial))
        try:
            result = trial.run(store, device, keep_models=keep_models)
        except Exception as error:  # whatever an attack or a user's model raises: the other trials go on
            if no_room(error):
                raise
            return _store_error(error, name, trial, store)
        write_json(folder / "result.json", result.to_json())
        (folder / "error.json").unlink(missing_ok=True)
    return DONE


def kind_of(trials: Iterable[Job]) -> str:
    """Returns the one kind of some trials.

    Raises:
        ValueError: There are several.
    """
    kinds = sorted({trial.kind for trial in trials}) or [Trial.kind]
    if len(kinds) > 1:
        raise ValueError(
            f"a study holds one kind of trials, but here are {' and '.join(KINDS[kind][1] for kind in kinds)}; run "
            "each kind into a folder of its own"
        )
    return kinds[0]


def read_trial(content: dict[str, Any]) -> Job:
    """Returns the trial that a ``trial.json`` describes, of whatever kind."""
    if "type" in content:
        return from_json(content, Measurement)
    return from_json(content, LeakTrial if "client" in content else Trial)


def load_results(folder: str | Path) -> list[Pair]:
    """Returns (trial.json, result.json) of every finished trial of a results folder.

    Raises:
        ValueError: No results folder, a damaged file, or another schema.

    >>> import tempfile
    >>> from mithridate import Digits, NoAttack, Recipe, ThreatModel
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(epochs=1)
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = run_study([control], folder, progress=False)
    ...     ((trial, result),) = load_results(folder)
    >>> trial["attack"]["type"], result["poison"]["count"]
    ('no-attack', 0)
    """
    folder = Path(folder)
    if not (folder / "study.json").exists() and not (folder / "trials").is_dir():
        raise ValueError(f"{folder} is no results folder: it has no study.json; give the --out of a run")
    found = []
    for path in sorted((folder / "trials").glob("*/result.json")):
        trial, result = read_json(path.with_name("trial.json")), read_json(path)
        check_schema(folder, result)
        found.append((trial, result))
    try:
        study = read_json(folder / "study.json")
    except UNREADABLE:  # reports list it
        study = {}
    return with_plan(found, study.get("planned"))


def check_schema(folder: Path, result: Any) -> None:
    """Checks that this version reads a ``result.json``.

    Raises:
        ValueError: It has another schema; the message says which, who wrote it and what to do.
    """
    content = result if isinstance(result, dict) else {}
    schema, facts = content.get("schema"), content.get("environment")
    if schema == SCHEMA:
        return
    version = facts.get("mithridate") if isinstance(facts, dict) else None
    writer = f"mithridate {version}" if version else "the version that wrote them"
    newer = isinstance(schema, int) and schema > SCHEMA
    todo = "update mithridate" if newer else f"read them with {writer}, or run the study again into another folder"
    raise ValueError(
        f"{folder} holds results of schema {schema}{f', written by mithridate {version}' if version else ''}; this "
        f"version, {__version__}, reads schema {SCHEMA}: {todo}"
    )


def load_errors(folder: str | Path) -> list[dict[str, str]]:
    """Returns the ``error.json`` of every trial that failed and has not succeeded since."""
    paths = sorted((Path(folder) / "trials").glob("*/error.json"))
    return [read_json(path) for path in paths if not path.with_name("result.json").exists()]


# --- order -----------------------------------------------------------------------------------------------------------


def identify(trials: Iterable[J], store: Store, device: str = "cpu") -> dict[str, J]:
    """Returns the trials by id, each once, in their order. Loads the data: its content is part of the ids."""
    return {store.identity(trial.work(store.fingerprint(trial.data, device))): trial for trial in trials}


def ordered(trials: dict[str, J], store: Store, device: str = "cpu") -> list[tuple[str, J]]:
    """Orders trials so that workers rarely wait for each other.

    What all share comes first (clean controls, whose victims all trials compare with); then one trial of each piece of
    shared work (a poison, the model behind a leak); then those that find it made.
    """
    seen: set[str] = set()

    def turn(trial: J) -> int:
        shared = trial.shared_work(store.fingerprint(trial.data, device))
        if shared is None:
            return 0
        name = store.identity(shared)
        first = name not in seen
        seen.add(name)
        return 1 if first else 2

    turns = {name: turn(trial) for name, trial in trials.items()}
    return sorted(trials.items(), key=lambda item: turns[item[0]])


# --- the folder ------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> Path:
    """Returns the folder if results may go there.

    Raises:
        ValueError: A file, or a folder of other things.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the results")
    inside = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    if inside and not any(name in STAGES or name.startswith("study.") for name in inside):
        raise ValueError(
            f"{folder} holds other things ({', '.join(sorted(inside)[:3])}) and no results; give a new or empty folder "
            "(--out)"
        )
    return folder


def register(
    store: Store,
    fingerprints: set[str],
    command: str | None,
    kind: str = Trial.kind,
    planned: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Compares the folder's ``study.json`` with this study, writes it and returns it.

    Args:
        store: The results folder.
        fingerprints: Of the data.
        command: What runs the study again; None: what is there.
        kind: Of the trials.
        planned: Of a study that stops comparisons once they are decided: cases by `cells.cell_name`.

    Raises:
        ValueError: Other data, another schema or trials of another kind; the message names both.
    """
    path = store.folder / "study.json"
    with locked(path.with_suffix(".lock"), wait=True):
        clear(store.folder, f"{path.name}.*")
        old = read_json(path) if path.exists() else {"schema": SCHEMA, "fingerprints": [], "versions": versions()}
        if not isinstance(old, dict) or not {"schema", "fingerprints", "versions"} <= old.keys():
            raise ValueError(f"{path} was not written by mithridate; give another folder (--out)")
        if old["schema"] != SCHEMA:
            raise ValueError(
                f"{store.folder} holds results of schema {old['schema']}, this version writes schema {SCHEMA}; "
                "give another folder (--out)"
            )
        if old.get("kind", Trial.kind) != kind and old["fingerprints"]:
            raise ValueError(
                f"{store.folder} holds {KINDS[old.get('kind', Trial.kind)][1]}, and these are {KINDS[kind][1]}; give "
                "another folder (--out)"
            )
        if old["fingerprints"] and not fingerprints & set(old["fingerprints"]):
            raise ValueError(
                f"{store.folder} holds results on data {', '.join(old['fingerprints'])}, but the data now are "
                f"{', '.join(sorted(fingerprints))}; give another folder (--out), or the data it was made with"
            )
        _compare_versions(store.folder, old["versions"])
        new = {
            "schema": SCHEMA,
            "kind": kind,
            "fingerprints": sorted(fingerprints | set(old["fingerprints"])),
            "versions": versions(),
            "command": command if command is not None else old.get("command"),
        }
        if planned or old.get("planned"):
            new["planned"] = (old.get("planned") or {}) | (planned or {})
        write_json(path, new)
    return new


def _compare_versions(folder: Path, old: dict[str, str]) -> None:
    new = versions()
    changed = [f"{n} {old.get(n)} (now {new[n]})" for n in COMPARED_VERSIONS if old.get(n) != new[n]]
    if changed:
        warnings.warn(
            f"{folder} holds results made with {', '.join(changed)}; new ones may differ for that reason alone",
            stacklevel=3,
        )


def _store_error(error: BaseException, name: str, trial: Job, store: Store) -> dict[str, str]:
    content = {
        "trial": name,
        "label": trial.label(),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_json(store.trial_folder(name) / "error.json", content)
    return content


def _noted(outcome: Any, name: str, trial: Job, store: Store) -> dict[str, str] | None:
    """Returns the error of a trial, stored; None where there is none."""
    if isinstance(outcome, BaseException) and no_room(outcome):
        raise outcome
    if isinstance(outcome, BaseException):  # the worker could not even report it
        write_json(store.trial_folder(name) / "trial.json", to_json(trial))
        return _store_error(outcome, name, trial, store)
    return outcome if isinstance(outcome, dict) else None
