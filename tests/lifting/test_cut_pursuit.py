"""Cut pursuit: cuts against every cut there is, partitions against every partition, cells as many as asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.lifting.cut_pursuit import cut_pursuit, cut_pursuit_cells, minimal_cut
from mithridate.lifting.graph import Graph, pixel_grid
from mithridate.lifting.superpixels import slic


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def price(image: Tensor, graph: Graph, weight: float) -> float:
    """Squared distances to the mean colours of cells, plus the weight per length of boundary."""
    means = graph.paint(graph.mean(image.double()))
    return float((image.double() - means).square().sum() + weight * graph.lengths.sum())


def regions(size: int = 40, noise: float = 0.03) -> tuple[Tensor, Tensor]:
    """Noisy picture of four regions, and which is where."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    truth = (columns > size // 2).long() + 2 * (rows + columns > size).long()
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.8, 0.2, 0.3], [0.1, 0.9, 0.3], [0.9, 0.9, 0.9]])
    return (colours[truth] + noise * torch.randn(size, size, 3, generator=rng())).clamp(0, 1), truth


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = pixel_grid(3, 3)
    first, second = grid.edges.numpy()
    gains, edge_costs = random.normal(size=9), random.uniform(0, 1, size=len(first))

    def value(side: np.ndarray) -> float:
        return float(edge_costs[side[first] != side[second]].sum() - gains[side == 1].sum())

    lowest = min(value(np.array(side)) for side in itertools.product((0, 1), repeat=9))
    assert value(minimal_cut(gains, first, second, edge_costs)) == pytest.approx(lowest, abs=1e-5)


def test_a_cut_without_edges_or_costs_follows_the_gains() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert minimal_cut(np.array([1.0, -1.0]), nothing, nothing, np.zeros(0)).tolist() == [1, 0]
    one, other = np.array([0]), np.array([1])
    assert minimal_cut(np.array([1.0, -1.0]), one, other, np.zeros(1)).tolist() == [1, 0]
    assert minimal_cut(np.array([1e9, -1.0]), one, other, np.ones(1)).tolist() in ([1, 1], [1, 0])


@pytest.mark.parametrize("seed", range(4))
def test_the_partition_is_nearly_the_best_of_all(seed: int) -> None:
    """Of 2 x 4 pixels every way to cut edges is tried: cut pursuit is never below the best, and here within a tenth."""
    image = torch.rand(2, 4, 1, generator=rng(seed))
    weight = 0.03
    grid = pixel_grid(2, 4)
    edges = grid.edges.T.tolist()
    lowest = float("inf")
    for kept in itertools.product((False, True), repeat=len(edges)):
        cells = list(range(8))
        for (a, b), joined in zip(edges, kept, strict=True):
            if joined:
                old, new = cells[b], cells[a]
                cells = [new if cell == old else cell for cell in cells]
        values = image.flatten().double()
        own = torch.tensor(cells)
        spread = sum(float((values[own == cell] - values[own == cell].mean()).square().sum()) for cell in set(cells))
        lowest = min(lowest, spread + weight * sum(cells[a] != cells[b] for a, b in edges))
    found = price(image, cut_pursuit(image, weight), weight)
    assert lowest - 1e-9 <= found <= 1.1 * lowest


def test_neither_a_join_nor_everything_as_one_cell_is_better() -> None:
    image, _ = regions()
    graph = cut_pursuit(image, 0.02)
    own = price(image, graph, 0.02)
    assert own < price(image, pixel_grid(40, 40), 0.02)
    means, areas = graph.mean(image.double()), graph.areas
    for (a, b), length in zip(graph.edges.T.tolist(), graph.lengths.tolist(), strict=True):
        added = areas[a] * areas[b] / (areas[a] + areas[b]) * (means[a] - means[b]).square().sum()
        assert float(added) >= 0.02 * length - 1e-9


def test_regions_are_found_through_noise() -> None:
    image, truth = regions()
    graph = cut_pursuit(image, 0.05)
    assert len(graph) <= 8
    for cell in range(len(graph)):
        inside = truth[graph.cells == cell]
        assert float((inside == inside.mode().values).float().mean()) > 0.99


@pytest.mark.parametrize("cells", [1, 7, 60, 400])
def test_there_are_as_many_cells_as_asked_for(cells: int) -> None:
    image = torch.rand(24, 30, 3, generator=rng())
    assert len(cut_pursuit_cells(image, cells)) == cells


def test_a_flat_image_has_no_more_cells_than_the_squares_it_begins_with() -> None:
    assert len(cut_pursuit_cells(torch.zeros(40, 40, 3), 1000)) <= 25
    assert len(cut_pursuit(torch.zeros(40, 40, 3), 0.1)) == 1


def test_more_cells_fit_the_image_better() -> None:
    image, _ = regions(noise=0.1)
    spread = [price(image, cut_pursuit_cells(image, cells), 0.0) for cells in (4, 20, 100, 400)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.7 * spread[0]


def test_cells_of_one_colour_fit_better_than_cells_of_one_size() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra: image)")
    image, _ = regions(noise=0.05)
    graph = slic(image, 80)
    assert price(image, cut_pursuit_cells(image, len(graph)), 0.0) < 0.5 * price(image, graph, 0.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the image is \[4, 4\]; expected \[height, width, channels\]"):
        cut_pursuit(torch.zeros(4, 4), 0.1)
    with pytest.raises(ValueError, match="weight is 0"):
        cut_pursuit(torch.zeros(4, 4, 3), 0.0)
    with pytest.raises(ValueError, match="0 cells; give 1 or more"):
        cut_pursuit_cells(torch.zeros(4, 4, 3), 0)
    with pytest.raises(ValueError, match=r"SLIC needs an image \[H, W, 3\] and 1 or more cells"):
        slic(torch.zeros(4, 4, 3), 0)
