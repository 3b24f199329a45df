"""How far a study is, while it runs: a bar with what has come out so far on a terminal, a line per trial elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mithridate.core.progress import quiet
from mithridate.experiments.job import Job
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.statistics import percent

A_DAY = 86_400.0
"""Seconds over which the speed is averaged; rich's half minute is shorter than many a trial, and then nothing is left
to foretell from."""


class Tell(Protocol):
    """Takes note of a trial that has ended, with its error or none."""

    def __call__(self, name: str, trial: Job, error: dict[str, str] | None, /) -> None: ...


@contextlib.contextmanager
def shown(
    total: int, done: int, read: Callable[[str], dict[str, Any]], *, progress: bool, console: Console | None = None
) -> Iterator[Tell]:
    """Shows how far a study is, on standard error.

    Args:
        total: Trials of the study.
        done: How many were finished before.
        read: Id of a finished trial -> its result.json.
        progress: Show it at all.
        console: Where, if not on standard error.
    """
    console = console or Console(stderr=True, quiet=not progress, highlight=False, markup=False, soft_wrap=True)
    label, so_far = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[so_far]}"))
    made = (label, BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"), so_far)
    alive = progress and console.is_terminal
    with quiet(), Progress(*made, console=console, disable=not alive, speed_estimate_period=A_DAY) as bar:
        task = bar.add_task("trials", total=total, completed=done, so_far="")
        tally = Tally()

        def tell(name: str, trial: Job, error: dict[str, str] | None, /) -> None:
            nonlocal done
            done += 1
            if alive:
                tally.add(trial, None if error else _read(read, name))
                bar.update(task, advance=1, description=trial.label(), so_far=str(tally))
            if error is not None or not console.is_terminal:
                failed = "" if error is None else f": failed: {error['type']}: {error['message']}"
                console.print(f"[{done}/{total}] {trial.label()}{failed}")

        yield tell


def _read(read: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
    """The result; nothing where it cannot be read, which is not for a progress bar to complain of."""
    try:
        return dict(read(name))
    except (OSError, ValueError):
        return {}


class Tally:
    """What has come out so far: how many trials failed, and the outcomes of the cell that the last one belongs to.

    Rates without intervals, to see whether a study does what was meant; the table is what to read afterwards.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.last = ""
        self.outcomes: dict[str, tuple[float, int]] = {}

    def add(self, trial: Job, result: dict[str, Any] | None) -> None:
        """Counts a trial; without a result it failed."""
        if result is None:
            self.failed += 1
            return
        self.last = trial.label().removesuffix(f", seed {trial.seed}")
        hits, count = self.outcomes.get(self.last, (0.0, 0))
        more, of = _hits(result)
        self.outcomes[self.last] = (hits + more, count + of)

    def __str__(self) -> str:
        hits, count = self.outcomes.get(self.last, (0.0, 0))
        rate = [f"{percent(hits / count)} % of {count:,} so far"] if count else []
        return ", ".join([f"{self.failed} failed"] * bool(self.failed) + rate)


def _hits(result: dict[str, Any]) -> tuple[float, int]:
    """Successes of outcomes: images picked out of a leak, else what the attacker wanted."""
    outcome = {} if result.get("kind") == Measurement.kind else result.get("outcome") or {}
    if "rank" in outcome:
        return sum(rank == 1 for rank in outcome["rank"]), len(outcome["rank"])
    values = [value for victim in outcome.get("success") or () for value in victim if value is not None]
    return sum(values), len(values)
