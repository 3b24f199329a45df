"""Sublabel-accurate lifting: few coarse labels, and between them the convex hull of what the fine ones cost."""

from __future__ import annotations

import torch
from torch import Tensor

from mithridate.lifting.differences import Differences
from mithridate.lifting.relaxations import Bounds, Relaxation, primal_steps, total


class SublabelRelaxation(Relaxation):
    """v_i in [0, 1]: how much of interval i between two coarse labels lies below the label; total variation.

    A label between two coarse ones is a fraction of their interval, so that every labelling by fine labels is a
    feasible point with its own energy: the dual value bounds them all, with as many numbers per cell and edge as there
    are intervals. Within an interval the costs are replaced by the largest convex function below them, so the bound is
    the weaker the less convex the costs are there; with one label per interval it is the bound of `OrderedRelaxation`.

    A cell may mix labels of several intervals. Its cost is the least of all mixtures that give v: mu_i is the share of
    labels above interval i, theta_i = mu_(i-1) - mu_i the share within it, a_i = v_i - mu_i the filled part of that,
    and theta_i h_i(a_i / theta_i) the cost, h_i the hull. Its dual pairs (r_i, c_i) lie above the conjugate of h_i, and
    are projected there in closed form.

    Reference: Möllenhoff, Laude, Moeller, Lellmann, Cremers. "Sublabel-Accurate Relaxation of Nonconvex Energies".
    CVPR 2016, arXiv 1512.01383; here with piecewise linear hulls, and mu for their sums over labels.
    """

    order = 0.25
    """Weight of the costs' rows beside the boundaries of a cell; it changes the steps, not the solution."""

    def __init__(
        self, along: Differences, costs: Tensor, weight: float, values: Tensor, sublabels: int, ratio: float
    ) -> None:
        knots = intervals(len(values), sublabels, costs.device)
        ends = values[knots[:, [0, -1]]]
        width = (ends[:, 1] - ends[:, 0])[:, None]
        self.knots = knots
        shares = ((values[knots] - ends[:, :1]) / width).to(costs)
        self.shares = list(shares.T.contiguous())
        self.slopes, self.heights = hull(costs, knots, shares)
        near = 1e-4 * (costs.amax(1) - costs.amin(1))[:, None]
        self.touching = [costs[:, knot] <= height + near for knot, height in zip(knots.T, self.heights, strict=True)]
        self.along, self.bound = along, (weight * width[:, 0]).to(costs)
        base = primal_steps(along.degree, 1.0)
        self.p_step, self.cost_step = ratio / 2, ratio * self.order / (2 * base)
        self.v_step, self.mu_step = base / (ratio * (1 + self.order)), base / (ratio * 3 * self.order)
        count = len(knots)
        self.v = costs.new_full((len(costs), count), 0.5)
        self.mu = torch.full_like(self.v[:, 1:], 0.5)
        self.v_ahead, self.mu_ahead = self.v.clone(), self.mu.clone()
        self.p = along.zeros(count)
        self.r, self.c = torch.zeros_like(self.v), torch.zeros_like(self.v)
        self.slope = torch.empty_like(self.v)

    def step(self) -> None:
        for p, part in zip(self.p, self.along.each(self.v_ahead), strict=True):
            torch.minimum(torch.maximum(p.add_(part, alpha=self.p_step), -self.bound, out=p), self.bound, out=p)
        within, filled = _mixture(self.v_ahead, self.mu_ahead)
        self.r, self.c = above_conjugate(
            self.r.addcmul_(filled, self.cost_step),
            self.c.addcmul_(within, self.cost_step, value=-1),
            self.shares,
            self.heights,
            self.slopes,
        )
        slope = self.along.back(self.p, self.slope).add_(self.r).mul_(self.v_step)
        new = torch.sub(self.v, slope, out=slope).clamp_(0, 1)
        torch.mul(new, 2, out=self.v_ahead).sub_(self.v)
        self.v, self.slope = new, self.v
        pressed = (self.r + self.c.diff(dim=1, append=self.c[:, -1:]))[:, :-1]
        mu = self.mu.addcmul(pressed, self.mu_step).clamp_(0, 1)
        self.mu_ahead, self.mu = 2 * mu - self.mu, mu

    def bounds(self) -> Bounds:
        v = self.relaxed()
        edges = [
            part.abs().mul(self.bound).mul(length)
            for part, length in zip(self.along.each(v), self.along.lengths, strict=True)
        ]
        within, filled = _mixture(v, self._mu(v))
        cost = torch.full_like(v, -torch.inf)
        for share, height, slope in zip(self.shares[:-1], self.heights[:-1], self.slopes, strict=True):
            torch.maximum(cost, within * (height - slope * share) + slope * filled, out=cost)
        pull = self.along.back(self.p, torch.empty_like(v))
        before = pull.cumsum(1) - pull
        below = torch.full_like(v[:, 0], torch.inf)
        for share, height in zip(self.shares, self.heights, strict=True):
            below = torch.minimum(below, (before + share * pull + height).amin(1))
        return Bounds(total(cost) + total(*edges), total(below))

    def labels(self) -> Tensor:
        """The nearest label that costs no more than the hull, in the interval where half of the mixture is reached."""
        v = self.relaxed()
        mu = self._mu(v)
        within, filled = _mixture(v, mu)
        middle = (mu >= 0.5).sum(1, keepdim=True)
        share = filled.gather(1, middle) / within.gather(1, middle).clamp_min(1e-6)
        best, chosen = torch.full_like(share, torch.inf), torch.zeros_like(middle)
        for number, (places, touching) in enumerate(zip(self.shares, self.touching, strict=True)):
            away = (places[middle] - share).abs_()
            nearer = touching.gather(1, middle) & (away < best)
            best, chosen = torch.where(nearer, away, best), torch.where(nearer, number, chosen)
        return self.knots[middle, chosen][:, 0]

    def relaxed(self) -> Tensor:
        return self.v.cummin(1).values

    def _mu(self, v: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(self.mu, v[:, 1:]), v[:, :-1])


def _mixture(v: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the mixture within each interval, and the filled parts of them."""
    above = torch.cat([mu, mu.new_zeros(len(mu), 1)], dim=1)
    within = torch.cat([mu.new_ones(len(mu), 1), mu], dim=1) - above
    return within, v - above


def intervals(labels: int, sublabels: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the labels of each interval, [intervals, sublabels + 1]; what the last lacks repeats the last label.

    >>> intervals(6, 3)
    tensor([[0, 1, 2, 3],
            [3, 4, 5, 5]])
    """
    first = torch.arange(0, labels - 1, sublabels, device=device)
    return (first[:, None] + torch.arange(sublabels + 1, device=device)).clamp_max(labels - 1)


def hull(costs: Tensor, knots: Tensor, shares: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the largest convex functions below the costs, interval by interval.

    The slope at a place is the largest, over starts before it, of the smallest slope from there to any end behind it.

    Args:
        costs: [K, L].
        knots: [I, M + 1] labels of each interval; repeated ones at the end count once.
        shares: [I, M + 1] where they lie in it, 0 to 1.

    Returns:
        M slopes [K, I] between knots, not falling, and M + 1 heights [K, I] at them.

    >>> knots = intervals(4, 3)
    >>> slopes, heights = hull(torch.tensor([[0.0, 5.0, 2.0, 3.0]]), knots, knots / 3)
    >>> [round(float(height), 6) for height in heights]
    [0.0, 1.0, 2.0, 3.0]
    """
    at = [costs[:, knot] for knot in knots.T]
    places = list(shares.T)
    count = len(at) - 1
    slopes: list[Tensor | None] = [None] * count
    for start in range(count):
        least = torch.full_like(at[0], torch.inf)
        for end in range(count, start, -1):
            apart = places[end] - places[start]
            slope = (at[end] - at[start]) / torch.where(apart > 0, apart, 1)
            least = torch.minimum(least, torch.where(apart > 0, slope, torch.inf))
            before = slopes[end - 1]
            slopes[end - 1] = least.clone() if before is None else torch.maximum(before, least)
    found: list[Tensor] = []
    heights = [at[0].contiguous()]
    for number, slope in enumerate(slopes):
        assert slope is not None
        step = places[number + 1] - places[number]
        real = slope if number == 0 else torch.where(step > 0, slope, found[-1])
        found.append(real)
        heights.append(heights[-1] + real * step)
    return found, heights


def above_conjugate(
    r: Tensor, c: Tensor, shares: list[Tensor], heights: list[Tensor], slopes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the points nearest to (r, c) that lie above the conjugate of hulls, max over knots of share r - height.

    The conjugate is piecewise linear: of slope `share` between two `slopes`. The normals at its kinks fan out, so the
    nearest point is on the first piece on which the foot of the perpendicular does not lie beyond its end.

    Args:
        r: [K, I].
        c: [K, I].
        shares: M + 1 of [I], not falling.
        heights: M + 1 of [K, I].
        slopes: M of [K, I], not falling.

    >>> one = torch.ones(1, 1)
    >>> above_conjugate(2 * one, 0 * one, [torch.zeros(1), torch.ones(1)], [0 * one, 0 * one], [0 * one])
    (tensor([[1.]]), tensor([[1.]]))
    """
    last = len(shares) - 1
    below = torch.zeros_like(r, dtype=torch.bool)
    nearest_r, nearest_c = r, c
    for number in range(last, -1, -1):
        share, height = shares[number], heights[number]
        lacking = torch.mul(r, share).sub_(height).sub_(c)
        below |= lacking > 0
        foot = torch.addcmul(r, lacking, share / (1 + share * share), value=-1)
        here = torch.ones_like(below) if number == last else foot <= slopes[number]
        if number > 0:
            foot = torch.maximum(foot, slopes[number - 1])
        nearest_c = torch.where(here, (foot * share).sub_(height), nearest_c)
        nearest_r = torch.where(here, foot, nearest_r)
    return torch.where(below, nearest_r, r), torch.where(below, nearest_c, c)
