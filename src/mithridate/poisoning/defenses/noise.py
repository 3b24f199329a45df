"""Random noise on every pixel as a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mithridate.core import transforms
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class Noise(Augmentation):
    """Train on noisy images, so that changes as small as the noise cannot be learnt.

    The control for `adversarial-training`: the same kind of change, but not the worst one.

    Reference: Borgnia et al. "DP-InstaHide: Provably Defusing Poisoning and Backdoor Attacks with Differentially
    Private Data Augmentations". 2021. arXiv 2103.02079. Deviations: noise alone (put `mixup` before it for their
    mixing), and no guarantee: at the dose at which images stay legible its epsilon says nothing.

    >>> from mithridate import Recipe
    >>> Noise(scale=8 / 255)(Recipe()).transforms[-1].kind
    'laplace'
    """

    distribution: Literal["laplace", "gaussian", "bernoulli"] = "laplace"
    """Of the noise; bernoulli is plus or minus the scale."""
    scale: float = 16 / 255
    """In pixels of [0, 1]: the deviation (of laplace: its parameter b, the deviation divided by the root of two)."""

    def transform(self) -> transforms.Noise:
        return transforms.Noise(kind=self.distribution, scale=self.scale)
