"""Activation clustering: split each class in two by its features and drop the smaller part where it looks apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mithridate.poisoning.defense import Evidence, Filter, Judgement

SMALLEST = 6
"""Classes of fewer rows are left alone: two clusters of them say nothing."""


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Filter):
    """Fit, split the features of each class in two, drop the smaller part where the two are apart, fit again.

    Each class is reduced to its main directions and split by 2-means. The smaller part goes where two conditions meet:
    the silhouette of the split reaches a threshold, and the part is no larger than 1.5 times the poison that the
    defender expects in all, since a larger one is more likely to be a kind of clean image.

    Reference: Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava. "Detecting Backdoor Attacks on Deep
    Neural Networks by Activation Clustering". SafeAI 2019. arXiv 1811.03728, sections 4 and 5.2 (silhouette score and
    relative size). Deviations: PCA in place of ICA; the relative size is that of the expected contamination; no
    reclassification by a further model.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = ActivationClustering()(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> len(fitted.kept[0]) <= 100
    True
    """

    reason: ClassVar[str] = "is in the smaller of two groups of its class"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1)."""
    multiplier: float = 1.5
    """Largest part that is dropped of a class, in units of the poison expected in all."""
    silhouette: float = 0.3
    """Silhouette from which a class counts as two. On digits every tenth clean class reaches 0.3, and 4 of 5 classes
    with a backdoor of 5 % of all rows (`convnet`); at 0.15 every class does, clean or not."""
    dimensions: int = 10
    """Main directions of a class that are looked at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multiplier > 0:
            raise ValueError(f"multiplier is {self.multiplier:g}; it must be positive, for example 1.5")
        if not -1 <= self.silhouette <= 1:
            raise ValueError(
                f"silhouette is {self.silhouette:g}; silhouettes lie between -1 and 1, so use for example 0.3"
            )
        if self.dimensions < 1:
            raise ValueError(f"dimensions is {self.dimensions}; at least one must be looked at")

    def judge(self, evidence: Evidence) -> Judgement:
        """Splits each class; the score is how much nearer a row is to the smaller part, times the silhouette."""
        labels = evidence.labels
        most = math.ceil(round(self.multiplier * self.contamination * len(labels), 6))
        scores = torch.zeros(len(labels), dtype=torch.float64)
        marked = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            if len(members) < SMALLEST:
                continue
            leaning, apart = split(evidence.features[members], self.dimensions)
            inside = leaning > 0
            scores[members.cpu()] = leaning * max(apart, 0.0)
            if apart >= self.silhouette and int(inside.sum()) <= most:
                marked[members.cpu()] = inside
        return Judgement(scores.to(labels.device), marked.to(labels.device))


def split(features: Tensor, dimensions: int = 10) -> tuple[Tensor, float]:
    """Splits the features [n, D] of one class in two.

    Returns:
        How much nearer each row is to the centre of the smaller part, [n] float64 in [-1, 1], positive in that part;
        and the silhouette of the split, 0 where there is none.

    >>> leaning, apart = split(torch.cat([torch.zeros(9, 2), torch.full((3, 2), 5.0)]))
    >>> (leaning > 0).sum().item(), round(apart, 2)
    (3, 1.0)
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    rows = features.double().cpu().numpy()
    if np.ptp(rows, axis=0).max(initial=0.0) == 0:
        return torch.zeros(len(rows), dtype=torch.float64), 0.0
    reduced = PCA(min(dimensions, *rows.shape), svd_solver="full").fit_transform(rows)
    found: Any = KMeans(2, n_init=10, random_state=0).fit(reduced)  # pyright: ignore[reportArgumentType]
    small = int(np.bincount(found.labels_, minlength=2).argmin())
    to_small, to_large = (np.linalg.norm(reduced - found.cluster_centers_[i], axis=1) for i in (small, 1 - small))
    between = float(np.linalg.norm(found.cluster_centers_[0] - found.cluster_centers_[1]))
    apart = float(silhouette_score(reduced, found.labels_)) if len(np.unique(found.labels_)) == 2 else 0.0
    return torch.from_numpy((to_large - to_small) / max(between, 1e-300)), apart
