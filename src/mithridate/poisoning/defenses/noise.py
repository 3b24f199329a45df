"""Random noise on every pixel as a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mithridate.core import transforms
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, augmented


@dataclass(frozen=True, kw_only=True)
class Noise(Defense):
    """Train on noisy images, so that changes as small as the noise cannot be learnt.

    The control for `adversarial-training`: the same kind of change, but not the worst one.

    Reference: Borgnia et al. "DP-InstaHide: Provably Defusing Poisoning and Backdoor Attacks with Differentially
    Private Data Augmentations". 2021. arXiv 2103.02079. Deviations: noise alone (put `mixup` before it for their
    mixing), and no guarantee: at the dose at which images stay legible its epsilon says nothing.
    """

    kind: ClassVar[Kind] = "transform"

    distribution: Literal["laplace", "gaussian", "bernoulli"] = "laplace"
    """Of the noise; bernoulli is plus or minus the scale."""
    scale: float = 16 / 255
    """In pixels of [0, 1]: the deviation (of laplace: its parameter b, the deviation divided by the root of two)."""

    def __post_init__(self) -> None:
        self.transform()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return augmented(learner, self, self.transform())

    def transform(self) -> transforms.Noise:
        """What is added to the recipe."""
        return transforms.Noise(kind=self.distribution, scale=self.scale)
