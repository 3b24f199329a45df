"""Adversarial training: train on images moved to where their loss is large."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core import transforms
from mithridate.core.balls import Ball, Linf
from mithridate.core.updates import Update
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Augmentation):
    """Train on images moved inside a ball to where the model's loss is largest.

    Makes the model insensitive to changes as small as the poison's, at the price of accuracy and of several times the
    training time.

    Reference: Madry et al. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018. arXiv
    1706.06083; against poison: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You
    Robust(er): How to Adversarially Train against Data Poisoning". 2021. arXiv 2102.13624 (there the baseline
    "adversarial training"). Deviations: the whole batch is moved, after the recipe's own augmentation.

    >>> from mithridate import Recipe
    >>> AdversarialTraining(steps=3)(Recipe()).transforms[-1].steps
    3
    """

    ball: Ball = Linf(eps=8 / 255)
    """How far an image may move."""
    steps: int = 7
    """Steps of the search in each training step."""
    step: float = 2 / 255
    """Length of a step, in pixels of [0, 1]."""
    update: Update | None = None
    """Another way to move: sign-step(low=0,high=4/255) draws the lengths of steps (WITCHcraft); with steps=1,
    sign-step(low=10/255,high=10/255) trains fast."""

    def transform(self) -> transforms.Adversarial:
        return transforms.Adversarial(ball=self.ball, steps=self.steps, step=self.step, update=self.update)
