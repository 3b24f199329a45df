"""Graph: an image cut into cells, with their areas, who is beside whom, and how long their common boundaries are.

A pixel grid is the graph whose cells are pixels, so that one solver serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

STEPS: dict[int, tuple[tuple[int, int, float], ...]] = {
    4: ((0, 1, 1.0), (1, 0, 1.0)),
    8: (
        (0, 1, math.pi / 8),
        (1, 0, math.pi / 8),
        (1, 1, math.pi / (8 * math.sqrt(2))),
        (1, -1, math.pi / (8 * math.sqrt(2))),
    ),
}
"""By number of neighbours: (down, right, length) of the pairs of pixels that count as one piece of boundary."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Cells of an image. A labelling of cells is one of pixels, and has the same energy on both."""

    cells: Tensor
    """[H, W] int64: the cell of each pixel, 0..K-1."""
    areas: Tensor
    """[K] float64, in pixels."""
    edges: Tensor
    """[2, E] int64: each pair of neighbouring cells once, the smaller first."""
    lengths: Tensor
    """[E] float64: length of the common boundary, in pixels."""
    neighbours: int
    """4 or 8: how lengths are measured."""

    def __len__(self) -> int:
        """Cells."""
        return len(self.areas)

    @property
    def is_grid(self) -> bool:
        """Whether every pixel is a cell of its own, in order."""
        return len(self.areas) == self.cells.numel() and bool(
            torch.equal(self.cells.flatten(), torch.arange(self.cells.numel(), device=self.cells.device))
        )

    def mean(self, costs: Tensor) -> Tensor:
        """Returns the means [K, L] over cells of costs [H, W, L].

        Raises:
            ValueError: Another image's costs.

        >>> from_labels([[0, 0, 1]]).mean(torch.tensor([[[1.0], [3.0], [5.0]]]))
        tensor([[2.],
                [5.]])
        """
        if costs.ndim != 3 or costs.shape[:2] != self.cells.shape:
            raise ValueError(
                f"the costs are {list(costs.shape)}; expected [{', '.join(map(str, self.cells.shape))}, L]"
            )
        flat = costs.reshape(-1, costs.shape[2])
        if len(self) == len(flat):
            out = torch.empty_like(flat)
            out[self.cells.flatten().to(flat.device)] = flat
            return out
        total = torch.zeros(len(self), flat.shape[1], dtype=torch.float64, device=flat.device)
        total.index_add_(0, self.cells.flatten().to(flat.device), flat.double())
        return (total / self.areas.to(flat.device)[:, None]).to(costs.dtype)

    def paint(self, values: Tensor) -> Tensor:
        """Returns values [K, ...] of cells as values [H, W, ...] of pixels.

        >>> from_labels([[0, 0, 1]]).paint(torch.tensor([7, 8]))
        tensor([[7, 7, 8]])
        """
        return values[self.cells.to(values.device)]


def pixel_grid(height: int, width: int, *, neighbours: int = 4) -> Graph:
    """Returns the graph whose cells are the pixels.

    Args:
        height: Rows.
        width: Columns.
        neighbours: 4: boundaries are as long as their pixel edges; 8: lengths are near to the Euclidean ones in any
            direction.

    Reference for 8: Boykov, Kolmogorov. "Computing Geodesics and Minimal Surfaces via Graph Cuts". ICCV 2003
    (Cauchy-Crofton).

    Raises:
        ValueError: No pixels, or another number of neighbours.

    >>> pixel_grid(2, 2).edges.tolist()
    [[0, 0, 1, 2], [1, 2, 3, 3]]
    """
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height} x {width} pixels has none; give at least 1 x 1")
    return from_labels(torch.arange(height * width).reshape(height, width), neighbours=neighbours, connected=False)


def from_labels(cells: object, *, neighbours: int = 4, connected: bool = True) -> Graph:
    """Returns the graph of a label image.

    Args:
        cells: [H, W] whole numbers; pixels with equal ones are one cell.
        neighbours: As for `pixel_grid`.
        connected: Cut cells of several pieces into these; pieces touch along pixel edges.

    Raises:
        ValueError: Another shape, no whole numbers, another number of neighbours.

    >>> graph = from_labels([[0, 0, 1], [0, 2, 2]])
    >>> graph.areas.tolist(), graph.edges.tolist(), graph.lengths.tolist()
    ([3.0, 1.0, 2.0], [[0, 0, 1], [1, 2, 2]], [1.0, 2.0, 1.0])
    """
    labels = torch.as_tensor(cells).cpu().numpy()
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "iub":
        raise ValueError(
            f"the label image is {list(labels.shape)} of {labels.dtype}; expected [height, width] of whole numbers"
        )
    if neighbours not in STEPS:
        raise ValueError(f"{neighbours} neighbours; a pixel has 4 or 8")
    own = _pieces(labels) if connected else np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    own = own.astype(np.int64)
    count = int(own.max()) + 1
    edges, lengths = _boundaries(own, count, neighbours)
    return Graph(
        cells=torch.from_numpy(own),
        areas=torch.from_numpy(np.bincount(own.ravel(), minlength=count).astype(np.float64)),
        edges=edges,
        lengths=lengths,
        neighbours=neighbours,
    )


def _pairs(cells: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of all pairs of pixels that are so far apart."""
    height, width = cells.shape
    left, stop = max(0, -right), width - max(0, right)
    first = cells[: height - down, left:stop]
    second = cells[down:, left + right : stop + right]
    return first.ravel(), second.ravel()


def _pieces(labels: np.ndarray) -> np.ndarray:
    """Connected pieces of equal labels, numbered in the order in which they are met."""
    numbers = np.arange(labels.size).reshape(labels.shape)
    ends = []
    for down, right, _ in STEPS[4]:
        (a, b), (one, other) = _pairs(labels, down, right), _pairs(numbers, down, right)
        ends.append((one[a == b], other[a == b]))
    rows, columns = (np.concatenate(side) for side in zip(*ends, strict=True))
    joined = sparse.coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(labels.size,) * 2)
    return connected_components(joined, directed=False)[1].reshape(labels.shape)


def _boundaries(cells: np.ndarray, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Edges [2, E] in order, and how long each is."""
    keys, weights = [], []
    for down, right, length in STEPS[neighbours]:
        a, b = _pairs(cells, down, right)
        apart = a != b
        low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        keys.append(low * count + high)
        weights.append(np.full(len(low), length))
    key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    lengths = np.bincount(inverse, weights=np.concatenate(weights), minlength=len(key))
    return torch.from_numpy(np.stack([key // count, key % count])), torch.from_numpy(lengths)
