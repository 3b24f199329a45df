"""Cutout as a defence: train on images with a covered box."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """Train on images of which one box is covered, so that no single region is needed, or trusted, for a label.

    Hides a patch trigger in those steps alone in which the box happens to cover it.

    Reference: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy
    Tradeoff". ICASSP 2021. arXiv 2011.09527. Deviations: one box of half the side per image, the form of DeVries
    and Taylor (arXiv 1708.04552), where the reference code has one per batch.

    >>> from mithridate import Recipe
    >>> Cutout(side=0.25)(Recipe()).transforms[-1].side
    0.25
    """

    side: float = 0.5
    """Side of the box as a share of the image's."""

    def transform(self) -> transforms.Cutout:
        return transforms.Cutout(side=self.side)
