"""Graphs: areas and boundaries against a slow count, means and painting, differences and their adjoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mithridate.lifting.differences import differences
from mithridate.lifting.graph import Graph, from_labels, pixel_grid


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(height: int = 7, width: int = 9, count: int = 4) -> Tensor:
    return torch.randint(count, (height, width), generator=rng())


def counted(cells: Tensor, neighbours: int) -> dict[tuple[int, int], float]:
    """Boundaries by a loop over pixels."""
    steps = {(0, 1): 1.0, (1, 0): 1.0}
    if neighbours == 8:
        steps = {(0, 1): math.pi / 8, (1, 0): math.pi / 8}
        steps |= {(1, 1): math.pi / 8 / math.sqrt(2), (1, -1): math.pi / 8 / math.sqrt(2)}
    found: dict[tuple[int, int], float] = {}
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            for (down, right), length in steps.items():
                if row + down < cells.shape[0] and 0 <= column + right < cells.shape[1]:
                    a, b = sorted((int(cells[row, column]), int(cells[row + down, column + right])))
                    if a != b:
                        found[a, b] = found.get((a, b), 0.0) + length
    return found


@pytest.mark.parametrize("neighbours", [4, 8])
def test_boundaries_are_those_of_a_slow_count(neighbours: int) -> None:
    graph = from_labels(labels(), neighbours=neighbours)
    slow = counted(graph.cells, neighbours)
    assert [tuple(edge) for edge in graph.edges.T.tolist()] == sorted(slow)
    assert torch.allclose(graph.lengths, torch.tensor([slow[key] for key in sorted(slow)], dtype=torch.float64))
    assert graph.areas.tolist() == [float((graph.cells == cell).sum()) for cell in range(len(graph))]


def test_cells_of_several_pieces_are_cut_into_these_unless_asked_not_to() -> None:
    image = torch.tensor([[0, 1, 0], [1, 1, 0]])
    assert from_labels(image).cells.tolist() == [[0, 1, 2], [1, 1, 2]]
    assert len(from_labels(image, connected=False)) == 2


def test_eight_neighbours_measure_a_diagonal_like_an_axis() -> None:
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    straight = from_labels((columns < 30).long(), neighbours=8).lengths.sum() / 60
    slanted = from_labels((rows + columns < 60).long(), neighbours=8).lengths.sum() / (60 * math.sqrt(2))
    assert 0.85 < float(straight) < 1.1
    assert 0.85 < float(slanted) < 1.1
    assert float(from_labels((rows + columns < 60).long()).lengths.sum()) / (60 * math.sqrt(2)) > 1.35


@pytest.mark.parametrize("neighbours", [4, 8])
def test_a_grid_and_the_same_graph_have_the_same_differences(neighbours: int) -> None:
    grid = pixel_grid(4, 5, neighbours=neighbours)
    shuffled = torch.randperm(20, generator=rng())
    graph = from_labels(shuffled.reshape(4, 5), neighbours=neighbours, connected=False)
    assert grid.is_grid
    assert not graph.is_grid
    values = torch.rand(20, 3, dtype=torch.float64, generator=rng())
    slopes = []
    for each, own in ((grid, values), (graph, values[torch.argsort(shuffled)])):
        along = differences(each, torch.float64, "cpu")
        field = [part.clone() for part in along.each(own)]
        total = sum(float((part.abs() * length).sum()) for part, length in zip(field, along.lengths, strict=True))
        slopes.append((total, along.back(field, torch.empty_like(own))[each.cells.flatten()], along.degree))
    assert slopes[0][0] == pytest.approx(slopes[1][0], abs=1e-12)
    assert torch.allclose(slopes[0][1], slopes[1][1], atol=1e-12)
    assert torch.allclose(slopes[0][2], slopes[1][2][shuffled], atol=1e-12)


@pytest.mark.parametrize("graph", [pixel_grid(5, 4, neighbours=8), from_labels(labels())], ids=["grid", "graph"])
def test_back_is_the_adjoint_of_each_times_lengths(graph: Graph) -> None:
    along = differences(graph, torch.float64, "cpu")
    values = torch.rand(len(graph), 3, dtype=torch.float64, generator=rng(1))
    field = [torch.rand(part.shape, dtype=torch.float64, generator=rng(2)) for part in along.zeros(3)]
    parts = zip(along.each(values), field, along.lengths, strict=True)
    one = sum(float((part * own * length).sum()) for part, own, length in parts)
    other = float((values * along.back(field, torch.empty_like(values))).sum())
    assert one == pytest.approx(other, abs=1e-12)


def test_means_are_painted_back() -> None:
    graph = from_labels(labels())
    costs = torch.rand(7, 9, 2, generator=rng())
    means = graph.paint(graph.mean(costs))
    for cell in range(len(graph)):
        here = graph.cells == cell
        assert torch.allclose(means[here], costs[here].mean(0).expand_as(means[here]), atol=1e-6)
    with pytest.raises(ValueError, match=r"the costs are \[3, 9, 2\]; expected \[7, 9, L\]"):
        graph.mean(costs[:3])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (torch.zeros(3), r"the label image is \[3\] of int|float"),
        (torch.zeros(3, 3), "of float32; expected"),
        (torch.zeros(0, 3, dtype=torch.int64), r"\[0, 3\]"),
    ],
)
def test_what_is_no_label_image_is_refused(cells: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_labels(cells)


def test_no_pixels_and_six_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 0 x 3 pixels has none"):
        pixel_grid(0, 3)
    with pytest.raises(ValueError, match="6 neighbours; a pixel has 4 or 8"):
        pixel_grid(3, 3, neighbours=6)
