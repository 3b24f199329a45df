"""CutMix as a defence: train on images that hold a box of another image."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Cutmix(Augmentation):
    """Train on images with a box pasted from another image, so that no small region decides the label by itself.

    A small patch is pasted along with the label's share, so what it costs a trigger is to be measured, not assumed.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: mixing comes after the recipe's own augmentation.

    >>> from mithridate import Recipe
    >>> Cutmix(probability=1.0)(Recipe()).transforms[-1].probability
    1.0
    """

    alpha: float = 1.0
    """Concentration of the share that stays (Beta); 1.0 draws it uniformly."""
    probability: float = 0.5
    """Share of the batches that are changed."""

    def transform(self) -> transforms.Cutmix:
        return transforms.Cutmix(alpha=self.alpha, probability=self.probability)
