"""Row rules: which training rows stay from one epoch to the next."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mithridate.core.batch import RowRule
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.memory import in_chunks
from mithridate.core.states import EVALUATION_BATCH

BLOCK = 2**22
"""Distances computed at a time."""


@dataclass(frozen=True, kw_only=True)
class IsolatedGradients(RowRule):
    """Drops rows whose gradient is like nobody else's in their class, some epochs into training and again later.

    In each class, medoids are chosen greedily so that all gradients of the last layer (softmax minus label) are near
    one; a medoid that no other row is nearest to is isolated, and goes for good.

    Reference: Yang, Liu, Mirzasoleiman. "Not All Poisons are Created Equal: Robust Training against Data Poisoning".
    ICML 2022. arXiv 2210.09671, Algorithm 1. Deviations: times are shares of training; the most that a class may lose
    in one round is bounded, the most isolated rows going first; no class is emptied.

    Raises:
        ValueError: Shares outside their range, or no epochs.

    >>> IsolatedGradients(epochs=40).due(0.25), IsolatedGradients(epochs=40).due(0.275)
    (True, False)
    """

    epochs: int = 40
    """Epochs of the training, which tell a share of it from an epoch."""
    medoids: float = 0.2
    """Medoids as a share of the rows of a class."""
    start: float = 1 / 4
    """Share of training after which rows are dropped for the first time."""
    stop: float = 7 / 8
    """Share of training after which none are dropped any more."""
    every: float = 1 / 20
    """Share of training between two rounds; at least one epoch."""
    most: float = 0.03
    """Rows that a class may lose in one round, as a share of the whole training set."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; rows are dropped between epochs, so there must be some")
        for name in ("medoids", "most"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it is a share, more than 0 and less than 1")
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(
                f"start is {self.start:g} and stop {self.stop:g}; they are shares of training, the first not after the "
                "second"
            )
        if not 0 < self.every <= 1:
            raise ValueError(f"every is {self.every:g}; it is a share of training, more than 0 and at most 1")

    def due(self, progress: float) -> bool:
        """Whether rows are dropped after this share of training."""
        epoch, first = round(progress * self.epochs), max(1, math.ceil(self.start * self.epochs - 1e-9))
        rounds = max(1, round(self.every * self.epochs))
        return epoch >= first and (epoch - first) % rounds == 0 and progress <= self.stop + 1e-9

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        if not self.due(progress):
            return data.ids
        labels = data.labels_of(data.ids)
        with torch.no_grad():
            logits = in_chunks(lambda rows: Ensemble([model]).logits(data.floats(rows))[0], data.ids, EVALUATION_BATCH)
        gradients = logits.double().softmax(1)
        gradients[torch.arange(len(labels), device=labels.device), labels] -= 1
        keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            alone = isolated(gradients[members], max(1, round(self.medoids * len(members))))
            most = min(math.ceil(round(self.most * len(labels), 6)), len(members) - 1)
            keep[members[alone[:most]]] = False
        return data.ids[keep.to(data.ids.device)]


def isolated(points: Tensor, medoids: int) -> Tensor:
    """Returns the points [n, D] that are alone in their cluster, [k] int64, the most isolated first.

    Args:
        points: [n, D] float64.
        medoids: Clusters to make, by `facilities`.

    >>> isolated(torch.tensor([[0.0], [0.1], [0.2], [9.0]]), medoids=2).tolist()
    [3]
    """
    if medoids >= len(points):  # each would be a medoid, and alone
        return torch.empty(0, dtype=torch.int64, device=points.device)
    chosen = facilities(points, medoids)
    owners = torch.cat([_distances(part, points[chosen]).argmin(1) for part in points.split(_rows(medoids))])
    owners[chosen] = torch.arange(len(chosen), device=points.device)  # of equal points, each medoid owns itself
    alone = chosen[torch.bincount(owners, minlength=len(chosen)) == 1]
    gaps = torch.cat([_gap(points, part) for part in alone.split(_rows(len(points)))]) if len(alone) else alone.double()
    return alone[gaps.argsort(descending=True, stable=True)]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, m]. Through a matrix product a distance of zero would come out as rounding has it."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _rows(columns: int) -> int:
    return max(1, BLOCK // max(1, columns))


def _gap(points: Tensor, chosen: Tensor) -> Tensor:
    """Distance of each chosen point to the nearest other one."""
    distances = _distances(points[chosen], points)
    distances[torch.arange(len(chosen), device=points.device), chosen] = math.inf
    return distances.amin(1)


def facilities(points: Tensor, count: int) -> Tensor:
    """Chooses medoids [count] int64 greedily: each next one lowers the sum of distances to the nearest medoid the most.

    What a medoid would gain only falls as others are chosen, so an old gain is a bound, and few are computed again; the
    choice is that of computing them all. Of equal gains, to ten digits, the first point wins: two points that are each
    other's nearest gain the same, and which of them is chosen must not depend on rounding.

    Reference: Minoux. "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions". Optimization Techniques,
    Springer 1978.

    >>> facilities(torch.tensor([[0.0], [1.0], [2.0], [10.0]]), 2).tolist()
    [1, 3]
    """
    everything = torch.arange(len(points), device=points.device)
    held = _distances(points, points) if len(points) ** 2 <= BLOCK else None

    def away(part: Tensor) -> Tensor:
        return _distances(points[part], points) if held is None else held[part]

    sums = torch.cat([away(part).sum(1) for part in everything.split(_rows(len(points)))])
    chosen = [int(sums.argmin())]
    nearest = away(everything[chosen])[0]

    def gains(part: Tensor) -> Tensor:
        return (nearest - away(part)).clamp_min_(0).sum(1).round(decimals=10)

    first = torch.cat([gains(part) for part in everything.split(_rows(len(points)))]).tolist()
    bounds = [(-gain, row) for row, gain in enumerate(first) if row != chosen[0]]
    heapq.heapify(bounds)
    while len(chosen) < min(count, len(points)):
        _, row = heapq.heappop(bounds)
        gain = float(gains(everything[row : row + 1])[0])
        if bounds and (-gain, row) > bounds[0]:
            heapq.heappush(bounds, (-gain, row))
            continue
        chosen.append(row)
        nearest = torch.minimum(nearest, away(everything[row : row + 1])[0])
    return torch.tensor(chosen, device=points.device)
