"""Updates that climb a model's loss: steps of a Euclidean length, momentum, halving steps, random squares.

All follow the gradient downhill, since `minimise` lowers its objective: the objective is minus the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.balls import L2, Ball, Linf
from mithridate.core.updates import SignStep, Stepper, Update, per_image


def unit(gradient: Tensor) -> Tensor:
    """The gradient of each image at Euclidean length 1; 0 stays 0."""
    length = gradient.flatten(1).norm(dim=1)
    return gradient / per_image(length.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)


class _LengthStepper(Stepper):
    def __init__(self, update: LengthStep, rng: torch.Generator) -> None:
        self.update, self.rng = update, rng

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        return params - per_image(self.update.lengths(len(params), self.rng).to(params), params) * unit(gradient)


@dataclass(frozen=True, kw_only=True)
class LengthStep(SignStep):
    """A step along the gradient of a Euclidean length drawn from [low, high] at every step; equal ends: PGD in L2.

    Reference: Madry et al. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018. arXiv
    1706.06083.

    >>> stepper = LengthStep(low=0.5, high=0.5).begin(torch.zeros(1, 1, 1, 2), torch.Generator())
    >>> stepper.step(torch.ones(1, 1, 1, 2), torch.zeros(1), torch.tensor([[[[3.0, 4.0]]]]), 0.0)
    tensor([[[[0.7000, 0.6000]]]])
    """

    low: float = 0.1
    """Shortest step, Euclidean length of an image's change."""
    high: float = 0.1
    """Longest step."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _LengthStepper(self, rng)


class _MomentumStepper(Stepper):
    def __init__(self, update: MomentumSign, base: Tensor) -> None:
        self.update, self.mean = update, torch.zeros((), device=base.device)

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        self.mean = self.update.decay * self.mean + gradient / per_image(size, gradient)
        return params - self.update.step * self.mean.sign()


@dataclass(frozen=True, kw_only=True)
class MomentumSign(Update):
    """A step against the sign of a running sum of gradients, each divided by its sum of absolute values.

    Reference: Dong et al. "Boosting Adversarial Attacks with Momentum". CVPR 2018. arXiv 1710.06081, Algorithm 1.

    >>> MomentumSign().decay
    1.0
    """

    step: float = 1 / 255
    """Length of a step in pixels of [0, 1]."""
    decay: float = 1.0
    """What is kept of the sum at every step."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _MomentumStepper(self, base)


# --- steps that halve themselves -------------------------------------------------------------------------------------


def checkpoints(steps: int) -> list[int]:
    """The iterations after which step lengths are judged: gaps that shrink from 22 % to 6 % of the way.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    return [math.ceil(round(place * steps, 9)) for place in places[1:] if place < 1]


class _AutoStepper(Stepper):
    """All that is remembered is one number or image per image of the batch."""

    def __init__(self, update: AutoStep, base: Tensor) -> None:
        self.update, self.base = update, base
        self.marks = checkpoints(update.steps)
        full = torch.full((len(base),), 2 * update.eps, device=base.device, dtype=base.dtype)
        self.length, self.length_then = full, full.clone()
        self.best = torch.full_like(full, torch.inf)
        self.best_then, self.last = self.best.clone(), self.best.clone()
        self.falls = torch.zeros_like(full)
        self.image = self.slope = self.before = base
        self.count = self.mark_then = 0

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        self.falls += value < self.last
        self.last = value
        better = value < self.best
        self.best = torch.where(better, value, self.best)
        self.image = torch.where(per_image(better, params), params, self.image)
        self.slope = torch.where(per_image(better, params), gradient, self.slope)
        if self.count in self.marks:
            params, gradient = self._judged(params, gradient)
        share = 0.75 if self.count else 1.0
        way = gradient.sign() if isinstance(self.update.ball, Linf) else unit(gradient)
        ahead = self.update.ball.project(self.base, params - per_image(self.length, params) * way)
        moved = params + share * (ahead - params) + (1 - share) * (params - (self.before if self.count else params))
        self.before, self.count = params, self.count + 1
        return moved

    def _judged(self, params: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Halves the steps of images that rise too rarely or stand still; these go on from their best image."""
        rare = self.falls < 0.75 * (self.count - self.mark_then)
        still = (self.length == self.length_then) & (self.best == self.best_then)
        halve = rare | still
        self.length_then, self.best_then = self.length, self.best
        self.length = torch.where(halve, self.length / 2, self.length)
        self.falls, self.mark_then = torch.zeros_like(self.falls), self.count
        again = per_image(halve, params)
        return torch.where(again, self.image, params), torch.where(again, self.slope, gradient)

    def final(self, params: Tensor) -> Tensor:
        return self.image


@dataclass(frozen=True, kw_only=True)
class AutoStep(Update):
    """Projected ascent with momentum whose step length, first 2 eps, halves for an image where progress stops (APGD).

    At each checkpoint an image whose loss rose in less than 3/4 of the steps, or whose best loss and length are those
    of the last checkpoint, goes on from its best image with half the length. The best image is what is found.

    Reference: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
    Attacks". ICML 2020. arXiv 2003.01690, Algorithm 1.

    Raises:
        TypeError: A ball that is neither Linf nor L2.

    >>> AutoStep(ball=Linf(eps=8 / 255), steps=100).eps == 8 / 255
    True
    """

    ball: Ball = Linf(eps=8 / 255)
    """Linf or L2: what is searched."""
    steps: int = 100
    """Steps of the search: the checkpoints are shares of them."""

    def __post_init__(self) -> None:
        if not isinstance(self.ball, (Linf, L2)):
            raise TypeError(f"automatic steps know the balls linf and l2, and not {self.ball}")

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        assert isinstance(self.ball, (Linf, L2))
        return self.ball.eps

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _AutoStepper(self, base)


# --- random squares --------------------------------------------------------------------------------------------------

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the squares' area halves."""


class _SquaresStepper(Stepper):
    def __init__(self, update: RandomSquares, base: Tensor, rng: torch.Generator) -> None:
        self.update, self.base, self.rng = update, base, rng
        self.best = torch.full((len(base),), torch.inf, device=base.device, dtype=base.dtype)
        self.image = base

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        better = value < self.best
        self.best = torch.where(better, value, self.best)
        self.image = torch.where(per_image(better, params), params, self.image)
        count, channels, height, width = params.shape
        passed = sum(progress * 10_000 > place for place in _HALVINGS)
        side = max(1, min(height, width, round(math.sqrt(self.update.area / 2**passed * height * width))))
        corner = (
            torch.rand(2, count, 1, generator=self.rng)
            * torch.tensor([height - side + 1, width - side + 1])[:, None, None]
        )
        top, left = corner.long()
        rows, columns = torch.arange(height), torch.arange(width)
        inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
        inside = inside & ((columns >= left) & (columns < left + side))[:, None, None, :]
        sign = torch.randint(2, (count, channels, 1, 1), generator=self.rng) * 2 - 1
        change = (self.update.eps * sign).to(params)
        return torch.where(inside.to(params.device), (self.base + change).clamp(0, 1), self.image)

    def final(self, params: Tensor) -> Tensor:
        return self.image


@dataclass(frozen=True, kw_only=True)
class RandomSquares(Update):
    """Random search: one square of an image is set to the edge of the ball, and stays so where that lowers the value.

    Needs no gradient. Squares shrink from `area` of the image to single pixels.

    Reference: Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a Query-Efficient Black-Box Adversarial Attack
    via Random Search". ECCV 2020. arXiv 1912.00049, Algorithms 1 and 2.

    >>> RandomSquares(eps=8 / 255).area
    0.8
    """

    eps: float = 8 / 255
    """Change of each pixel, in [0, 1]."""
    area: float = 0.8
    """Share of the image that the first squares cover."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _SquaresStepper(self, base, rng)
