"""Cut pursuit: cells of nearly one colour, found by cutting in two whatever is worth its boundary."""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, maximum_flow
from torch import Tensor

from mithridate.lifting.graph import Graph, from_labels, pixel_grid

ROUNDS = 2
"""Cuts of one split; the two colours are fitted anew after each."""
CAPACITY = 2**20
"""Largest capacity of an edge of a flow network, whose capacities are whole numbers."""
BLOCK = 8
"""Side of the squares that are cut first: with 16 and 32 the energies of a segmentation (astronaut, 512 x 512) and of
stereo (Teddy) end within 2 % of those with 8, and cutting takes two and four times as long."""
SPARE = 1.5
"""So many times the cells that are asked for are cut, beyond the squares, before cells are joined."""
FACTOR = 4.0
"""By how much the weight falls while there are too few cells."""


class _Picture(NamedTuple):
    """Pixels and the edges between them."""

    colours: np.ndarray
    """[N, C] float64."""
    first: np.ndarray
    second: np.ndarray
    lengths: np.ndarray


def cut_pursuit(image: Tensor, weight: float, *, neighbours: int = 4) -> Graph:
    """Cuts an image into cells whose colours are nearly constant.

    Lowers the sum of squared distances of pixels to the mean colour of their cell, plus `weight` per length of
    boundary: every cell is cut in two by a minimal cut towards two colours if that lowers the sum, until none is; then
    cells are joined where that does. It ends where neither a cut nor a join helps, which need not be the best there is.

    Reference: Landrieu, Obozinski. "Cut Pursuit: Fast Algorithms to Learn Piecewise Constant Functions on General
    Weighted Graphs". SIAM J. Imaging Sciences 10(4), 2017 (its l0 version). Deviations: it begins with squares of 8 x 8
    pixels instead of the whole image, and the two colours of a cut start at the means above and below the mean of the
    channel that varies most.

    Args:
        image: [H, W, C].
        weight: Cost of a boundary per length, in squared distance of colours.
        neighbours: As for `pixel_grid`.

    Raises:
        ValueError: Another shape, or a weight that is not positive.

    >>> import torch
    >>> cut_pursuit(torch.tensor([[0.0, 0.1, 0.9, 1.0]])[:, :, None], weight=0.1).cells
    tensor([[0, 0, 1, 1]])
    """
    picture = _read(image, neighbours)
    if not 0 < weight < math.inf:
        raise ValueError(f"weight is {weight:g}; it is the cost of a boundary per length, more than 0")
    cells = _joined(picture, _split(picture, _blocks(*image.shape[:2]), weight), weight)
    return from_labels(cells.reshape(image.shape[:2]), neighbours=neighbours)


def cut_pursuit_cells(image: Tensor, cells: int, *, neighbours: int = 4) -> Graph:
    """Cuts an image into so many cells, or fewer where it has no more.

    The weight falls until there are more than enough; then cells are joined, those first whose boundary is worth least.

    Args:
        image: [H, W, C].
        cells: How many.
        neighbours: As for `pixel_grid`.

    Raises:
        ValueError: Another shape, or no cells.

    >>> import torch
    >>> image = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(0))
    >>> len(cut_pursuit_cells(image, 10))
    10
    """
    picture = _read(image, neighbours)
    if cells < 1:
        raise ValueError(f"{cells} cells; give 1 or more")
    spread = float(((picture.colours - picture.colours.mean(0)) ** 2).sum())
    weight = spread / max(1.0, float(picture.lengths.sum())) * len(picture.colours) / cells / 4
    found = _blocks(*image.shape[:2])
    enough = found.max() + 1 + SPARE * cells
    while found.max() + 1 < enough and spread > 0 and weight > 1e-12 * spread:
        found = _split(picture, found, weight)
        weight /= FACTOR
    found = _joined(picture, found, math.inf, cells)
    return from_labels(found.reshape(image.shape[:2]), neighbours=neighbours)


def _read(image: Tensor, neighbours: int) -> _Picture:
    if image.ndim != 3 or not image.numel():
        raise ValueError(f"the image is {list(image.shape)}; expected [height, width, channels]")
    grid = pixel_grid(*image.shape[:2], neighbours=neighbours)
    first, second = grid.edges.numpy()
    colours = image.detach().cpu().double().reshape(-1, image.shape[2]).numpy()
    return _Picture(colours, first, second, grid.lengths.numpy())


def _blocks(height: int, width: int) -> np.ndarray:
    """[N] squares to begin with: flows in them are short, and what they cut for nothing is joined in the end."""
    down, right = (np.arange(size) // BLOCK for size in (height, width))
    return (down[:, None] * (int(right[-1]) + 1) + right).ravel()


# --- cutting ---------------------------------------------------------------------------------------------------------


def _split(picture: _Picture, cells: np.ndarray, weight: float) -> np.ndarray:
    """Cuts cells in two until no cut lowers the sum."""
    active = np.ones(len(cells), dtype=bool)
    while active.any():
        pixels = np.flatnonzero(active)
        part = _inside(picture, pixels, cells)
        own = np.unique(cells[pixels], return_inverse=True)[1]
        pieces = _pieces(part, own, _sides(part, own, weight))
        worth = _worth(part, own, pieces, weight)[own]  # by pixel, of its old cell
        active[pixels[~worth]] = False
        changed = pixels[worth]
        if not len(changed):
            break
        cells = cells.copy()
        cells[changed] = cells.max() + 1 + pieces[worth]
        cells = np.unique(cells, return_inverse=True)[1]
    return cells


def _inside(picture: _Picture, pixels: np.ndarray, cells: np.ndarray) -> _Picture:
    """Some pixels, and the edges between those of one cell."""
    place = np.full(len(cells), -1)
    place[pixels] = np.arange(len(pixels))
    kept = (cells[picture.first] == cells[picture.second]) & (place[picture.first] >= 0)
    return _Picture(
        picture.colours[pixels],
        place[picture.first[kept]],
        place[picture.second[kept]],
        picture.lengths[kept],
    )


def _means(colours: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """[count, C] mean colours; zero where a group is empty."""
    sizes = np.maximum(np.bincount(groups, minlength=count), 1)
    return np.stack([np.bincount(groups, weights=one, minlength=count) / sizes for one in colours.T], axis=1)


def _sides(part: _Picture, own: np.ndarray, weight: float) -> np.ndarray:
    """[N] 0 or 1: a minimal cut of every cell towards two colours."""
    count = int(own.max()) + 1
    middle = _means(part.colours, own, count)
    variance = _means((part.colours - middle[own]) ** 2, own, count)
    channel = variance.argmax(1)[own]
    rows = np.arange(len(own))
    side = (part.colours[rows, channel] > middle[own, channel]).astype(np.int64)
    for _ in range(ROUNDS):
        two = _means(part.colours, 2 * own + side, 2 * count).reshape(count, 2, -1)
        apart = ((part.colours - two[own, 0]) ** 2).sum(1) - ((part.colours - two[own, 1]) ** 2).sum(1)
        new = minimal_cut(apart, part.first, part.second, weight * part.lengths)
        if np.array_equal(new, side):
            break
        side = new
    return side


def minimal_cut(gains: np.ndarray, first: np.ndarray, second: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Returns the side (0 or 1) of each of N nodes that lowers sum(costs of cut edges) - sum(gains of nodes on side 1).

    Args:
        gains: [N] of side 1 over side 0.
        first: [E] one end of each edge.
        second: [E] the other.
        costs: [E] not negative.

    >>> minimal_cut(
    ...     np.array([3.0, -1.0, -3.0]), np.array([0, 1]), np.array([1, 2]), np.array([2.0, 0.5])
    ... ).tolist()
    [1, 1, 0]
    """
    count = len(gains)
    around = np.bincount(first, weights=costs, minlength=count) + np.bincount(second, weights=costs, minlength=count)
    pull = np.clip(gains, -2 * around, 2 * around)  # more than all its edges is enough: no other side is as good then
    largest = max(float(np.abs(pull).max(initial=0)), float(costs.max(initial=0)))
    if largest == 0:
        return (gains > 0).astype(np.int64)
    to_whole = CAPACITY / largest
    inner = np.rint(costs * to_whole).astype(np.int32)
    pulled = np.rint(np.abs(pull) * to_whole).astype(np.int32)
    up, down = np.flatnonzero(gains > 0), np.flatnonzero(gains <= 0)
    source, sink = count, count + 1
    rows = np.concatenate([first, second, np.full(len(up), source), down])
    columns = np.concatenate([second, first, up, np.full(len(down), sink)])
    values = np.concatenate([inner, inner, pulled[up], pulled[down]])
    network = sparse.csr_matrix((values, (rows, columns)), shape=(count + 2, count + 2), dtype=np.int32)
    residual = network - maximum_flow(network, source, sink, method="dinic").flow
    residual.data = (residual.data > 0).astype(np.int8)
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    side = np.zeros(count + 2, dtype=np.int64)
    side[reached] = 1
    side, alone = side[:count], around == 0
    side[alone] = gains[alone] > 0
    return side


def _pieces(part: _Picture, own: np.ndarray, side: np.ndarray) -> np.ndarray:
    """[N] connected pieces of what is in one cell and on one side."""
    kept = side[part.first] == side[part.second]  # edges are within cells already
    joined = sparse.coo_matrix((np.ones(kept.sum()), (part.first[kept], part.second[kept])), shape=(len(own),) * 2)
    return connected_components(joined, directed=False)[1]


def _worth(part: _Picture, own: np.ndarray, pieces: np.ndarray, weight: float) -> np.ndarray:
    """[cells] whether cutting a cell into these pieces lowers the sum."""
    count = int(own.max()) + 1

    def spread(groups: np.ndarray) -> np.ndarray:
        means = _means(part.colours, groups, int(groups.max()) + 1)
        return np.bincount(own, weights=((part.colours - means[groups]) ** 2).sum(1), minlength=count)

    cut = pieces[part.first] != pieces[part.second]
    boundary = np.bincount(own[part.first[cut]], weights=part.lengths[cut], minlength=count)
    return spread(own) - spread(pieces) > weight * boundary + 1e-12


# --- joining ---------------------------------------------------------------------------------------------------------


def _joined(picture: _Picture, cells: np.ndarray, weight: float, least: int = 1) -> np.ndarray:
    """Joins neighbours, the cheapest boundary first, while that is worth it and there are more than `least` cells."""
    count = int(cells.max()) + 1
    sizes = np.bincount(cells, minlength=count).astype(float)
    means = _means(picture.colours, cells, count)
    around: list[dict[int, float]] = [{} for _ in range(count)]
    a, b = cells[picture.first], cells[picture.second]
    for one, other, length in zip(*(x[a != b].tolist() for x in (a, b, picture.lengths)), strict=True):
        around[one][other] = around[one].get(other, 0.0) + length
        around[other][one] = around[other].get(one, 0.0) + length

    def price(one: int, other: int) -> float:
        """Squared distances that a join adds, per length of boundary that it saves."""
        apart = float(((means[one] - means[other]) ** 2).sum())
        return sizes[one] * sizes[other] / (sizes[one] + sizes[other]) * apart / around[one][other]

    queue = [(price(one, other), one, other) for one in range(count) for other in around[one] if one < other]
    heapq.heapify(queue)
    into = np.arange(count)
    left, version = count, np.zeros(count, dtype=np.int64)
    stamps = {(one, other): (0, 0) for _, one, other in queue}
    while queue and left > least:
        cost, one, other = heapq.heappop(queue)
        if stamps.get((one, other)) != (version[one], version[other]) or other not in around[one]:
            continue
        if cost >= weight:
            break
        means[one] = (sizes[one] * means[one] + sizes[other] * means[other]) / (sizes[one] + sizes[other])
        sizes[one] += sizes[other]
        into[other] = one
        version[one] += 1
        version[other] += 1
        left -= 1
        for third, length in around[other].items():
            del around[third][other]
            if third != one:
                around[one][third] = around[one].get(third, 0.0) + length
                around[third][one] = around[one][third]
        around[other] = {}
        for third in around[one]:
            pair = (min(one, third), max(one, third))
            stamps[pair] = (version[pair[0]], version[pair[1]])
            heapq.heappush(queue, (price(*pair), *pair))
    while not np.array_equal(into, into[into]):
        into = into[into]
    return np.unique(into[cells], return_inverse=True)[1]
