"""Adversarial examples as poison: images that a clean model takes for another class, under their own label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball
from mithridate.core.classifier import Precision
from mithridate.core.data import ImageData
from mithridate.core.perturbation import Objective
from mithridate.core.training import Learner
from mithridate.core.updates import SignStep
from mithridate.poisoning.release import Perturber, Release, augmentation, lowering_losses, reach, searching

Aim = Literal["targeted", "untargeted"]


@dataclass(frozen=True, kw_only=True)
class AdversarialRelease(Release):
    """Add to each image what a clean model takes for the next class; the label stays.

    Victims learn that features of the next class mean this one, which is wrong on every clean image.

    Reference: Fowl, Goldblum, Chiang, Geiping, Czaja, Goldstein. "Adversarial Examples Make Strong Poisons". NeurIPS
    2021. arXiv 2106.10807. Deviations: the best restart is chosen for each image, not for the whole set; 1 restart
    unless asked for their 8.

    Raises:
        ValueError: If the aim is none of the two.

    >>> AdversarialRelease(aim="untargeted").steps
    250
    """

    aim: Aim = "targeted"
    """targeted: every class becomes the next one (the last the first); untargeted: any other class."""
    steps: int = 250
    """Sign steps of each restart."""
    restarts: int = 1
    """Independent starts; of each image the one with the lowest objective on its 8-bit pixels wins."""
    surrogates: int = 1
    """Clean models that the images are adversarial for; their losses are averaged."""
    step: float = 0.05
    """Length of a step as a share of the largest change of a pixel."""
    augment: bool = True
    """Whether images go through the victim's augmentation while they are crafted."""
    precision: Precision = "auto"
    """Number format of the networks; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        if self.aim not in get_args(Aim):
            raise ValueError(f"aim is {self.aim!r}; use one of {', '.join(get_args(Aim))}")

    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        models = surrogate.fit([train] * self.surrogates, range(self.surrogates)).models
        transforms, classes = augmentation(surrogate, self.augment), len(train.classes)

        def objective_of(images: Tensor, labels: Tensor) -> Objective:
            apart = self.aim == "untargeted"
            wanted = labels if apart else (labels + 1) % classes
            shares = F.one_hot(wanted, classes).float()
            return lowering_losses(models, shares, raised=apart, transforms=transforms, precision=self.precision)

        length = self.step * reach(ball, train.shape)
        return searching(
            objective_of,
            ball,
            steps=self.steps,
            restarts=self.restarts,
            update=SignStep(low=length, high=length),
            label="adversarial images",
        )
