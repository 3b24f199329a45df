"""Mixup as a defence: train on mixtures of images."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Mixup(Augmentation):
    """Train on weighted means of `k` images, so that no single image is ever learnt as it is.

    Weakens clean-label targeted poison; small patch triggers survive it.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: mixing comes after the recipe's own augmentation.

    >>> from mithridate import Recipe
    >>> Mixup(k=4)(Recipe()).transforms[-1].k
    4
    """

    k: int = 2
    """Images per mixture."""
    alpha: float = 1.0
    """Concentration of the weights (Dirichlet); 1.0 draws them uniformly."""

    def transform(self) -> transforms.Mixup:
        return transforms.Mixup(k=self.k, alpha=self.alpha)
