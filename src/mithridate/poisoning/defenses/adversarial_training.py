"""Adversarial training: train on images moved to where their loss is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core import transforms
from mithridate.core.balls import Ball, Linf
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, augmented


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Defense):
    """Train on images moved inside a ball to where the model's loss is largest.

    Makes the model insensitive to changes as small as the poison's, at the price of accuracy and of several times the
    training time.

    Reference: Madry et al. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018. arXiv
    1706.06083; against poison: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You
    Robust(er): How to Adversarially Train against Data Poisoning". 2021. arXiv 2102.13624 (there the baseline
    "adversarial training"). Deviations: the whole batch is moved, after the recipe's own augmentation.
    """

    kind: ClassVar[Kind] = "transform"

    ball: Ball = Linf(eps=8 / 255)
    """How far an image may move."""
    steps: int = 7
    """Steps of the search in each training step."""
    step: float = 2 / 255
    """Length of a step, in pixels of [0, 1]."""

    def __post_init__(self) -> None:
        self.transform()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return augmented(learner, self, self.transform())

    def transform(self) -> transforms.Adversarial:
        """What is added to the recipe."""
        return transforms.Adversarial(ball=self.ball, steps=self.steps, step=self.step)
