"""Convex combinations: which weights, non-negative and summing to one, bring points nearest to a target.

Nothing here reads a value back from the device: the number of iterations is fixed, and how far a solution may be from
the best one is a tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SQUARINGS = 10
"""The 1024th power of a matrix of order k gives its spectral norm to within ln(k) / 1024: 0.6 % for k = 500."""


def onto_simplex(vectors: Tensor) -> Tensor:
    """Returns the nearest points, in the Euclidean norm, with non-negative entries that sum to one.

    Reference: Held, Wolfe, Crowder. "Validation of subgradient optimization". Mathematical Programming 6, 1974: the
    entries are lowered by one threshold. It is the largest of (sum of the i largest entries - 1) / i.

    Args:
        vectors: [..., k].

    >>> onto_simplex(torch.tensor([[1.0, 0.5], [-3.0, 7.0]]))
    tensor([[0.7500, 0.2500],
            [0.0000, 1.0000]])
    """
    ranks = torch.arange(1, vectors.shape[-1] + 1, device=vectors.device, dtype=vectors.dtype)
    excess = vectors.sort(dim=-1, descending=True).values.cumsum(-1).sub_(1).div_(ranks)
    return (vectors - excess.amax(-1, keepdim=True)).clamp_min_(0)


class Quadratic(NamedTuple):
    """Half the squared distance of a target to combinations s of points: s.(gram s) / 2 - s.pull + constant.

    >>> Quadratic.of(torch.eye(2), torch.zeros(2)).minimiser(iterations=50)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    gram: Tensor
    """[..., k, k] float64 inner products of the points, from their mean."""
    pull: Tensor
    """[..., k] float64 inner products of the points with the target, from the mean of the points."""

    @classmethod
    def of(cls, points: Tensor, target: Tensor) -> Quadratic:
        """Returns the problem of points [..., k, D] and a target [..., D], in float64.

        Weights that sum to one see differences between points alone. So all is taken from their mean: the Gram matrix
        of points that are far from zero and near each other would allow steps far smaller than the problem does.
        """
        points, target = points.double(), target.double()
        middle = points.mean(-2, keepdim=True)
        points, target = points - middle, target.unsqueeze(-2) - middle
        return cls(points @ points.mT, (points @ target.mT).squeeze(-1))

    def minimiser(self, start: Tensor | None = None, *, iterations: int) -> Tensor:
        """Returns weights [..., k] after so many accelerated projected gradient steps; all problems move at once.

        The momentum begins anew where it points uphill.

        Reference: Beck, Teboulle. "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems". SIAM
        J. Imaging Sciences 2(1), 2009; restarts: O'Donoghue, Candes. "Adaptive Restart for Accelerated Gradient
        Schemes". Foundations of Computational Mathematics 15, 2015. arXiv 1204.3982.

        Args:
            start: [..., k] on the simplex; equal weights unless given.
            iterations: how many.
        """
        k = self.gram.shape[-1]
        steepest = spectral_norm(self.gram).clamp_min(torch.finfo(self.gram.dtype).tiny)[..., None]
        keep = torch.eye(k, device=self.gram.device, dtype=self.gram.dtype) - self.gram / steepest[..., None]
        gain = self.pull / steepest
        weights = torch.full_like(self.pull, 1 / k) if start is None else start.to(self.pull)
        ahead, age = weights, torch.ones_like(steepest)
        for _ in range(iterations):
            before, weights = weights, onto_simplex((keep @ ahead[..., None])[..., 0] + gain)
            moved = weights - before
            uphill = ((ahead - weights) * moved).sum(-1, keepdim=True) > 0
            older = (1 + (1 + 4 * age.square()).sqrt()) / 2
            ahead = weights + torch.where(uphill, 0.0, (age - 1) / older) * moved
            age = torch.where(uphill, 1.0, older)
        return weights

    def gap(self, weights: Tensor) -> Tensor:
        """Returns the Frank-Wolfe gap [...] of weights [..., k]: the objective is at most this far above its minimum.

        Reference: Jaggi. "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization". ICML 2013.
        """
        slope = (self.gram @ weights[..., None])[..., 0] - self.pull
        return (weights * slope).sum(-1) - slope.amin(-1)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Returns the largest eigenvalue [...] of symmetric matrices [..., k, k] without negative ones.

    Never below it, and above it by less than 1 %: from the trace of a high power. The solvers of torch.linalg would
    make the program wait for a GPU, to see whether they have converged.

    >>> round(spectral_norm(torch.diag(torch.tensor([3.0, 2.0]))).item(), 4)
    3.0
    """
    total = torch.zeros_like(matrices[..., 0, 0])
    for number in range(SQUARINGS + 1):
        trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(matrices.dtype).tiny)
        total += trace.log() / 2**number
        matrices = matrices / trace[..., None, None]
        if number < SQUARINGS:
            matrices = matrices @ matrices
    return total.exp()


def convex_coefficients(
    points: Tensor, target: Tensor, start: Tensor | None = None, *, iterations: int = 1000
) -> Tensor:
    """Returns the weights of the convex combination of points that is nearest to a target, [..., k] float64.

    `Quadratic.gap` tells how near to the best they are.

    Args:
        points: [..., k, D].
        target: [..., D].
        start: [..., k] weights near the answer, such as those of slightly different points; equal ones unless given.
        iterations: accelerated projected gradient steps.

    >>> corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> convex_coefficients(corners, torch.tensor([1.0, 2.0])).round(decimals=4).tolist()
    [0.25, 0.25, 0.5]
    """
    return Quadratic.of(points, target).minimiser(start, iterations=iterations)
