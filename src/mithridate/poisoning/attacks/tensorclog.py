"""TensorClog: images from which a trained network learns nothing more, since their training gradient is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball
from mithridate.core.classifier import Precision
from mithridate.core.data import ImageData
from mithridate.core.perturbation import Objective, average
from mithridate.core.training import Learner
from mithridate.core.updates import SignedAdam
from mithridate.poisoning.release import Perturber, Release, augmentation, judging_gradients, reach, searching


@dataclass(frozen=True, kw_only=True)
class TensorClog(Release):
    """Make the training gradient of each batch as short as possible, at the weights of a clean model.

    Weak against victims that train from scratch: what is small at the end of one training says little of another's
    beginning. It is here as a comparison.

    Reference: Shen, Zhu, Ma. "TensorClog: An Imperceptible Poisoning Attack on Deep Neural Network Applications". IEEE
    Access 7, 2019. Deviations: the ball bounds the change, where the paper penalises its visibility; a step is
    a share of what the ball allows.

    >>> TensorClog().surrogates
    1
    """

    steps: int = 100
    """Signed-Adam steps of each restart."""
    restarts: int = 1
    """Independent starts; of each batch the one with the shortest gradient on its 8-bit pixels wins."""
    surrogates: int = 1
    """Clean models whose gradients are shortened; the lengths are averaged."""
    batch: int = 512
    """Images whose mean gradient is shortened; more than 512 only where a chunk holds more."""
    step: float = 0.8
    """First step as a share of the largest change of a pixel; falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    augment: bool = True
    """Whether images go through the victim's augmentation while they are crafted."""
    precision: Precision = "auto"
    """Number format of the double backward pass; auto: bf16 where the machine computes it faster."""

    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        models = surrogate.fit([train] * self.surrogates, range(self.surrogates)).models
        transforms, classes = augmentation(surrogate, self.augment), len(train.classes)

        def objective_of(images: Tensor, labels: Tensor) -> Objective:
            judges, known = [length] * -(-len(images) // self.batch), F.one_hot(labels, classes).float()
            return average(
                [
                    judging_gradients(model, judges, known, transforms=transforms, precision=self.precision)
                    for model in models
                ]
            )

        return searching(
            objective_of,
            ball,
            steps=self.steps,
            restarts=self.restarts,
            update=SignedAdam(lr=self.step * reach(ball, train.shape)),
            label="shortening gradients",
        )


def length(gradient: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Returns the Euclidean norm [] of a gradient and its derivative with respect to it.

    >>> length([torch.tensor([3.0]), torch.tensor([4.0])])
    (tensor(5.), (tensor([0.6000]), tensor([0.8000])))
    """
    found = torch.stack(torch._foreach_norm(list(gradient))).norm()
    return found, torch._foreach_div(list(gradient), found.clamp_min(1e-12))
