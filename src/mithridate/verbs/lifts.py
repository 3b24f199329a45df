"""What lift does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table as Grid

from mithridate.core.extras import extra
from mithridate.core.schema import to_json
from mithridate.experiments.facts import environment
from mithridate.experiments.files import write_json
from mithridate.experiments.lifting_pictures import painted, write_labels, write_side_by_side, write_trade_off
from mithridate.experiments.lifting_tasks import Denoise, Segment, Stereo, Task
from mithridate.experiments.liftings import Outcome, Solving, measured, side_by_side
from mithridate.lifting.discretisations import CELLS, CutPursuit, Discretisation, Pixels, Slic
from mithridate.verbs.terminal import say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.lifts import DenoiseOptions, LiftOptions, SegmentOptions, StereoOptions

TASKS: dict[str, type[Task]] = {"segment": Segment, "stereo": Stereo, "denoise": Denoise}
KINDS = ("none", "slic", "cut-pursuit")
SHARE = 5
"""Superpixels of so many pixels at least, unless the user says how many."""


def lift(options: LiftOptions, command: str) -> int:
    """Does what `mithridate lift` says."""
    told: Any = options.task
    start_torch(told.device, None)
    if told.threads < 1:
        raise ValueError(f"{told.threads} threads; give 1 or more")
    if told.out.is_file():
        raise ValueError(f"{told.out} is a file; give a folder for the results (--out)")
    task = _task(told)
    solving = Solving(
        tolerance=told.tolerance,
        iterations=told.iterations,
        dtype=told.dtype,
        device=told.device,
        sublabels=getattr(told, "sublabels", 1),  # the labels of segment have no order
    )
    task.problems()  # mistakes are found before anything runs
    if isinstance(task, Stereo):
        task.known()
    height, width, _ = task.picture().shape
    several = list(_discretisations(told, height * width))
    outcomes = _solved(task, several, solving, told.threads)
    _write(told.out, task, outcomes, solving, command)
    if told.json:
        say(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
        return 0
    say(f"written: {told.out} (picture.png, labels, result.json)")
    say(f"again:   {command}")
    _print(outcomes, solving.tolerance)
    return 0


def _solved(task: Task, several: Sequence[Discretisation], solving: Solving, threads: int) -> list[Outcome]:
    if len(several) > 1:
        return side_by_side(task, several, solving, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [measured((task, several[0], solving))]
    finally:
        torch.set_num_threads(before)


# --- from text to objects --------------------------------------------------------------------------------------------


def _task(told: SegmentOptions | StereoOptions | DenoiseOptions) -> Task:
    """The task of the same name; its settings are the options that are called so."""
    kind = TASKS[told.name]
    return kind(**{field.name: getattr(told, field.name) for field in fields(kind)})


def _discretisations(told: SegmentOptions | StereoOptions | DenoiseOptions, pixels: int) -> Iterator[Discretisation]:
    """Every kind at every number of cells, the pixels once."""
    usual = max(1, min(CELLS, pixels // SHARE))
    named = told.superpixels or _usual(told)
    kinds = dict.fromkeys(KINDS if "compare" in named else named)
    for kind in kinds:
        if kind == "none":
            yield Pixels(neighbours=told.neighbours)
            continue
        for cells in dict.fromkeys(told.cells or (usual,)):
            if cells >= pixels:
                raise ValueError(
                    f"{cells:,} cells for an image of {pixels:,} pixels; give fewer, or --superpixels none"
                )
            if kind == "slic":
                extra("skimage.segmentation", "image", "SLIC")
                yield Slic(cells=cells, compactness=told.compactness, neighbours=told.neighbours)
            else:
                yield CutPursuit(cells=cells, neighbours=told.neighbours)


def _usual(told: SegmentOptions | StereoOptions | DenoiseOptions) -> tuple[str, ...]:
    """What is solved on where nobody says: superpixels where there are many labels, or where their number is given."""
    if told.cells is None and not isinstance(_task(told), Stereo):
        return ("none",)
    return ("slic",) if find_spec("skimage") else ("cut-pursuit",)


# --- from results to files and text ----------------------------------------------------------------------------------


def _write(out: Path, task: Task, outcomes: Sequence[Outcome], solving: Solving, command: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        Image.fromarray(painted(task, outcome)).save(out / f"{outcome.name}.png")
        for channel, labels in enumerate(outcome.labels):
            number = f"-{channel}" if len(outcome.labels) > 1 else ""
            write_labels(out / f"{outcome.name}-labels{number}.png", labels)
    write_side_by_side(out / "picture.png", task, outcomes)
    (out / "curve.png").unlink(missing_ok=True)  # of another run
    if len(outcomes) > 1:
        write_trade_off(out / "curve.png", outcomes)
    content = {
        "command": command,
        "task": {"name": type(task).__name__.lower(), **to_json(task)},
        "solving": to_json(solving),
        "outcomes": [outcome.to_json() for outcome in outcomes],
        "environment": environment(solving.device),
    }
    write_json(out / "result.json", content)


def _print(outcomes: Sequence[Outcome], tolerance: float) -> None:
    names = ["on", "cells", "energy", "above best", "gap", "iterations"]
    names += ["cells, s", "costs, s", "solve, s", "memory, MiB"]
    rows = []
    for one in outcomes:
        numbers = [f"{one.cells:,}", f"{one.energy:,.2f}", f"<= {max(0.0, one.excess):.2%}", f"{one.gap:.1e}"]
        seconds = [f"{one.seconds[stage]:.2f}" for stage in ("graph", "costs", "solve")]
        memory = "" if one.memory_mb is None else f"{one.memory_mb:.0f}"
        rows.append([one.name, *numbers, f"{one.iterations:,}", *seconds, memory])
    _table(names, rows)
    for one in outcomes:
        if one.gap > tolerance:
            why = f"stopped after {one.iterations:,} iterations with a gap above {tolerance:g}"
            say(f"{one.name}: {why}; more: --iterations")
    if "visible" in outcomes[0].judged:
        names = ["against the truth", "pixels", "wrong by > 1", "by > 2", "mean error"]
        _table(names, [row for one in outcomes for row in _errors(one)])
    if "psnr" in outcomes[0].judged:
        rows = [[one.name, *(_decibels(one.judged[key]) for key in ("psnr_before", "psnr"))] for one in outcomes]
        _table(["against the truth", "before, dB", "after, dB"], rows)
    base = next((one for one in outcomes if one.name == "pixels"), None)
    for one in outcomes:
        if base is not None and one is not base:
            say(_ratios(one, base))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for name in names:
        grid.add_column(name, justify="left" if name == names[0] else "right")
    for row in rows:
        grid.add_row(*row)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=140)).print(grid)


def _decibels(ratio: float | None) -> str:
    return "no error" if ratio is None else f"{ratio:.2f}"


def _errors(outcome: Outcome) -> Iterator[list[str]]:
    for where, words in (("visible", "visible in both"), ("all", "all known")):
        found = outcome.judged[where]
        shares = [f"{found[name]:.2%}" for name in ("bad1", "bad2")]
        yield [f"{outcome.name}, {words}", f"{found['pixels']:,}", *shares, f"{found['error']:.3f}"]


def _ratios(one: Outcome, base: Outcome) -> str:
    energy = one.energy / base.energy - 1 if base.energy else math.nan
    words = [f"energy {energy:+.2%}", f"{_factor(base.total, one.total)} the time"]
    if one.memory_mb and base.memory_mb:
        words.append(f"{_factor(base.memory_mb, one.memory_mb)} the memory")
    return f"{one.name} against pixels: {', '.join(words)}"


def _factor(base: float, one: float) -> str:
    """How many times the base, as people say it."""
    return f"1/{base / one:.1f}" if base >= one else f"{one / base:.1f} times"
