"""Differences along the edges of a graph and their adjoint: slices on a pixel grid, gathers on any other graph."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from mithridate.lifting.graph import STEPS, Graph


class Differences(ABC):
    """Edges in parts; a field on edges is a list of tensors [edges of the part, L], or of grids of them."""

    lengths: list[Tensor]
    """Of each part: what broadcasts against a field of it."""
    degree: Tensor
    """[K] sum of the lengths of a cell's edges."""

    @abstractmethod
    def zeros(self, labels: int) -> list[Tensor]:
        """Returns a field of zeros."""

    @abstractmethod
    def each(self, values: Tensor) -> Iterator[Tensor]:
        """Yields, part by part, the value [.., L] of the first cell of each edge minus that of the second.

        What is yielded is overwritten when the next part is asked for.
        """

    @abstractmethod
    def back(self, field: list[Tensor], out: Tensor) -> Tensor:
        """Returns `out` [K, L]: for every cell the sum of length x field over its edges, minus where it is second."""


def differences(graph: Graph, dtype: torch.dtype, device: torch.device | str) -> Differences:
    """Returns those of a graph.

    >>> from mithridate.lifting.graph import pixel_grid
    >>> found = differences(pixel_grid(1, 3), torch.float64, "cpu")
    >>> [part.flatten().tolist() for part in found.each(torch.tensor([[1.0], [3.0], [9.0]]).double())][0]
    [-2.0, -6.0]
    """
    return _OnGrid(graph, dtype, device) if graph.is_grid else _OnGraph(graph, dtype, device)


class _OnGraph(Differences):
    def __init__(self, graph: Graph, dtype: torch.dtype, device: torch.device | str) -> None:
        self.first, self.second = graph.edges.to(device)
        self.dtype, self.device = dtype, device
        length = graph.lengths.to(device=device, dtype=dtype)
        self.lengths = [length[:, None]]
        self.degree = torch.zeros(len(graph), dtype=dtype, device=device)
        self.degree.index_add_(0, self.first, length).index_add_(0, self.second, length)
        count, cells = len(length), len(graph)
        numbers = torch.arange(count, device=device)
        where = torch.stack([torch.cat([self.first, self.second]), torch.cat([numbers, numbers])])
        signed = torch.cat([length, -length])
        with warnings.catch_warnings():
            for notice in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
                warnings.filterwarnings("ignore", notice)
            self.adjoint = torch.sparse_coo_tensor(where, signed, (cells, count)).coalesce().to_sparse_csr()

    def zeros(self, labels: int) -> list[Tensor]:
        return [torch.zeros(len(self.first), labels, dtype=self.dtype, device=self.device)]

    def each(self, values: Tensor) -> Iterator[Tensor]:
        yield values.index_select(0, self.first).sub_(values.index_select(0, self.second))

    def back(self, field: list[Tensor], out: Tensor) -> Tensor:
        return out.copy_(self.adjoint @ field[0])


class _OnGrid(Differences):
    def __init__(self, graph: Graph, dtype: torch.dtype, device: torch.device | str) -> None:
        self.height, self.width = graph.cells.shape
        self.dtype, self.device = dtype, device
        self.steps = STEPS[graph.neighbours]
        self.lengths = [torch.tensor(length, dtype=dtype, device=device) for _, _, length in self.steps]
        ones = torch.ones(len(graph), 1, dtype=dtype, device=device)
        self.degree = torch.zeros_like(ones)
        for step, part in zip(self.steps, self.each(ones), strict=True):
            for side in self._ends(self.degree, step):
                side += step[2] * torch.ones_like(part)
        self.degree = self.degree[:, 0]

    def _ends(self, values: Tensor, step: tuple[int, int, float]) -> tuple[Tensor, Tensor]:
        """The first and the second cells of the edges of a part, as grids [.., .., L] that share memory."""
        grid, (down, right, _) = values.view(self.height, self.width, -1), step
        left, stop = max(0, -right), self.width - max(0, right)
        return grid[: self.height - down, left:stop], grid[down:, left + right : stop + right]

    def zeros(self, labels: int) -> list[Tensor]:
        room = torch.empty(1, device=self.device).expand(self.height * self.width, labels)
        return [
            torch.zeros(first.shape, dtype=self.dtype, device=self.device)
            for first in (self._shape(room, step) for step in self.steps)
        ]

    def _shape(self, room: Tensor, step: tuple[int, int, float]) -> Tensor:
        grid, (down, right, _) = room.unflatten(0, (self.height, self.width)), step
        return grid[: self.height - down, : self.width - abs(right)]

    def each(self, values: Tensor) -> Iterator[Tensor]:
        for step in self.steps:
            first, second = self._ends(values, step)
            yield first - second

    def back(self, field: list[Tensor], out: Tensor) -> Tensor:
        out.zero_()
        for step, part in zip(self.steps, field, strict=True):
            first, second = self._ends(out, step)
            first.add_(part, alpha=step[2])
            second.sub_(part, alpha=step[2])
        return out
