"""JPEG compression as a defence."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Jpeg(Augmentation):
    """Train on images that have been through a JPEG encoder, which keeps coarse structure and drops fine noise.

    Made against availability poisons. Test images are seen as they are, so that what it costs is counted.

    Reference: Liu, Zhao, Larson. "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with
    Compression". ICML 2023. arXiv 2301.13838. Deviations: compression comes after the recipe's augmentation.

    >>> Jpeg().quality
    10
    """

    quality: int = 10
    """From 1 (strongest compression) to 95."""

    def transform(self) -> transforms.Jpeg:
        return transforms.Jpeg(quality=self.quality)
