"""What labels between coarse labels are worth: the energy with them, with coarse ones alone, and with every label.

    python -m studies.sublabels

Half a minute. Denoising, where costs are convex, and stereo on SLIC cells of Teddy and Cones, where they are not; the
pairs are expected as for `studies.graph_discretizations`, and left out where they are missing. Energies are those of
the rounded labels on the pixel grid.

Reference: Möllenhoff, Laude, Moeller, Lellmann, Cremers. "Sublabel-Accurate Relaxation of Nonconvex Energies". CVPR
2016, arXiv 1512.01383.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from mithridate.experiments.lifting_tasks import Stereo
from mithridate.lifting.discretisations import Discretisation, Pixels, Slic, cell_costs, pixel_energy
from mithridate.lifting.problems import Problem, denoising
from mithridate.lifting.solver import solve
from studies.graph_discretizations import DISPARITIES, PAIRS, middlebury


class Worth(NamedTuple):
    """One problem with so many labels per interval; energies above that with every label, as shares of it."""

    problem: str
    sublabels: int
    intervals: int
    between: float
    """With labels between the ends of intervals."""
    coarse: float
    """With the ends alone."""


def worth(name: str, problem: Problem, on: Discretisation, sizes: Sequence[int]) -> Iterator[Worth]:
    """Solves a problem of ordered labels with intervals of several sizes."""
    assert problem.values is not None
    graph = on.graph(problem.guide)
    costs = cell_costs(problem, graph)
    every = solve(graph, costs, problem.regulariser, values=problem.values)
    least = pixel_energy(problem, graph.paint(every.labels))
    last = problem.labels - 1
    for size in sizes:
        ends = torch.tensor(sorted({*range(0, last, size), last}))
        between = solve(graph, costs, problem.regulariser, values=problem.values, sublabels=size).labels
        coarse = ends[solve(graph, costs[:, ends], problem.regulariser, values=problem.values[ends]).labels]
        above = [pixel_energy(problem, graph.paint(labels)) / least - 1 for labels in (between, coarse)]
        yield Worth(name, size, len(ends) - 1, *above)


def noisy(side: int = 96) -> Problem:
    """A bright square and a ramp with noise of 0.1, in 33 levels."""
    clean = torch.zeros(side, side)
    clean[side // 5 : side * 3 // 4, side // 3 : side * 5 // 6] = 0.7
    clean[:, : side // 5] = torch.linspace(0, 1, side)[:, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return denoising((clean + 0.1 * noise).clamp(0, 1), levels=33, weight=0.1)


def pairs() -> Iterator[tuple[str, Problem]]:
    """The stereo pairs that are there."""
    for name in PAIRS:
        here = middlebury() / name
        if here.is_dir():
            (problem,) = Stereo(image=here / "im2.png", right=here / "im6.png", disparities=DISPARITIES).problems()
            yield name, problem


if __name__ == "__main__":
    print("| | labels per interval | intervals | with labels between | with their ends alone |")
    print("|---|---|---|---|---|")
    rows = [*worth("denoising, 33 levels, pixels", noisy(), Pixels(), (2, 4, 8, 16, 32))]
    for title, pair in pairs():
        rows += worth(f"{title}, {DISPARITIES} disparities, 5,000 SLIC cells", pair, Slic(cells=5000), (2, 3, 6))
    for row in rows:
        print(f"| {row.problem} | {row.sublabels} | {row.intervals} | {row.between:+.2%} | {row.coarse:+.2%} |")
