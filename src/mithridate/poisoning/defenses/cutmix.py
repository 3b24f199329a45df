"""CutMix as a defence: train on images that hold a box of another image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core import transforms
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, augmented


@dataclass(frozen=True, kw_only=True)
class Cutmix(Defense):
    """Train on images with a box pasted from another image, so that no small region decides the label by itself.

    Covers small patch triggers and breaks up the perturbations of clean-label targeted poison.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: mixing comes after the recipe's own augmentation.
    """

    kind: ClassVar[Kind] = "transform"

    alpha: float = 1.0
    """Concentration of the share that stays (Beta); 1.0 draws it uniformly."""
    probability: float = 0.5
    """Share of the batches that are changed."""

    def __post_init__(self) -> None:
        self.transform()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return augmented(learner, self, self.transform())

    def transform(self) -> transforms.Cutmix:
        """What is added to the recipe."""
        return transforms.Cutmix(alpha=self.alpha, probability=self.probability)
