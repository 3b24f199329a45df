"""Progress of a study: a line per trial where no terminal is, a bar with what has come out so far where one is."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from mithridate.core.sources import Digits
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.live import Tally, shown
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.poisoning.defenses.mixup import Mixup
from tests.experiments.fakes import noise_trial, recipe

ERROR = {"type": "ValueError", "message": "no [bold]luck[/]"}


def outcome(*hits: int | None) -> dict[str, Any]:
    return {"outcome": {"success": [list(hits)]}}


def told(results: list[dict[str, Any] | None], *, terminal: bool, progress: bool = True, done: int = 0) -> str:
    out = io.StringIO()
    plain: dict[str, Any] = {"highlight": False, "markup": False, "color_system": None}
    console = Console(file=out, force_terminal=terminal, width=160, quiet=not progress, **plain)

    def read(name: str) -> dict[str, Any]:
        result = results[int(name)]
        if result is None:
            raise ValueError("damaged")
        return result

    with shown(len(results), done, read, progress=progress, console=console) as tell:
        for number, result in enumerate(results):
            tell(str(number), noise_trial(number), ERROR if result == {} else None)
    return out.getvalue()


def test_elsewhere_a_line_per_trial() -> None:
    assert told([outcome(1), {}, outcome(0)], terminal=False, done=2).splitlines() == [
        "[3/3] random-noise, seed 0",
        "[4/3] random-noise, seed 1: failed: ValueError: no [bold]luck[/]",
        "[5/3] random-noise, seed 2",
    ]


def test_nothing_where_none_was_asked_for() -> None:
    assert told([outcome(1), {}], terminal=False, progress=False) == ""
    assert told([outcome(1), {}], terminal=True, progress=False) == ""


def test_a_terminal_shows_what_has_come_out_so_far_and_what_failed() -> None:
    text = told([outcome(1, 1), {}, None, outcome(0, 0)], terminal=True)
    last = [line for line in text.splitlines() if "4/4" in line][-1]
    assert "random-noise, seed 3" in last
    assert "1 failed, 50 % of 4 so far" in last
    assert "random-noise, seed 1: failed: ValueError: no [bold]luck[/]" in text


def test_each_cell_is_counted_for_itself() -> None:
    tally = Tally()
    tally.add(noise_trial(0), outcome(1, 1))
    assert str(tally) == "100 % of 2 so far"
    defended = replace(noise_trial(0), defenses=(Mixup(),))
    tally.add(defended, outcome(0, None, 1))
    assert str(tally) == "50 % of 2 so far"
    tally.add(noise_trial(1), outcome(0, 0))
    assert str(tally) == "50 % of 4 so far"
    tally.add(noise_trial(2), {})
    assert str(tally) == "50 % of 4 so far"


def test_of_leaks_the_images_picked_out_are_counted() -> None:
    tally = Tally()
    leak = LeakTrial(data=Digits(train=100), recipe=recipe(), attack=InvertingGradients(steps=2))
    tally.add(leak, {"outcome": {"rank": [1, 5, 1, 2]}})
    assert str(tally) == "50 % of 4 so far"


def test_the_time_left_is_foretold_from_trials_that_take_minutes() -> None:
    now = [0.0]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None, get_time=lambda: now[0])
    with shown(10, 0, lambda _: outcome(1), progress=True, console=console) as tell:
        for number in range(3):
            now[0] += 600
            tell(str(number), noise_trial(number), None)
    assert "1:10:00 left" in out.getvalue()
