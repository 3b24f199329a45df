"""Deep k-NN: drop the rows whose nearest neighbours in feature space mostly have another label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mithridate.core.neighbours import nearest
from mithridate.poisoning.defense import Evidence, Filter, Judgement


@dataclass(frozen=True, kw_only=True)
class DeepKNN(Filter):
    """Fit, let the nearest neighbours of each row vote on its label, drop the rows that are outvoted, fit again.

    Poison whose features lie among another class is outvoted as long as it makes up less than half of the neighbours.
    The defender does not know how much there is, so it asks `2 * contamination * len(train)` neighbours (rounded up, at
    least 3): too few for all the poison it expects to outvote clean rows. A model that has learnt the poison's labels
    from the poison itself, as one trained from scratch may, has moved it among its own class, where no vote finds it.

    Reference: Peri, Gupta, Huang, Fowl, Zhu, Feizi, Goldstein, Dickerson. "Deep k-NN Defense Against Clean-label Data
    Poisoning Attacks". ECCV 2020 Workshops. arXiv 1909.13374. Distances are Euclidean, as there, and small classes are
    replicated in the vote until they weigh as much as the largest, as there. Deviations: the number of neighbours comes
    from the expected share of poison (the paper has the rule of twice a class's rows as well: set `neighbours`);
    replicas are counted, not made, and no row votes for itself through its own; a label that shares the first place is
    kept; each class keeps the row that its neighbours agree with most, so that none is emptied.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = DeepKNN(neighbours=5)(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> 0 < len(fitted.kept[0]) <= 100
    True
    """

    reason: ClassVar[str] = "lies among rows of another label"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1)."""
    neighbours: int | None = None
    """Neighbours that vote on each row; None: twice the number of poisoned rows expected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours is not None and self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours}; at least one neighbour must vote")

    def judge(self, evidence: Evidence) -> Judgement:
        """Lets the neighbours vote; the score is how far the own label is behind, as a share of the votes.

        Raises:
            ValueError: If a feature is not finite.
        """
        features, labels = evidence.features, evidence.labels
        expected = max(3, math.ceil(round(2 * self.contamination * len(labels), 6)))
        k = min(expected if self.neighbours is None else self.neighbours, len(labels) - 1)
        if k < 1:
            nothing = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
            return Judgement(nothing, nothing.bool())
        _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
        replicas = sizes.max() / sizes.double()
        votes = nearest(features, k, then=lambda index: votes_of(classes[index], replicas))
        own = votes.gather(1, classes[:, None])[:, 0]
        lead = own - votes.amax(1)
        marked = lead < -1e-6  # votes are sums of fractions
        for label in range(len(sizes)):
            members = (classes == label).nonzero()[:, 0]
            marked[members[lead[members].argmax()]] = False
        others = votes.scatter(1, classes[:, None], -1.0).amax(1)
        return Judgement((others - own) / k, marked)


def votes_of(neighbours: Tensor, replicas: Tensor) -> Tensor:
    """Counts votes for each class, [B, K] float64, among the first k of the replicated neighbours.

    Args:
        neighbours: [B, k] classes of the neighbours, nearest first.
        replicas: [K] float64, how often a row of each class stands in line; at least 1.

    >>> votes_of(torch.tensor([[0, 1, 0, 0]]), torch.tensor([1.0, 2.0], dtype=torch.float64))
    tensor([[2., 2.]], dtype=torch.float64)
    """
    k = neighbours.shape[1]
    weights = replicas[neighbours]
    room = (k - (weights.cumsum(1) - weights)).clamp_min(0)  # what the nearer ones leave
    votes = weights.new_zeros(len(neighbours), len(replicas))
    return votes.scatter_add_(1, neighbours, torch.minimum(weights, room))
