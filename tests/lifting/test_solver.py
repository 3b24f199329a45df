"""The solver: against linear programs, maximum flow and all labellings; bounds hold; cells agree with pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from mithridate.lifting.cut_pursuit import minimal_cut
from mithridate.lifting.energy import Potts, Regulariser, TotalVariation, TruncatedVariation, energy
from mithridate.lifting.graph import Graph, from_labels, pixel_grid
from mithridate.lifting.relaxations import lowered_onto_simplex
from mithridate.lifting.solver import Solution, solve

KINDS: list[Regulariser] = [
    Potts(weight=0.3),
    TotalVariation(weight=0.2),
    TruncatedVariation(weight=0.2, limit=0.3),
]
IDS = ["potts", "total-variation", "truncated"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def costs(cells: int, labels: int, seed: int = 0) -> Tensor:
    return torch.rand(cells, labels, dtype=torch.float64, generator=rng(seed))


def exactly(graph: Graph, data: Tensor, regulariser: Regulariser, values: Tensor | None = None) -> Solution:
    return solve(
        graph, data, regulariser, values=values, tolerance=1e-7, iterations=40_000, check=200, dtype=torch.float64
    )


def some_graph(seed: int = 0) -> Graph:
    """Cells of several pixels, boundaries of several lengths."""
    return from_labels(torch.randint(3, (4, 4), generator=rng(seed)))


def best(graph: Graph, data: Tensor, regulariser: Regulariser) -> float:
    """The lowest energy of all labellings, by trying each."""
    every = itertools.product(range(data.shape[1]), repeat=len(graph))
    return min(energy(graph, data, torch.tensor(labels), regulariser) for labels in every)


# --- against other solvers -------------------------------------------------------------------------------------------


def pairwise_program(graph: Graph, data: Tensor, regulariser: Regulariser, values: Tensor) -> float:
    """The local polytope as a linear program: one number per edge and pair of labels, marginals as cells say."""
    cells, labels = data.shape
    edges, lengths = graph.edges.T.tolist(), graph.lengths.tolist()
    apart = regulariser.between(values[:, None] - values[None, :]).numpy()
    objective = np.concatenate(
        [(graph.areas[:, None] * data).numpy().ravel(), *[length * apart.ravel() for length in lengths]]
    )
    rows, right = [], []
    for cell in range(cells):
        row = np.zeros(len(objective))
        row[cell * labels : (cell + 1) * labels] = 1
        rows.append(row)
        right.append(1.0)
    for number, (a, b) in enumerate(edges):
        pairs = cells * labels + number * labels**2 + np.arange(labels**2).reshape(labels, labels)
        for cell, marginals in ((a, pairs), (b, pairs.T)):
            for label in range(labels):
                row = np.zeros(len(objective))
                row[marginals[label]] = 1
                row[cell * labels + label] = -1
                rows.append(row)
                right.append(0.0)
    return float(linprog(objective, A_eq=np.stack(rows), b_eq=right, bounds=(0, None)).fun)


def potts_program(graph: Graph, data: Tensor, weight: float) -> float:
    """Half the weight times the absolute differences of shares, as a linear program."""
    cells, labels = data.shape
    edges, lengths = graph.edges.T.tolist(), graph.lengths.tolist()
    shares, count = cells * labels, cells * labels + len(edges) * labels
    objective = np.concatenate(
        [(graph.areas[:, None] * data).numpy().ravel(), weight / 2 * np.repeat(np.array(lengths), labels)]
    )
    equal = np.zeros((cells, count))
    for cell in range(cells):
        equal[cell, cell * labels : (cell + 1) * labels] = 1
    above = []
    for number, (a, b) in enumerate(edges):
        for label in range(labels):
            for sign in (1, -1):
                row = np.zeros(count)
                row[a * labels + label], row[b * labels + label] = sign, -sign
                row[shares + number * labels + label] = -1
                above.append(row)
    return float(
        linprog(
            objective,
            A_ub=np.stack(above),
            b_ub=np.zeros(len(above)),
            A_eq=equal,
            b_eq=np.ones(cells),
            bounds=(0, None),
        ).fun
    )


@pytest.mark.parametrize("graph", [pixel_grid(3, 3), pixel_grid(3, 2, neighbours=8), some_graph()])
def test_the_relaxation_of_potts_is_that_of_a_linear_program(graph: Graph) -> None:
    data = costs(len(graph), 3)
    found = exactly(graph, data, Potts(weight=0.3))
    assert found.gap <= 1e-7
    assert found.dual == pytest.approx(potts_program(graph, data, 0.3), rel=2e-7)


@pytest.mark.parametrize("regulariser", KINDS[1:], ids=IDS[1:])
@pytest.mark.parametrize("graph", [pixel_grid(3, 3), some_graph()])
def test_the_relaxation_of_ordered_labels_is_the_local_polytope(graph: Graph, regulariser: Regulariser) -> None:
    data, values = costs(len(graph), 4, seed=3), torch.tensor([0.0, 1.0, 1.5, 3.0], dtype=torch.float64)
    found = exactly(graph, data, regulariser, values)
    assert found.gap <= 1e-7
    assert found.dual == pytest.approx(pairwise_program(graph, data, regulariser, values), rel=2e-7)


@pytest.mark.parametrize("regulariser", [Potts(weight=0.2), TotalVariation(weight=0.2)], ids=IDS[:2])
def test_two_labels_are_solved_as_maximum_flow_solves_them(regulariser: Regulariser) -> None:
    graph = pixel_grid(9, 11)
    data = costs(len(graph), 2)
    first, second = graph.edges.numpy()
    cut = minimal_cut((data[:, 0] - data[:, 1]).numpy(), first, second, 0.2 * graph.lengths.numpy())
    flow = energy(graph, data, torch.from_numpy(cut), regulariser)
    found = exactly(graph, data, regulariser)
    assert energy(graph, data, found.labels, regulariser) == pytest.approx(flow, rel=1e-5)
    assert found.dual == pytest.approx(flow, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_total_variation_finds_the_best_labelling(seed: int) -> None:
    graph, data = pixel_grid(2, 4), costs(8, 3, seed)
    found = exactly(graph, data, KINDS[1])
    lowest = best(graph, data, KINDS[1])
    assert energy(graph, data, found.labels, KINDS[1]) == pytest.approx(lowest, abs=1e-6)
    assert found.dual == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
@pytest.mark.parametrize("seed", range(3))
def test_no_labelling_is_below_the_dual_value(regulariser: Regulariser, seed: int) -> None:
    graph, data = pixel_grid(2, 4), costs(8, 3, seed)
    assert exactly(graph, data, regulariser).dual <= best(graph, data, regulariser) + 1e-9


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [True, False])
def test_primal_is_never_below_dual_and_both_only_get_better(
    regulariser: Regulariser, dtype: torch.dtype, grid: bool
) -> None:
    graph = pixel_grid(8, 9, neighbours=8) if grid else from_labels(torch.randint(6, (14, 15), generator=rng()))
    slack = 1e-10 if dtype == torch.float64 else 1e-3
    for seed in range(3):
        data = 4 * costs(len(graph), 5, seed) - 2
        found = solve(graph, data, regulariser, tolerance=0.0, iterations=200, check=5, dtype=dtype)
        primal, dual = (np.array(part) for part in zip(*((p, d) for _, p, d in found.history), strict=True))
        assert (primal >= dual - slack).all()
        assert (np.diff(primal) <= 0).all()
        assert (np.diff(dual) >= 0).all()
        assert energy(graph, data, found.labels, regulariser) >= found.dual - slack


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_the_gap_ends_the_search_and_the_iterations_do(regulariser: Regulariser) -> None:
    graph = pixel_grid(10, 10)
    data = costs(100, 5)
    loose, tight = (solve(graph, data, regulariser, tolerance=tolerance, check=5) for tolerance in (0.05, 0.002))
    assert loose.gap <= 0.05
    assert tight.gap <= 0.002
    assert loose.iterations < tight.iterations
    few = solve(graph, data, regulariser, tolerance=0.0, iterations=30)
    assert few.iterations == 30
    assert [at for at, _, _ in few.history] == [25, 30]


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_shares_are_feasible(regulariser: Regulariser) -> None:
    shares = solve(pixel_grid(6, 6), costs(36, 4), regulariser, iterations=60).relaxed
    assert float(shares.min()) >= 0
    if isinstance(regulariser, TotalVariation):
        assert float(shares.max()) <= 1
        assert bool((shares.diff(dim=1) <= 0).all())
    else:
        assert torch.allclose(shares.sum(1), torch.ones(36), atol=1e-6)


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_as_many_cells_as_pixels_is_the_grid(regulariser: Regulariser) -> None:
    grid = pixel_grid(5, 6)
    shuffled = torch.randperm(30, generator=rng())
    graph = from_labels(shuffled.reshape(5, 6), connected=False)
    data = costs(30, 4)
    moved = torch.empty_like(data)
    moved[shuffled] = data
    on_grid, on_graph = (exactly(*pair, regulariser) for pair in ((grid, data), (graph, moved)))
    assert on_graph.dual == pytest.approx(on_grid.dual, rel=1e-6)
    labels = torch.randint(4, (30,), generator=rng(5))
    spread = torch.empty_like(labels)
    spread[shuffled] = labels
    assert energy(graph, moved, spread, regulariser) == pytest.approx(
        energy(grid, data, labels, regulariser), abs=1e-12
    )


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_nested_refinement_never_raises_the_optimum(regulariser: Regulariser) -> None:
    """A labelling of coarse cells is one of finer cells inside them; so is a relaxed one."""
    data = costs(144, 3).reshape(12, 12, 3)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    before = float("inf")
    for side in (6, 3, 1):
        graph = from_labels((rows // side) * 100 + columns // side)
        found = exactly(graph, graph.mean(data), regulariser)
        assert found.gap <= 1e-6
        assert found.dual <= before + 1e-6 * abs(found.primal)
        before = found.primal
    assert before < energy(graph, graph.mean(data), torch.zeros(144, dtype=torch.int64), regulariser)


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_cells_without_neighbours_take_their_cheapest_label(regulariser: Regulariser) -> None:
    graph = from_labels(torch.zeros(3, 3, dtype=torch.int64))
    found = solve(graph, torch.tensor([[0.3, 0.1, 0.2]]), regulariser, iterations=200)
    assert found.labels.tolist() == [1]
    assert found.primal == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("regulariser", KINDS, ids=IDS)
def test_without_a_price_every_pixel_takes_its_cheapest_label(regulariser: Regulariser) -> None:
    free = TruncatedVariation(weight=0.0, limit=1.0) if regulariser is KINDS[2] else type(regulariser)(weight=0.0)
    data = costs(20, 4)
    assert solve(pixel_grid(4, 5), data, free, iterations=400).labels.tolist() == data.argmin(1).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": torch.zeros(5, 2)}, r"the costs are \[5, 2\]; expected \[4, 2 or more\]"),
        ({"costs": torch.zeros(4, 1)}, r"\[4, 1\]"),
        ({"costs": torch.full((4, 2), torch.inf)}, "some costs are not finite"),
        ({"iterations": 0}, "0 iterations"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"values": torch.tensor([1.0, 0.0])}, "expected \\[2\\], increasing"),
        ({"values": torch.tensor([1.0])}, "the values of 2 labels are \\[1\\]"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    told: dict[str, object] = {"costs": torch.zeros(4, 2), "regulariser": Potts(weight=0.1), **change}
    with pytest.raises(ValueError, match=message):
        solve(pixel_grid(2, 2), **told)  # pyright: ignore[reportArgumentType]


def test_weights_and_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="potts weight is -1"):
        Potts(weight=-1)
    with pytest.raises(ValueError, match="limit is 0"):
        TruncatedVariation(weight=1, limit=0)
    with pytest.raises(ValueError, match=r"expected \[4, L\] and \[4\]"):
        energy(pixel_grid(2, 2), torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), Potts(weight=1))


@pytest.mark.parametrize("labels", [3, 40])
def test_the_nearest_point_of_the_simplex_is_that_of_sorting(labels: int) -> None:
    """Both ways, few labels by sorting and many by Newton's method, against bisection of the threshold."""
    vectors = 5 * torch.randn(200, labels, dtype=torch.float64, generator=rng())
    low, high = vectors.amin(1) - 1, vectors.amax(1)
    for _ in range(80):
        middle = (low + high) / 2
        large = (vectors - middle[:, None]).clamp_min(0).sum(1) > 1
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    expected = (vectors - high[:, None]).clamp_min(0)
    assert torch.allclose(lowered_onto_simplex(vectors.clone()), expected, atol=1e-9)


def test_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    data = costs(64, 5)
    for regulariser in KINDS:
        here = solve(pixel_grid(8, 8), data, regulariser)
        there = solve(pixel_grid(8, 8), data, regulariser, device="cuda")
        assert there.dual == pytest.approx(here.dual, rel=1e-3)
