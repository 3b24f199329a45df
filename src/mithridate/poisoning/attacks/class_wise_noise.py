"""Class-wise noise: one random pattern for each class, which is easier to learn than what the images show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.balls import Ball
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.poisoning.release import Perturbed, Perturber, Release, into


@dataclass(frozen=True, kw_only=True)
class ClassWiseNoise(Release):
    """Add to all images of a class the same random pattern, as strong as the ball allows. No model is needed.

    Whoever holds several images of a class can average the pattern out. It is the control that shows how much of an
    effect a pattern per class has by itself.

    Reference: class-wise random noise in Huang, Ma, Erfani, Bailey, Wang. "Unlearnable Examples: Making Personal Data
    Unexploitable". ICLR 2021. arXiv 2101.04898. Deviations: none.

    >>> ClassWiseNoise().chunk
    512
    """

    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        grey = torch.full((len(train.classes), *train.shape), 0.5)
        patterns = (ball.sample(grey, stream(seed, "patterns")) - grey).to(train.device)

        def perturb(images: Tensor, labels: Tensor, rng: torch.Generator) -> Perturbed:
            return Perturbed(into(ball, images, images + patterns[labels]), images.new_tensor(torch.nan))

        return perturb
