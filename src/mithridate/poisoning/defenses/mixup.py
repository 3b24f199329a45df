"""Mixup as a defence: train on mixtures of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core import transforms
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, augmented


@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """Train on weighted means of `k` images, so that no single image is ever learnt as it is.

    Weakens clean-label targeted poison; small patch triggers survive it.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: mixing comes after the recipe's own augmentation.
    """

    kind: ClassVar[Kind] = "transform"

    k: int = 2
    """Images per mixture."""
    alpha: float = 1.0
    """Concentration of the weights (Dirichlet); 1.0 draws them uniformly."""

    def __post_init__(self) -> None:
        self.transform()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return augmented(learner, self, self.transform())

    def transform(self) -> transforms.Mixup:
        """What is added to the recipe."""
        return transforms.Mixup(k=self.k, alpha=self.alpha)
