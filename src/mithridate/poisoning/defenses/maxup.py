"""Maxup as a defence: train on the worst of several augmentations of each image."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.core.batch import BatchTransform
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Maxup(Augmentation):
    """Train on that draw of an augmentation, of several for each image, which the model finds hardest.

    Costs a forward pass per draw.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: the largest of the losses of one image is taken, for every
    inner augmentation (the reference code averages over draws of cutout).

    >>> from mithridate import Recipe
    >>> Maxup(draws=2)(Recipe()).transforms[-1].draws
    2
    """

    inner: BatchTransform = transforms.Cutout()
    """What is drawn; cutout is the paper's."""
    draws: int = 4
    """Draws to choose from."""
    warmup: float = 1 / 8
    """Share of the training before the choice begins."""

    def transform(self) -> transforms.Maxup:
        return transforms.Maxup(inner=self.inner, draws=self.draws, warmup=self.warmup)
