"""Grey-scale as a defence."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Grayscale(Augmentation):
    """Train on the brightness of images alone: noise that lives in their colours is gone.

    Made against availability poisons. Test images are seen in colour, so that what it costs is counted. It does nothing
    to images of one channel.

    Reference: Liu, Zhao, Larson. "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with
    Compression". ICML 2023. arXiv 2301.13838. Deviations: none known.

    >>> Grayscale().kind
    'transform'
    """

    def transform(self) -> transforms.Grayscale:
        return transforms.Grayscale()
