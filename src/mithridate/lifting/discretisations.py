"""What a problem is solved on: every pixel, or a graph of superpixels; and `lift`, which does so and judges on pixels.

A labelling that is constant on cells is a labelling of the pixels, and its energy on the graph is exactly its energy
on the pixel grid. So superpixels only take away labellings: what they cost is how much higher the energy ends, and what
they save is time and memory.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.schema import Choice
from mithridate.lifting.cut_pursuit import cut_pursuit, cut_pursuit_cells
from mithridate.lifting.energy import energy
from mithridate.lifting.graph import Graph, pixel_grid
from mithridate.lifting.problems import Problem
from mithridate.lifting.solver import Solution, solve
from mithridate.lifting.superpixels import slic

CELLS = 2000
"""How many superpixels, unless the user says."""

# --- choices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Discretisation(Choice, ABC):
    """What a problem is solved on; named `pixels`, `slic` or `cut-pursuit`."""

    neighbours: int = 4
    """4: lengths along the axes. 8: nearer to the true length of a boundary in any direction."""

    def __post_init__(self) -> None:
        if self.neighbours not in (4, 8):
            raise ValueError(f"{self.neighbours} neighbours; a pixel has 4 or 8")

    @abstractmethod
    def graph(self, image: Tensor) -> Graph:
        """Returns the graph of an image [H, W, 3] in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Pixels(Discretisation):
    """Every pixel is a cell.

    >>> len(Pixels().graph(torch.zeros(2, 3, 3)))
    6
    """

    def graph(self, image: Tensor) -> Graph:
        """Returns the pixel grid."""
        return pixel_grid(image.shape[0], image.shape[1], neighbours=self.neighbours)


@dataclass(frozen=True, kw_only=True)
class Slic(Discretisation):
    """Superpixels of about one size (k-means in colour and place); needs scikit-image.

    >>> Slic(cells=0)
    Traceback (most recent call last):
        ...
    ValueError: 0 cells; give 1 or more
    """

    cells: int = CELLS
    """About how many."""
    compactness: float = 10.0
    """How much place counts beside colour: large values make squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_cells(self.cells)
        if not self.compactness > 0:
            raise ValueError(f"compactness is {self.compactness:g}; give more than 0")

    def graph(self, image: Tensor) -> Graph:
        """Returns the graph of the superpixels."""
        _check_fewer(self.cells, image)
        return slic(image, self.cells, compactness=self.compactness, neighbours=self.neighbours)


@dataclass(frozen=True, kw_only=True)
class CutPursuit(Discretisation):
    """Cells of nearly one colour, as large as the image lets them be.

    >>> CutPursuit(cells=500, weight=0.1)
    Traceback (most recent call last):
        ...
    ValueError: cells and weight both say how many cells there are; give one of the two
    """

    cells: int | None = None
    """About how many; the weight is searched for. Default: 2000."""
    weight: float | None = None
    """Cost of a boundary per pixel edge, in squared distance of colours, instead of `cells`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells is not None and self.weight is not None:
            raise ValueError("cells and weight both say how many cells there are; give one of the two")
        if self.weight is None:
            _check_cells(CELLS if self.cells is None else self.cells)
        elif not self.weight > 0:
            raise ValueError(f"weight is {self.weight:g}; give more than 0")

    def graph(self, image: Tensor) -> Graph:
        """Returns the graph of the cells."""
        if self.weight is not None:
            return cut_pursuit(image, self.weight, neighbours=self.neighbours)
        cells = CELLS if self.cells is None else self.cells
        _check_fewer(cells, image)
        return cut_pursuit_cells(image, cells, neighbours=self.neighbours)


def _check_cells(cells: int) -> None:
    if cells < 1:
        raise ValueError(f"{cells} cells; give 1 or more")


def _check_fewer(cells: int, image: Tensor) -> None:
    pixels = image.shape[0] * image.shape[1]
    if cells >= pixels:
        raise ValueError(f"{cells:,} cells for an image of {pixels:,} pixels; give fewer, or solve on the pixels")


# --- doing it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lifted:
    """What `lift` returns."""

    labels: Tensor
    """[H, W] int64, on the CPU."""
    energy: float
    """Of the labels, on the pixel grid."""
    cell_energy: float
    """Of the labels, on the graph they were found on: the same number, up to rounding, if graph and grid agree."""
    graph: Graph
    solution: Solution
    """On the graph: labels of cells, relaxed solution, gap, history."""
    seconds: dict[str, float]
    """`graph`: making cells. `costs`: their costs. `solve`."""

    @property
    def cells(self) -> int:
        """Cells of the graph."""
        return len(self.graph)


def lift(
    problem: Problem,
    discretisation: Discretisation | Graph,
    *,
    sublabels: int = 1,
    tolerance: float = 1e-3,
    iterations: int = 1500,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Lifted:
    """Solves the convex relaxation of a problem on a discretisation, rounds it and judges the labels on the pixels.

    Args:
        problem: What is solved.
        discretisation: On what; a graph that was made before serves several problems.
        sublabels: Labels per interval of the relaxation (`solve`); the labels that are found are the problem's own.
        tolerance: Of the relative duality gap, at which the solver stops.
        iterations: At most.
        dtype: Of the solver.
        device: Of the solver; cells are made on the CPU.

    Raises:
        ValueError: settings that do not fit the image.
        MissingExtra: SLIC without scikit-image.

    >>> costs = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    >>> from mithridate.lifting.energy import Potts
    >>> found = lift(Problem.from_costs(costs, Potts(weight=0.1)), Pixels())
    >>> found.labels, round(found.energy, 6)
    (tensor([[0, 1]]), 0.1)
    """
    clock = time.perf_counter
    start = clock()
    graph = discretisation if isinstance(discretisation, Graph) else discretisation.graph(problem.guide.cpu())
    made = clock()
    costs = cell_costs(problem, graph, dtype).to(device)
    averaged = clock()
    values = None if problem.values is None else problem.values.to(device=device, dtype=dtype)
    solution = solve(
        graph,
        costs,
        problem.regulariser,
        values=values,
        sublabels=sublabels,
        tolerance=tolerance,
        iterations=iterations,
        dtype=dtype,
        device=device,
    )
    solved = clock()
    chosen = solution.labels.cpu()
    labels = graph.paint(chosen)
    return Lifted(
        labels=labels,
        energy=pixel_energy(problem, labels, neighbours=graph.neighbours),
        cell_energy=energy(graph, costs.cpu(), chosen, problem.regulariser, problem.values),
        graph=graph,
        solution=solution,
        seconds={"graph": made - start, "costs": averaged - made, "solve": solved - averaged},
    )


def cell_costs(problem: Problem, graph: Graph, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the mean costs [K, L] of a problem in every cell, made a few labels at a time; means are in float64.

    >>> from mithridate.lifting.energy import Potts
    >>> problem = Problem.from_costs(torch.tensor([[[0.0, 2.0], [1.0, 0.5]]]), Potts(weight=0.1))
    >>> cell_costs(problem, pixel_grid(1, 2)).tolist()
    [[0.0, 2.0], [1.0, 0.5]]
    """
    found = torch.empty(len(graph), problem.labels, dtype=dtype)
    for first, part in problem.chunks():
        found[:, first : first + part.shape[2]] = graph.mean(part.cpu().double())
    return found


def pixel_energy(problem: Problem, labels: Tensor, *, neighbours: int = 4) -> float:
    """Returns the energy of labels [H, W] on the pixel grid, in float64.

    >>> from mithridate.lifting.energy import Potts
    >>> problem = Problem.from_costs(torch.tensor([[[0.0, 2.0], [1.0, 0.5]]]), Potts(weight=0.1))
    >>> round(pixel_energy(problem, torch.tensor([[0, 1]])), 6)
    0.6
    """
    grid = pixel_grid(problem.height, problem.width, neighbours=neighbours)
    own = torch.zeros(problem.height, problem.width, dtype=torch.float64)
    for first, part in problem.chunks():
        here = (labels >= first) & (labels < first + part.shape[2])
        at = (labels - first).clamp(0, part.shape[2] - 1)
        own += torch.where(here, part.cpu().double().gather(2, at[:, :, None])[:, :, 0], 0.0)
    nothing = torch.zeros(1, 1).expand(len(grid), problem.labels)
    values = None if problem.values is None else problem.values.cpu()
    return float(own.sum()) + energy(grid, nothing, labels.flatten(), problem.regulariser, values)
