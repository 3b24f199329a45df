"""Studies that stop a comparison once it is decided: shown, or hardly to be shown with the cases that are left."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mithridate.core.schema import to_json
from mithridate.experiments import cells as grid
from mithridate.experiments.anytime import decided
from mithridate.experiments.cells import Cell, Pair, cell_name
from mithridate.experiments.job import Job
from mithridate.experiments.statistics import FEWEST_PAIRS
from mithridate.experiments.store import Store
from mithridate.experiments.study import Map, StudyErrors, check_folder, identify, register, run_study
from mithridate.experiments.trial import Trial

FIRST_LOOK = FEWEST_PAIRS + 3
"""Cases before the first look: with fewer nothing can be shown early."""
STEP = 2
"""Cases between looks."""


class Question(NamedTuple):
    """A comparison that a study is run for: names of two cells, the one expected to succeed more often first."""

    more: str
    less: str
    family: str
    """Comparisons that are read together."""


class Schedule:
    """What is left to run, look after look.

    Args:
        trials: All trials, by id.
        fingerprints: Of each one's data.

    Raises:
        ValueError: Trials of another kind: only poisoning trials are compared case by case.
    """

    def __init__(self, trials: dict[str, Job], fingerprints: dict[str, str]) -> None:
        if strange := [trial for trial in trials.values() if not isinstance(trial, Trial)]:
            raise ValueError(f"--until decided compares poisoning trials case by case; here is {strange[0].label()}")
        pairs = {name: _as_pair(trial, fingerprints[name]) for name, trial in trials.items()}
        self.trials = trials
        self.cell_of = {name: cell_name(trial, fingerprints[name]) for name, (trial, _) in pairs.items()}
        self.rank = _ranks(pairs, self.cell_of)
        self.planned: dict[str, int] = {}
        for cell in self.cell_of.values():
            self.planned[cell] = self.planned.get(cell, 0) + 1
        self.questions = _questions(grid.cells(pairs.values()))
        self.looks = range(FIRST_LOOK, max(self.planned.values(), default=0) + STEP, STEP)

    def wanted(self, look: int, finished: Sequence[Pair]) -> list[Job]:
        """Returns the trials of the first `look` cases of every cell that some open question is about."""
        active = self._active(finished)
        return [t for name, t in self.trials.items() if self.rank[name] < look and self.cell_of[name] in active]

    def open(self, finished: Sequence[Pair]) -> list[Question]:
        """Returns the questions that the finished trials do not decide."""
        found = {cell_name(*_known(cell)): cell for cell in grid.cells(finished)}
        left: list[Question] = []
        for family in dict.fromkeys(question.family for question in self.questions):
            asked = [question for question in self.questions if question.family == family]
            ready = [question for question in asked if question.more in found and question.less in found]
            arms = [_arms(found[question.more], found[question.less]) for question in ready]
            most = [min(self.planned[question.more], self.planned[question.less]) for question in ready]
            verdicts = dict(zip(ready, decided(arms, most), strict=True))
            left += [question for question in asked if not verdicts.get(question)]
        return left

    def _active(self, finished: Sequence[Pair]) -> set[str]:
        """Cells to go on with; those that nothing is compared with run to their end."""
        asked = {cell for question in self.questions for cell in question[:2]}
        left = {cell for question in self.open(finished) for cell in question[:2]}
        return left | (self.planned.keys() - asked)


def run_until_decided(
    trials: Iterable[Job],
    folder: str | Path,
    *,
    map: Map = builtins.map,
    device: str = "cpu",
    keep_models: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> list[Pair]:
    """Runs a study case by case and stops each comparison once it is decided; see `run_study`, whose arguments it has.

    Every attack is compared with the strictest control there is, every defended cell with the undefended one. A
    comparison ends when it is shown, all others of its kind considered (`anytime.anytime_paired`, Holm), or when the
    cases that are left would hardly show it (`anytime.chance_to_show`). The p-values and intervals of such a study hold
    at whatever case it stopped, so the chance of a false "shown" is that of a study that runs all cases. The folder
    remembers that it was run in this way.

    Returns:
        (trial.json, result.json) of each trial that was run, in the order given.

    Raises:
        ValueError: As `run_study`; or trials that are not compared case by case.
        StudyErrors: Some trials failed; raised after all others have run.
    """
    store = Store(check_folder(Path(folder)))
    named = identify(trials, store, device)
    fingerprints = {name: store.fingerprint(trial.data, device) for name, trial in named.items()}
    schedule = Schedule(named, fingerprints)
    register(store, set(fingerprints.values()), command, planned=schedule.planned)
    settings = {"map": map, "device": device, "keep_models": keep_models, "command": command, "progress": progress}
    errors: dict[str, dict[str, str]] = {}
    for look in schedule.looks:
        finished = _finished(named, store, schedule)
        if wanted := [t for t in schedule.wanted(look, finished) if not _failed(t, named, errors)]:
            try:
                run_study(wanted, folder, **settings)
            except StudyErrors as failed:
                errors |= {error["trial"]: error for error in failed.errors}
    finished = _finished(named, store, schedule)
    if errors:
        raise StudyErrors(store.folder, list(errors.values()), finished=len(finished))
    return finished


def _failed(trial: Job, named: dict[str, Job], errors: dict[str, dict[str, str]]) -> bool:
    return any(named[name] == trial for name in errors)


def _finished(named: dict[str, Job], store: Store, schedule: Schedule) -> list[Pair]:
    pairs = [store.result(name) for name in named if store.finished(name)]
    return grid.with_plan(pairs, schedule.planned)


def _as_pair(trial: Job, fingerprint: str) -> Pair:
    """A trial that has not run, as far as cells look at it."""
    return to_json(trial), {"data": {"fingerprint": fingerprint}, "outcome": {}}


def _known(cell: Cell) -> tuple[dict, str]:
    """Settings and data of a cell."""
    return cell.setting, cell.results[0]["data"]["fingerprint"]


def _ranks(pairs: dict[str, Pair], cell_of: dict[str, str]) -> dict[str, int]:
    """The place of each trial among those of its cell, by seed."""
    seeds: dict[str, list[int]] = {}
    for name, (trial, _) in pairs.items():
        seeds.setdefault(cell_of[name], []).append(trial["seed"])
    return {name: sorted(seeds[cell_of[name]]).index(trial["seed"]) for name, (trial, _) in pairs.items()}


def _questions(cells: Sequence[Cell]) -> list[Question]:
    """Attacks against their strictest control, defences against no defence."""
    found = []
    for cell in cells:
        if cell.control or cell.goal == "availability":
            continue
        own = cell_name(*_known(cell))
        controls = [grid.control_of(cell, cells, name) for name in grid.CONTROLS]
        control = next((one for one in controls if one), None)
        if control:
            found.append(Question(own, cell_name(*_known(control)), "control"))
        bare = grid.undefended(cell, cells)
        if bare:
            found.append(Question(cell_name(*_known(bare)), own, "undefended"))
    return found


def _arms(more: Cell, less: Cell) -> tuple[list[list[float]], list[list[float]]]:
    seeds = sorted(grid.paired(more, less))
    first, second = more.outcomes("success"), less.outcomes("success")
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]
