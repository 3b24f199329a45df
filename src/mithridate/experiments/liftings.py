"""Lift: one task on pixels and on superpixels, measured side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mithridate.core.schema import name_of, to_json
from mithridate.core.workers import processes
from mithridate.experiments.facts import peak_memory_mb
from mithridate.experiments.lifting_tasks import Task
from mithridate.lifting.discretisations import CutPursuit, Discretisation, Lifted, Slic, lift
from mithridate.lifting.energy import Potts
from mithridate.lifting.graph import Graph
from mithridate.lifting.problems import Problem

TYPES = {"float32": torch.float32, "float64": torch.float64}
SMALL = (12, 16)
"""Size of the problem that is solved first: imports and first calls are no part of what is measured."""


@dataclass(frozen=True, kw_only=True)
class Solving:
    """How the relaxation is solved."""

    tolerance: float = 1e-3
    iterations: int = 1500
    dtype: str = "float32"
    device: str = "cpu"
    sublabels: int = 1
    """Labels per interval of the relaxation; more than 1 for ordered labels only."""

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"the tolerance is {self.tolerance:g}; give more than 0, as 1e-3")
        if self.iterations < 1:
            raise ValueError(f"{self.iterations} iterations; give 1 or more")
        if self.sublabels < 1:
            raise ValueError(f"{self.sublabels} sublabels; give 1 for a relaxation with every label, or more")

    def lift(self, problem: Problem, on: Discretisation | Graph) -> Lifted:
        """Solves a problem so."""
        return lift(
            problem,
            on,
            sublabels=self.sublabels,
            tolerance=self.tolerance,
            iterations=self.iterations,
            dtype=TYPES[self.dtype],
            device=self.device,
        )


@dataclass(frozen=True)
class Outcome:
    """One task on one discretisation, in plain numbers."""

    name: str
    discretisation: dict[str, Any]
    cells: int
    energy: float
    """Of the labels on the pixel grid, summed over channels."""
    cell_energy: float
    """Of the same labels on the graph they were found on."""
    primal: float
    """Of the relaxed solution."""
    dual: float
    """No labelling of the cells has less energy."""
    iterations: int
    seconds: dict[str, float]
    """`graph`: making cells; `costs`: their costs; `solve`."""
    memory_mb: float | None
    """How far the process grew while it made costs and cells and solved; None where the system does not say."""
    judged: dict[str, Any]
    """What the truth says."""
    history: list[list[tuple[int, float, float]]]
    """(iteration, primal, dual) of each channel."""
    labels: np.ndarray
    """[channels, H, W]."""
    colours: np.ndarray | None = None
    """[L, 3] of a segmentation."""

    @property
    def total(self) -> float:
        """Seconds from images to labels."""
        return sum(self.seconds.values())

    @property
    def gap(self) -> float:
        """Relative duality gap: how far the relaxed solution may be from the best one."""
        return (self.primal - self.dual) / max(1e-12, abs(self.primal))

    @property
    def excess(self) -> float:
        """How far the energy of the labels may be above that of the best ones on these cells, as a share of it."""
        return (self.cell_energy - self.dual) / max(1e-12, abs(self.cell_energy))

    def to_json(self) -> dict[str, Any]:
        """Returns all of it but the pixels."""
        kept = {name: value for name, value in vars(self).items() if name not in ("labels", "colours")}
        return {**kept, "gap": self.gap, "excess": self.excess, "total_seconds": self.total}


def title(discretisation: Discretisation) -> str:
    """Returns what a discretisation is called in tables and file names.

    >>> title(Slic(cells=500)), title(CutPursuit(weight=0.1))
    ('slic-500', 'cut-pursuit-w0.1')
    """
    name = name_of(discretisation)
    if isinstance(discretisation, CutPursuit) and discretisation.weight is not None:
        return f"{name}-w{discretisation.weight:g}"
    cells = getattr(discretisation, "cells", None)
    return name if cells is None else f"{name}-{cells}"


def measured(work: tuple[Task, Discretisation, Solving]) -> Outcome:
    """Does a task on a discretisation and measures it; a small problem is solved first, which does not count."""
    task, discretisation, solving = work
    _rehearse(discretisation, solving)
    before = _memory()
    problems = task.problems()
    graph: Discretisation | Graph = discretisation
    found: list[Lifted] = []
    for problem in problems:  # channels share the cells
        found.append(solving.lift(problem, graph))
        graph = found[0].graph
    after = _memory()
    labels = np.stack([one.labels.numpy() for one in found]).astype(np.int32)
    colours = problems[0].colours
    return Outcome(
        name=title(discretisation),
        discretisation=to_json(discretisation),
        cells=found[0].cells,
        energy=sum(one.energy for one in found),
        cell_energy=sum(one.cell_energy for one in found),
        primal=sum(one.solution.primal for one in found),
        dual=sum(one.solution.dual for one in found),
        iterations=max(one.solution.iterations for one in found),
        seconds={stage: sum(one.seconds[stage] for one in found) for stage in found[0].seconds},
        memory_mb=None if before is None or after is None else round(after[1] - before[0], 1),
        judged=task.judged(labels),
        history=[[(int(at), float(primal), float(dual)) for at, primal, dual in one.solution.history] for one in found],
        labels=labels,
        colours=None if colours is None else colours.cpu().numpy(),
    )


def side_by_side(
    task: Task, discretisations: Sequence[Discretisation], solving: Solving, threads: int = 1
) -> list[Outcome]:
    """Measures a task on each discretisation, one after the other, each in a process of its own.

    The largest memory of a process never falls again, so that a second measurement in it would be hidden by the first.
    """
    found: list[Outcome] = []
    for discretisation in discretisations:
        (outcome,) = processes(1, threads=threads, retries=0)(measured, [(task, discretisation, solving)])
        if isinstance(outcome, BaseException):
            raise outcome
        found.append(outcome)
    return found


def _rehearse(discretisation: Discretisation, solving: Solving) -> None:
    rng = torch.Generator().manual_seed(0)
    small = Problem.from_costs(torch.rand(*SMALL, 4, generator=rng), Potts(weight=0.1))
    kind: dict[str, Any] = {"cells": 20} if isinstance(discretisation, Slic | CutPursuit) else {}
    few = type(discretisation)(neighbours=discretisation.neighbours, **kind)
    Solving(iterations=50, dtype=solving.dtype, device=solving.device).lift(small, few)


def _memory() -> tuple[float, float] | None:
    """MiB that the process holds now, and the most it ever held.

    Linux counts the latter anew in each program, but `getrusage` also tells what its parent held when it was started.
    """
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        if "VmHWM" in lines and "VmRSS" in lines:
            now, most = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
            return now, most
    most = peak_memory_mb()
    return None if most is None else (most, most)
