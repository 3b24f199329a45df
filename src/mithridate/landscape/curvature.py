"""Curvature: eigenvalues, trace and spectral density of the Hessian of a loss, from Hessian-vector products alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from mithridate.core.progress import track
from mithridate.landscape.losses import Loss

Product = Callable[[np.ndarray], np.ndarray]
DENSE = 32
"""Up to so many parameters the Hessian is written out; Lanczos needs more room than that to work in."""


def dense_hessian(loss: Loss) -> Tensor:
    """Returns the Hessian [P, P] in float64, a column per product: for small networks.

    >>> from torch import nn
    >>> dense_hessian(Loss(nn.Linear(2, 2), torch.rand(5, 2), torch.tensor([0, 1, 0, 0, 1]))).shape
    torch.Size([6, 6])
    """
    units = torch.eye(loss.size, dtype=torch.float64, device=loss.inputs.device)
    found = torch.stack([loss.hessian_times(unit) for unit in units])
    return (found + found.T) / 2


def eigenvalues(
    loss: Loss,
    count: int = 1,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Tensor:
    """Returns extreme eigenvalues of the Hessian, the most extreme first, by Lanczos' method (ARPACK).

    Args:
        loss: Where the Hessian is taken: at its model.
        count: How many.
        which: largest: the most positive ones. smallest: the most negative ones.
        tolerance: Accuracy, relative to the largest eigenvalue.
        seed: Of the vector that the search starts from.

    Returns:
        [count] float64.

    Raises:
        ValueError: No eigenvalues asked for, or more than there are.

    >>> from torch import nn
    >>> loss = Loss(nn.Linear(2, 2), torch.rand(5, 2), torch.tensor([0, 1, 0, 0, 1]))
    >>> bool(eigenvalues(loss) > 0), bool(eigenvalues(loss, which="smallest").abs() < 1e-6)
    (True, True)
    """
    if not 1 <= count <= loss.size:
        raise ValueError(f"{count} eigenvalues; the Hessian of {loss.size:,} parameters has 1 to {loss.size:,}")
    if loss.size <= DENSE or count >= loss.size - 1:
        found = torch.linalg.eigvalsh(dense_hessian(loss)).cpu()
    else:
        start = np.random.default_rng(seed).standard_normal(loss.size)
        product = _product(loss)
        values = _topmost(product, start, count if which == "largest" else 1, tolerance)
        if which == "smallest":  # seen from the other end: a relative accuracy of what is near zero is never reached
            top = max(abs(float(values[-1])), 1e-30)
            values = top - _topmost(lambda vector: top * vector.ravel() - product(vector), start, count, tolerance)
        found = torch.from_numpy(np.sort(values))
    return found.flip(0)[:count] if which == "largest" else found[:count]


def _topmost(product: Product, start: np.ndarray, count: int, tolerance: float) -> np.ndarray:
    settings: dict[str, Any] = {"tol": tolerance, "v0": start, "return_eigenvectors": False}
    shape: Any = (len(start), len(start))
    operator: Any = LinearOperator(shape, matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    return np.asarray(eigsh(operator, k=count, which="LA", **settings))


def _product(loss: Loss) -> Product:
    def times(vector: np.ndarray) -> np.ndarray:
        way = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(loss.inputs.device)
        return loss.hessian_times(way).cpu().numpy()

    return times


class Trace(NamedTuple):
    """An estimate of a trace."""

    value: float
    error: float
    """Standard error of the estimate."""
    probes: int


def trace(loss: Loss, probes: int = 30, seed: int = 0) -> Trace:
    """Estimates the trace of the Hessian: the mean of v . H v over random signs v.

    Reference: Hutchinson. "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing
    Splines". Communications in Statistics 18(3), 1989.

    Args:
        loss: Where the Hessian is taken.
        probes: Vectors of random signs, at least 2.
        seed: Of the signs.

    Raises:
        ValueError: Fewer than two probes.
    """
    _check_probes(probes, 2)
    found = []
    for signs in track(list(_signs(loss, probes, seed)), "trace"):
        found.append(float(signs @ loss.hessian_times(signs)))
    return Trace(float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(probes), probes)


class Density(NamedTuple):
    """How the eigenvalues of a Hessian are spread."""

    values: Tensor
    """[G] eigenvalues, evenly spaced."""
    heights: Tensor
    """[G] share of all eigenvalues per unit of eigenvalue; adds up to 1 over the grid."""
    nodes: Tensor
    """[probes, steps] eigenvalues of the small matrices; NaN where Lanczos' method ended early."""
    weights: Tensor
    """[probes, steps] share of all eigenvalues that each stands for; 0 where it ended early."""

    @property
    def mean(self) -> float:
        """Mean eigenvalue: the trace over the number of parameters, from the nodes."""
        return float((self.nodes.nan_to_num(0) * self.weights).sum(1).mean())

    @property
    def negative(self) -> float:
        """Share of eigenvalues below zero, from the nodes: those within rounding of zero count as they fall."""
        return float((self.weights * (self.nodes < 0)).sum(1).mean())


def density(
    loss: Loss, *, probes: int = 5, steps: int = 60, points: int = 400, width: float | None = None, seed: int = 0
) -> Density:
    """Estimates the spectral density of the Hessian by stochastic Lanczos quadrature.

    Reference: Ghorbani, Krishnan, Xiao. "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density".
    ICML 2019. arXiv 1901.10159. Ubaru, Chen, Saad. "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature".
    SIAM J. Matrix Analysis and Applications 38(4), 2017.

    Args:
        loss: Where the Hessian is taken.
        probes: Random vectors.
        steps: Of Lanczos' method for each, with full reorthogonalisation.
        points: Of the grid.
        width: Standard deviation of the bell that each node is drawn as; by default a 200th of the range.
        seed: Of the vectors.

    Raises:
        ValueError: No probes or no steps, or a width that is not positive.
    """
    _check_probes(probes, 1)
    if steps < 1 or points < 2 or (width is not None and not width > 0):
        raise ValueError(f"{steps} steps, {points} points, width {width}; give 1 or more, 2 or more, more than 0")
    steps = min(steps, loss.size)
    nodes = torch.full((probes, steps), math.nan, dtype=torch.float64)
    weights = torch.zeros(probes, steps, dtype=torch.float64)
    for probe, signs in track(list(enumerate(_signs(loss, probes, seed))), "density"):
        values, vectors = eigh_tridiagonal(*_tridiagonal(loss, signs, steps))
        nodes[probe, : len(values)] = torch.from_numpy(values)
        weights[probe, : len(values)] = torch.from_numpy(vectors[0] ** 2)
    known = weights > 0
    low, high = float(nodes[known].min()), float(nodes[known].max())
    spread = width or max(high - low, 1e-12) / 200
    grid = torch.linspace(low - 5 * spread, high + 5 * spread, points, dtype=torch.float64)
    bells = torch.exp(-0.5 * ((grid[:, None] - nodes[known]) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    heights = (bells * weights[known]).sum(1) / probes
    return Density(grid, heights, nodes, weights)


def _tridiagonal(loss: Loss, start: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and off-diagonal of the Hessian seen from a vector."""
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(steps):
        moved = loss.hessian_times(basis[-1])
        diagonal.append(float(moved @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough
            moved = moved - known.T @ (known @ moved)
        length = float(moved.norm())
        if length <= 1e-10 * max(1e-30, abs(diagonal[0]), *map(abs, beside[:1])) or len(diagonal) == steps:
            break
        beside.append(length)
        basis.append(moved / length)
    return np.array(diagonal), np.array(beside)


def _signs(loss: Loss, count: int, seed: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (2.0 * torch.randint(2, (loss.size,), generator=rng) - 1).double().to(loss.inputs.device)


def _check_probes(probes: int, least: int) -> None:
    if probes < least:
        raise ValueError(f"{probes} probes; give {least} or more")
