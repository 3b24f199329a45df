"""Batch transforms: those that look at the model's loss are here, the others come from `augmentation`.

A transform is differentiable in the images, draws from the given generator and is written for one batch. What looks at
the model does so in eval mode: its buffers stay as they are, dropout draws nothing, and what happens to one image does
not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.augmentation import Cutmix, Cutout, Flip, Mixup, Noise, Shift, transformed
from mithridate.core.balls import Ball, Linf
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.ensemble import Ensemble
from mithridate.core.mixing import NoisyMix
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.poisoned import Poisoned
from mithridate.core.progress import quiet
from mithridate.core.squeezing import Grayscale, Jpeg
from mithridate.core.updates import SignStep, Update

__all__ = [
    "Adversarial",
    "Cutmix",
    "Cutout",
    "Flip",
    "Grayscale",
    "Jpeg",
    "Maxup",
    "Mixup",
    "Noise",
    "NoisyMix",
    "Poisoned",
    "Shift",
    "transformed",
]


def _losses(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image in eval mode, [B]."""
    logits = Ensemble([model]).logits(images)[0]
    return F.cross_entropy(logits, targets.to(logits.dtype), reduction="none")


@dataclass(frozen=True, kw_only=True)
class Maxup(BatchTransform):
    """Augments the batch several times and keeps of each image the draw with the largest loss.

    Losses are computed without a graph and in eval mode; the step is then taken on the chosen draws, each with the
    targets that belong to it. In the first share of training one plain draw is used: the losses of an untrained model
    say nothing.

    Reference: Gong, Ren, Ye, Liu. "MaxUp: Lightweight Adversarial Training with Data Augmentation Improves Neural
    Network Training". CVPR 2021. arXiv 2002.09024, Algorithm 1. Deviations: draws are compared in eval mode; the start
    without it is that of Borgnia et al. (arXiv 2011.09527), 5 epochs of 40.

    Raises:
        ValueError: fewer than 2 draws, or a warmup that is no share.

    >>> Maxup(inner=Mixup()).mixes_rows, Maxup(inner=Cutout()).mixes_rows
    (True, False)
    """

    inner: BatchTransform = Cutout()
    """What is drawn."""
    draws: int = 4
    """Draws to choose from; each costs a forward pass."""
    warmup: float = 1 / 8
    """Share of the training before the choice begins."""

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"maxup draws is {self.draws}; a choice needs at least 2")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"maxup warmup is {self.warmup}; it is a share of the training, so use 0.125 for 1/8")
        object.__setattr__(self, "mixes_rows", self.inner.mixes_rows)

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        best = self.inner(batch, model, rng)
        if batch.progress < self.warmup:
            return best
        with torch.no_grad():
            largest = _losses(model, best.images, best.targets)
        for _ in range(self.draws - 1):
            drawn = self.inner(batch, model, rng)
            with torch.no_grad():
                losses = _losses(model, drawn.images, drawn.targets)
            larger = losses > largest
            largest = torch.where(larger, losses, largest)
            best = best._replace(
                images=torch.where(larger[:, None, None, None], drawn.images, best.images),
                targets=torch.where(larger[:, None], drawn.targets, best.targets),
            )
        return best


@dataclass(frozen=True, kw_only=True)
class Adversarial(BatchTransform):
    """Moves every image inside a ball to where its loss is large: projected gradient ascent on the batch itself.

    The perturbation is found in eval mode and then added as a constant: the gradient reaches the images as if it were
    not there.

    Reference: Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks".
    ICLR 2018. arXiv 1706.06083; their values for CIFAR-10. Fast: Wong, Rice, Kolter. "Fast is Better than Free:
    Revisiting Adversarial Training". ICLR 2020. arXiv 2001.03994. Drawn lengths: Chiang et al. "WITCHcraft". ICASSP
    2020. arXiv 1911.07989. Deviations: the search starts from clipped Gaussian noise, the ball's own start.

    Raises:
        ValueError: no steps, or a step that is not positive.

    >>> Adversarial(ball=Linf(eps=4 / 255), steps=3).step == 2 / 255
    True
    """

    ball: Ball = Linf(eps=8 / 255)
    """How far an image may move."""
    steps: int = 7
    """Steps of the search; each costs a forward and a backward pass."""
    step: float = 2 / 255
    """Length of a step along the sign of the gradient, in pixels of [0, 1]."""
    update: Update | None = None
    """Another way to move, in place of steps of that length: sign-step(low=0,high=4/255) draws lengths (WITCHcraft);
    with steps=1, sign-step(low=10/255,high=10/255) trains fast."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"adversarial steps is {self.steps}; a search needs at least 1")
        if not self.step > 0:
            raise ValueError(f"adversarial step is {self.step}; it must be positive, in pixels of [0, 1]")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        clean, targets = batch.images.detach(), batch.targets.detach()
        with quiet():
            found = minimise(
                by_autograd(lambda images, _: -_losses(model, images, targets)),
                clean,
                self.ball,
                steps=self.steps,
                update=self.update or SignStep(low=self.step, high=self.step),
                pixels="float",
                judged=False,
                rng=rng,
            )
        return batch._replace(images=batch.images + (found.images - clean))
