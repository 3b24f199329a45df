"""Sublabel-accurate lifting: hulls, projections, and the relaxation against a linear program and all labellings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from mithridate.lifting.energy import Potts, TotalVariation, energy
from mithridate.lifting.graph import Graph, from_labels, pixel_grid
from mithridate.lifting.solver import Solution, solve
from mithridate.lifting.sublabels import above_conjugate, hull, intervals

TV = TotalVariation(weight=0.1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def costs(cells: int, labels: int, seed: int = 0) -> Tensor:
    return torch.rand(cells, labels, dtype=torch.float64, generator=rng(seed))


def convex(cells: int, labels: int, seed: int = 0) -> Tensor:
    """Squared distances of labels to a value per cell."""
    places = torch.linspace(0, 1, labels, dtype=torch.float64)
    return (places - torch.rand(cells, 1, dtype=torch.float64, generator=rng(seed))).square()


def exactly(graph: Graph, data: Tensor, sublabels: int, values: Tensor | None = None) -> Solution:
    return solve(
        graph,
        data,
        TV,
        values=values,
        sublabels=sublabels,
        tolerance=1e-7,
        iterations=60_000,
        check=200,
        dtype=torch.float64,
    )


def program(graph: Graph, data: Tensor, values: Tensor, sublabels: int) -> float:
    """A mixture of all labels in every cell, filled intervals as they give them, differences along edges."""
    cells, labels = data.shape
    knots = intervals(labels, sublabels)
    ends = values[knots[:, [0, -1]]]
    widths = ends[:, 1] - ends[:, 0]
    filled = ((values[None] - ends[:, :1]) / widths[:, None]).clamp(0, 1).numpy()  # [I, L]
    edges, lengths = graph.edges.T.tolist(), graph.lengths.tolist()
    objective = np.concatenate(
        [
            (graph.areas[:, None] * data).numpy().ravel(),
            *[length * TV.weight * widths.numpy() for length in lengths],
        ]
    )
    equal = np.zeros((cells, len(objective)))
    for cell in range(cells):
        equal[cell, cell * labels : (cell + 1) * labels] = 1
    above = []
    for number, (a, b) in enumerate(edges):
        for interval, sign in itertools.product(range(len(knots)), (1, -1)):
            row = np.zeros(len(objective))
            row[a * labels : (a + 1) * labels] = sign * filled[interval]
            row[b * labels : (b + 1) * labels] = -sign * filled[interval]
            row[cells * labels + number * len(knots) + interval] = -1
            above.append(row)
    zeros, ones = np.zeros(len(above)), np.ones(cells)
    return float(linprog(objective, A_ub=np.stack(above), b_ub=zeros, A_eq=equal, b_eq=ones, bounds=(0, None)).fun)


@pytest.mark.parametrize("sublabels", [2, 3, 5])
@pytest.mark.parametrize("graph", [pixel_grid(3, 3), from_labels(torch.randint(3, (4, 4), generator=rng()))])
def test_the_relaxation_is_that_of_a_linear_program(graph: Graph, sublabels: int) -> None:
    data = costs(len(graph), 6, seed=3)
    values = torch.tensor([0.0, 1.0, 1.5, 3.0, 3.5, 5.0], dtype=torch.float64)
    found = exactly(graph, data, sublabels, values)
    assert found.gap <= 1e-6
    assert found.dual == pytest.approx(program(graph, data, values, sublabels), rel=2e-6)


@pytest.mark.parametrize("sublabels", [2, 3, 8])
def test_convex_costs_lose_nothing(sublabels: int) -> None:
    graph, data = pixel_grid(6, 6), convex(36, 9)
    every, few = exactly(graph, data, 1), exactly(graph, data, sublabels)
    assert few.dual == pytest.approx(every.dual, rel=1e-6)
    assert energy(graph, data, few.labels, TV) == pytest.approx(every.primal, rel=1e-6)


@pytest.mark.parametrize("sublabels", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_labelling_is_below_the_dual_value(sublabels: int, seed: int) -> None:
    graph, data = pixel_grid(2, 3), costs(6, 4, seed)
    every = itertools.product(range(4), repeat=6)
    lowest = min(energy(graph, data, torch.tensor(labels), TV) for labels in every)
    found = exactly(graph, data, sublabels)
    assert found.dual <= lowest + 1e-9
    assert energy(graph, data, found.labels, TV) >= lowest - 1e-9
    assert found.dual <= exactly(graph, data, 1).dual + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_primal_is_never_below_dual(dtype: torch.dtype) -> None:
    graph = from_labels(torch.randint(6, (14, 15), generator=rng()))
    slack = 1e-10 if dtype == torch.float64 else 1e-3
    for seed in range(3):
        data = 4 * costs(len(graph), 8, seed) - 2
        found = solve(graph, data, TV, sublabels=3, tolerance=0.0, iterations=200, check=5, dtype=dtype)
        assert all(primal >= dual - slack for _, primal, dual in found.history)
        assert found.relaxed.shape == (len(graph), 3)
        assert 0 <= float(found.relaxed.min()) <= float(found.relaxed.max()) <= 1
        assert bool((found.relaxed.diff(dim=1) <= 0).all())


def test_cells_without_neighbours_take_their_cheapest_label() -> None:
    graph = from_labels(torch.zeros(3, 3, dtype=torch.int64))
    found = solve(graph, torch.tensor([[0.3, 0.5, 0.1, 0.4, 0.2]]), TV, sublabels=2, iterations=2000)
    assert found.labels.tolist() == [2]
    assert found.primal == pytest.approx(0.9, rel=1e-3)


def test_hulls_are_the_largest_convex_functions_below() -> None:
    """Against the lower envelope of all chords, and with a last interval that is short."""
    values = torch.tensor([0.0, 1.0, 1.5, 3.0, 3.5, 5.0, 6.0, 8.0], dtype=torch.float64)
    data, knots = costs(20, 8), intervals(8, 4)
    ends = values[knots[:, [0, -1]]]
    shares = (values[knots] - ends[:, :1]) / (ends[:, 1:] - ends[:, :1])
    slopes, heights = hull(data, knots, shares)
    for interval, places in enumerate(knots):
        share, here = shares[interval], data[:, places]
        for number in range(5):
            chords = [here[:, number]]
            for a, b in itertools.product(range(number), range(number + 1, 5)):
                part = (share[number] - share[a]) / (share[b] - share[a])
                chords.append(here[:, a] + part * (here[:, b] - here[:, a]))
            lowest = torch.stack(chords).amin(0)
            assert torch.allclose(heights[number][:, interval], lowest, atol=1e-12)
        steps = torch.stack([slope[:, interval] for slope in slopes])
        assert bool((steps.diff(dim=0) >= -1e-12).all())


def test_the_nearest_point_above_a_conjugate_is_that_of_a_quadratic_program() -> None:
    knots = intervals(5, 4)
    shares = knots / 4.0
    slopes, heights = hull(costs(30, 5), knots, shares.double())
    r, c = (2 * torch.randn(30, 1, dtype=torch.float64, generator=rng(seed)) for seed in (1, 2))
    found = torch.cat(above_conjugate(r, c, list(shares.T.double()), heights, slopes), dim=1).numpy()
    for cell, point in enumerate(torch.cat([r, c], dim=1).numpy()):
        lines = [(float(shares[0, number]), float(heights[number][cell, 0])) for number in range(5)]
        above = [{"type": "ineq", "fun": lambda z, s=s, h=h: z[1] - s * z[0] + h} for s, h in lines]
        nearest = minimize(lambda z, at=point: ((z - at) ** 2).sum(), [point[0], 9.0], constraints=above, tol=1e-12)
        assert found[cell] == pytest.approx(nearest.x, abs=1e-5)


@pytest.mark.parametrize("sublabels", [0, 4])
def test_intervals_hold_a_label_and_no_more_than_there_are(sublabels: int) -> None:
    with pytest.raises(ValueError, match=rf"{sublabels} sublabels per interval for 4 labels; give 1 to 3"):
        solve(pixel_grid(2, 2), costs(4, 4), TV, sublabels=sublabels)


def test_labels_without_order_have_no_sublabels() -> None:
    with pytest.raises(ValueError, match="sublabels lie between ordered labels under total-variation; potts has none"):
        solve(pixel_grid(2, 2), costs(4, 4), Potts(weight=0.1), sublabels=2)
