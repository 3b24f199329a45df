"""Spectral signatures: drop the rows that stick out along the main direction of their class's features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mithridate.poisoning.defense import Evidence, Filter, Judgement

LANCZOS_STEPS = 64
"""Steps of the search for the main direction before all directions are computed."""


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Filter):
    """Fit, score rows by the top singular direction of their class's features, drop the highest, fit again.

    The defender does not know where poison is, so every class may hold all of it: from each class it drops
    `multiplier * contamination * len(train)` rows (rounded up), but never its last row. With 10 classes a contamination
    of 0.02 thus drops 30 % of the training set.

    Reference: Tran, Li, Madry. "Spectral Signatures in Backdoor Attacks". NeurIPS 2018. arXiv 1811.00636, Algorithm 1.
    Deviations: the number of poisons is an expectation of the defender, never the attack's true number.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = SpectralSignatures()(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> len(fitted.kept[0])  # of each of ten classes, three rows are gone: 1.5 times 2 % of all
    70
    """

    reason: ClassVar[str] = "sticks out along the main direction of its class's features"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1)."""
    multiplier: float = 1.5
    """Rows dropped per class, in units of that expectation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multiplier > 0:
            raise ValueError(f"multiplier is {self.multiplier:g}; it must be positive, the paper's is 1.5")

    def judge(self, evidence: Evidence) -> Judgement:
        """Scores each row within its class and marks the highest of each."""
        labels = evidence.labels
        count = math.ceil(round(self.multiplier * self.contamination * len(labels), 6))
        scores = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            scores[members] = found = spectral_scores(evidence.features[members])
            worst = found.argsort(descending=True, stable=True)
            marked[members[worst[: min(count, len(members) - 1)]]] = True
        return Judgement(scores, marked)


def spectral_scores(features: Tensor) -> Tensor:
    """Returns the squared projection of each centred feature [n, D] on the first right singular vector, [n] float64.

    >>> scores = spectral_scores(torch.tensor([[0.0, 0.1], [0.1, 0.0], [0.0, 0.0], [9.0, 9.0]]))
    >>> int(scores.argmax())
    3
    """
    centred = features.double()
    centred = centred - centred.mean(0)
    few = len(centred) < centred.shape[1]
    value, direction = largest_eigenvector(centred @ centred.T if few else centred.T @ centred)
    return value * direction.square() if few else (centred @ direction).square()


def largest_eigenvector(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest eigenvalue [] and its eigenvector [D] of a positive semidefinite matrix [D, D] float64.

    Lanczos with full orthogonalisation from a fixed random start takes some tens of matrix-vector products. Where the
    residual is not at the level of rounding by then, as where the two largest eigenvalues nearly agree, all
    eigenvectors are computed.

    >>> value, vector = largest_eigenvector(torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)))
    >>> round(float(value), 9), int(vector.abs().argmax())
    (5.0, 1)
    """
    if len(matrix) > 2 * LANCZOS_STEPS:
        start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        basis = _krylov(matrix, start.to(matrix.device))
        values, vectors = torch.linalg.eigh(basis @ matrix @ basis.T)
        direction = vectors[:, -1] @ basis
        if bool((matrix @ direction - values[-1] * direction).norm() <= 1e-12 * values[-1]):
            return values[-1], direction
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1], vectors[:, -1]


def _krylov(matrix: Tensor, start: Tensor) -> Tensor:
    """Orthonormal rows [LANCZOS_STEPS, D] that span the start and its images under powers of the matrix."""
    basis = matrix.new_zeros(LANCZOS_STEPS, len(matrix))
    row = start
    for step in range(LANCZOS_STEPS):
        for _ in range(2):  # once leaves what rounding made of the part that is taken away
            row = row - (basis[:step] @ row) @ basis[:step]
        basis[step] = row / row.norm().clamp_min(1e-300)  # zero where the powers span no more
        row = matrix @ basis[step]
    return basis
