"""Spectral signatures: drop the rows that stick out along the main direction of their class's features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Filtered, Kind


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Defense):
    """Fit, score rows by the top singular direction of their class's features, drop the highest, fit again.

    The defender does not know where poison is, so every class may hold all of it: from each class it drops
    `multiplier * contamination * len(train)` rows (rounded up), but never its last row. With 10 classes a contamination
    of 0.02 thus drops 30 % of the training set.

    Reference: Tran, Li, Madry. "Spectral Signatures in Backdoor Attacks". NeurIPS 2018. arXiv 1811.00636, Algorithm 1.
    Deviations: the number of poisons is an expectation of the defender, never the attack's true number.
    """

    kind: ClassVar[Kind] = "filter"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1)."""
    multiplier: float = 1.5
    """Rows dropped per class, in units of that expectation."""

    def __post_init__(self) -> None:
        if not 0 < self.contamination < 1:
            raise ValueError(
                f"contamination is {self.contamination:g}; it is the fraction of the training set expected to be "
                "poisoned, so use for example 0.01 for 1 %"
            )
        if not self.multiplier > 0:
            raise ValueError(f"multiplier is {self.multiplier:g}; it must be positive, the paper's is 1.5")

    def __call__(self, learner: Learner) -> Learner:
        return Filtered(learner, self.suspicious)

    def suspicious(self, features: Tensor, labels: Tensor) -> Tensor:
        """Marks the rows to drop, [n] bool, from their features [n, D] and labels [n]."""
        count = math.ceil(round(self.multiplier * self.contamination * len(labels), 6))
        marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            worst = spectral_scores(features[members]).argsort(descending=True, stable=True)
            marked[members[worst[: min(count, len(members) - 1)]]] = True
        return marked


def spectral_scores(features: Tensor) -> Tensor:
    """Returns the squared projection of each centred feature [n, D] on the first right singular vector, [n] float64.

    >>> scores = spectral_scores(torch.tensor([[0.0, 0.1], [0.1, 0.0], [0.0, 0.0], [9.0, 9.0]]))
    >>> int(scores.argmax())
    3
    """
    centred = features.double() - features.double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # eigenvalues ascend: the last vector is the main direction
    return (centred @ directions[:, -1]).square()
