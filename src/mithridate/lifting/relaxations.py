"""The convex relaxations and one primal-dual step of each: Potts, total variation, truncated total variation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from mithridate.core.simplex import onto_simplex
from mithridate.lifting.differences import Differences


class Bounds(NamedTuple):
    """Where the optimum of a relaxation lies."""

    primal: float
    """Of a feasible point: not below the optimum."""
    dual: float
    """Not above it."""


class Relaxation(ABC):
    """A relaxation and the state of its solver: preconditioned primal-dual hybrid gradient.

    Reference: Pock, Chambolle. "Diagonal preconditioning for first order primal-dual algorithms in convex
    optimization". ICCV 2011, with alpha 1: steps are one over the row and column sums of the operator. `ratio` makes
    dual steps longer and primal ones shorter by the same factor.
    """

    @abstractmethod
    def step(self) -> None:
        """Takes one step."""

    @abstractmethod
    def bounds(self) -> Bounds:
        """Returns the energies of a feasible primal and a feasible dual point, added up in float64."""

    @abstractmethod
    def labels(self) -> Tensor:
        """Returns the rounded solution [K] int64."""

    @abstractmethod
    def relaxed(self) -> Tensor:
        """Returns the feasible relaxed solution."""


def total(*parts: Tensor) -> float:
    return float(sum(part.sum(dtype=torch.float64) for part in parts))


def primal_steps(degree: Tensor, ratio: float, extra: float = 0.0) -> Tensor:
    """[K, 1] step of each cell; a cell without neighbours gets the largest finite one."""
    sums = degree * (1 + extra)
    least = sums[sums > 0].min() if bool((sums > 0).any()) else sums.new_ones(())
    return (1 / (ratio * torch.where(sums > 0, sums, least)))[:, None]


class PottsRelaxation(Relaxation):
    """v in the simplex of labels, and half the weight for each label's boundary.

    Reference: Zach, Gallup, Frahm, Niethammer. "Fast Global Labeling for Real-Time Stereo Using Multiple Plane Sweeps".
    VMV 2008; Lellmann et al. "Convex Multi-Class Image Labeling by Simplex-Constrained Total Variation". SSVM 2009.
    """

    def __init__(self, along: Differences, costs: Tensor, weight: float, ratio: float) -> None:
        self.along, self.costs, self.bound = along, costs, weight / 2
        self.dual_step = ratio / 2
        self.primal_step = primal_steps(along.degree, ratio)
        self.v = torch.full_like(costs, 1 / costs.shape[1])
        self.ahead = self.v.clone()
        self.p = along.zeros(costs.shape[1])
        self.slope = torch.empty_like(costs)

    def step(self) -> None:
        for p, part in zip(self.p, self.along.each(self.ahead), strict=True):
            p.add_(part, alpha=self.dual_step).clamp_(-self.bound, self.bound)
        slope = self.along.back(self.p, self.slope).add_(self.costs).mul_(self.primal_step)
        new = lowered_onto_simplex(torch.sub(self.v, slope, out=slope))
        torch.mul(new, 2, out=self.ahead).sub_(self.v)
        self.v, self.slope = new, self.v

    def bounds(self) -> Bounds:
        v = self.relaxed()
        edges = [part.abs().mul(length) for part, length in zip(self.along.each(v), self.along.lengths, strict=True)]
        below = self.along.back(self.p, torch.empty_like(v)).add_(self.costs).amin(1)
        return Bounds(total(v * self.costs) + self.bound * total(*edges), total(below))

    def labels(self) -> Tensor:
        return self.v.argmax(1)

    def relaxed(self) -> Tensor:
        return self.v / self.v.sum(1, keepdim=True)


class OrderedRelaxation(Relaxation):
    """v_l in [0, 1]: whether the label is above l, falling in l; total variation of every layer.

    The order is kept by one multiplier per cell and pair of layers.

    Reference: Ishikawa. "Exact Optimization for Markov Random Fields with Convex Priors". PAMI 25(10), 2003; Pock,
    Cremers, Bischof, Chambolle. "Global Solutions of Variational Models with Convex Regularization". SIAM J. Imaging
    Sciences 3(4), 2010.
    """

    order = 0.25
    """Weight of the order beside the boundaries of a cell; it changes the steps, not the solution."""

    def __init__(self, along: Differences, costs: Tensor, weight: float, values: Tensor, ratio: float) -> None:
        self.along, self.first = along, costs[:, :1].clone()
        self.slopes = costs.diff(dim=1)
        self.bound = (weight * values.diff()).to(costs)
        self.dual_step = ratio / 2
        self.primal_step = primal_steps(along.degree, ratio, 2 * self.order)
        self.scale = self.order * along.degree[:, None]
        self.v = torch.full_like(self.slopes, 0.5)
        self.ahead = self.v.clone()
        self.p = along.zeros(self.slopes.shape[1])
        self.q = torch.zeros_like(self.slopes[:, 1:])
        self.slope = torch.empty_like(self.slopes)

    def step(self) -> None:
        for p, part in zip(self.p, self.along.each(self.ahead), strict=True):
            torch.minimum(torch.maximum(p.add_(part, alpha=self.dual_step), -self.bound, out=p), self.bound, out=p)
        self.q.add_(self.ahead.diff(dim=1), alpha=self.dual_step).clamp_min_(0)
        slope = self.along.back(self.p, self.slope).add_(self.slopes)
        pressed = self.q * self.scale
        slope[:, 1:] += pressed
        slope[:, :-1] -= pressed
        new = torch.sub(self.v, slope.mul_(self.primal_step), out=slope).clamp_(0, 1)
        torch.mul(new, 2, out=self.ahead).sub_(self.v)
        self.v, self.slope = new, self.v

    def bounds(self) -> Bounds:
        v = self.relaxed()
        edges = [
            part.abs().mul(self.bound).mul(length)
            for part, length in zip(self.along.each(v), self.along.lengths, strict=True)
        ]
        sums = self.along.back(self.p, torch.empty_like(v)).add_(self.slopes).cumsum(1)
        below = sums.amin(1).clamp_max(0)  # the best falling v is 1 up to some layer and 0 beyond
        return Bounds(
            total(self.first, v * self.slopes) + total(*edges),
            total(self.first, below),
        )

    def labels(self) -> Tensor:
        return (self.relaxed() >= 0.5).sum(1)

    def relaxed(self) -> Tensor:
        return self.v.cummin(1).values


class TruncatedRelaxation(Relaxation):
    """v in the simplex of labels; an edge moves the mass of one cell's labels to the other's at the truncated cost.

    Moving label by label costs the weight, leaving one label and entering any other half of the limit each. So a jump
    costs the smaller of both, and the relaxation is the tight one of all pairs of labels with as many numbers per edge
    as there are labels.

    Reference: the local polytope of a metric: Kleinberg, Tardos. "Approximation algorithms for classification problems
    with pairwise relationships". JACM 49(5), 2002; as a flow along the labels: Boykov, Veksler, Zabih. PAMI 23(11),
    2001, for the model.
    """

    def __init__(
        self, along: Differences, costs: Tensor, weight: float, limit: float, values: Tensor, ratio: float
    ) -> None:
        self.along, self.costs, self.bound = along, costs, limit / 2
        self.slack = (weight * values.diff()).to(costs)
        self.ratio, self.dual_step = ratio, ratio / 4
        self.primal_step = primal_steps(along.degree, ratio)
        self.v = torch.full_like(costs, 1 / costs.shape[1])
        self.ahead = self.v.clone()
        self.p = along.zeros(costs.shape[1])
        self.flows = along.zeros(costs.shape[1] - 1)
        self.flows_ahead = along.zeros(costs.shape[1] - 1)
        self.slope = torch.empty_like(costs)

    def step(self) -> None:
        for p, flow, part in zip(self.p, self.flows_ahead, self.along.each(self.ahead), strict=True):
            p.add_(_left(part, flow), alpha=self.dual_step).clamp_(-self.bound, self.bound)
        slope = self.along.back(self.p, self.slope).add_(self.costs).mul_(self.primal_step)
        new = lowered_onto_simplex(torch.sub(self.v, slope, out=slope))
        torch.mul(new, 2, out=self.ahead).sub_(self.v)
        self.v, self.slope = new, self.v
        far = self.slack / (2 * self.ratio)
        for p, flow, ahead in zip(self.p, self.flows, self.flows_ahead, strict=True):
            moved = flow - p.diff(dim=-1) / (2 * self.ratio)
            moved -= torch.minimum(torch.maximum(moved, -far), far)
            torch.mul(moved, 2, out=ahead).sub_(flow)
            flow.copy_(moved)

    def bounds(self) -> Bounds:
        v = self.relaxed()
        edges = []
        for flow, part, length in zip(self.flows, self.along.each(v), self.along.lengths, strict=True):
            edges.append((flow.abs() * self.slack * length).sum(-1, dtype=torch.float64))
            edges.append(self.bound * (_left(part, flow).abs_() * length).sum(-1, dtype=torch.float64))
        below = self.along.back([self._feasible(p) for p in self.p], torch.empty_like(v)).add_(self.costs).amin(1)
        return Bounds(total(v * self.costs, *edges), total(below))

    def _feasible(self, p: Tensor) -> Tensor:
        """The largest field below this one whose differences along the labels are within the weight."""
        found = p.clone()
        for label in range(1, found.shape[-1]):
            torch.minimum(found[..., label], found[..., label - 1] + self.slack[label - 1], out=found[..., label])
        for label in range(found.shape[-1] - 2, -1, -1):
            torch.minimum(found[..., label], found[..., label + 1] + self.slack[label], out=found[..., label])
        return found

    def labels(self) -> Tensor:
        return (self.v.cumsum(1) < 0.5 * self.v.sum(1, keepdim=True)).sum(1).clamp_max(self.v.shape[1] - 1)

    def relaxed(self) -> Tensor:
        return self.v / self.v.sum(1, keepdim=True)


def _left(part: Tensor, flow: Tensor) -> Tensor:
    """What flows along the labels leave of a difference; part is overwritten."""
    part[..., :-1] -= flow
    part[..., 1:] += flow
    return part


NEWTON = 12
"""Largest number of steps to a threshold on the simplex; sorting instead is slower from about 20 labels on."""


def lowered_onto_simplex(vectors: Tensor) -> Tensor:
    """Returns the nearest points [K, L] of the simplex; in place.

    All entries are lowered by one threshold. The sum of what is above a threshold is convex and falls, so that Newton's
    method from the left meets it in a few steps, and exactly.

    >>> lowered_onto_simplex(torch.tensor([[1.0, 0.5], [-3.0, 7.0]]))
    tensor([[0.7500, 0.2500],
            [0.0000, 1.0000]])
    """
    if vectors.shape[1] <= 20:
        return vectors.copy_(onto_simplex(vectors))
    threshold = vectors.amax(1, keepdim=True).sub_(1)
    for _ in range(NEWTON):
        above = vectors > threshold
        step = ((vectors - threshold).clamp_min_(0).sum(1, keepdim=True) - 1) / above.sum(1, keepdim=True)
        threshold += step
        if float(step.abs().max()) <= 1e-7:
            break
    return vectors.sub_(threshold).clamp_min_(0)
