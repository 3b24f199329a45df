"""How a search inside a ball moves: signed Adam, Adam, sign steps, forward-backward splitting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.schema import Choice

DROPS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the way at which the field's usual schedule divides the step by 10."""


def step_decay(progress: float, drops: Sequence[float] = DROPS) -> float:
    """Returns the factor of a schedule that falls by 10 at these shares of the way.

    >>> [round(step_decay(p), 4) for p in (0.0, 0.375, 0.7, 0.9)]
    [1.0, 0.1, 0.01, 0.001]
    """
    return 0.1 ** sum(progress >= share for share in drops)


def _per_image(numbers: Tensor, params: Tensor) -> Tensor:
    """Views one number per image, [P], so that it spreads over parameters [P, ...]."""
    return numbers.view(-1, *(1,) * (params.ndim - 1))


class Stepper(ABC):
    """One search in progress: an update together with what it remembers. Parameters are [P, ...], of any shape.

    >>> stepper = SignStep(low=0.25, high=0.25).begin(torch.zeros(1, 1, 1, 1), torch.Generator())
    >>> stepper.step(torch.ones(1, 1, 1, 1), torch.tensor(0.0), torch.full((1, 1, 1, 1), 7.0), 0.0).item()
    0.75
    """

    @abstractmethod
    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        """Returns the next parameters, not yet projected."""

    def final(self, params: Tensor) -> Tensor:
        """Returns the parameters to keep at the end."""
        return params


class Update(Choice, ABC):
    """How a search moves.

    >>> from mithridate.core.schema import parse
    >>> parse(Update, "signed-adam:lr=1/40").lr
    0.025
    """

    @abstractmethod
    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        """Starts a search around the base images."""


class _AdamStepper(Stepper):
    def __init__(self, update: Adam | SignedAdam, signed: bool) -> None:
        self.update, self.signed, self.count = update, signed, 0
        self.mean = self.square = torch.zeros(())

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        first, second = self.update.betas
        gradient = gradient.sign() if self.signed else gradient
        if self.count == 0:
            self.mean, self.square = torch.zeros_like(params), torch.zeros_like(params)
        self.count += 1
        self.mean.mul_(first).add_(gradient, alpha=1 - first)  # in place: a search keeps as few copies as it can
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        lr = self.update.lr * (step_decay(progress, self.update.drops) if self.update.decay else 1)
        spread = self.square.div(1 - second**self.count).sqrt_().add_(1e-8)
        return params.addcdiv(self.mean, spread, value=-lr / (1 - first**self.count))


@dataclass(frozen=True, kw_only=True)
class SignedAdam(Update):
    """Adam fed with the sign of the gradient: sign descent with momentum and bias correction.

    Reference: Geiping, Fowl et al. "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching". ICLR 2021.
    arXiv 2009.02276. Their step 0.1 is in units of normalised pixels; 0.025 is the same step for pixels in [0, 1] and a
    channel deviation of 0.25.

    >>> stepper = SignedAdam(lr=0.5).begin(torch.zeros(1, 1, 1, 1), torch.Generator())
    >>> round(
    ...     stepper.step(
    ...         torch.ones(1, 1, 1, 1), torch.tensor(0.0), torch.full((1, 1, 1, 1), 7.0), 0.0
    ...     ).item(),
    ...     4,
    ... )
    0.5
    """

    lr: float = 0.025
    """Step in pixels of [0, 1]."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of the gradient and of its square."""
    decay: bool = True
    """Whether the step falls by 10 at each of `drops`."""
    drops: tuple[float, ...] = DROPS
    """Shares of the steps: 3/8, 5/8, 7/8."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _AdamStepper(self, signed=True)


@dataclass(frozen=True, kw_only=True)
class Adam(Update):
    """Adam on the gradient itself.

    Reference: Kingma, Ba. "Adam: A Method for Stochastic Optimization". ICLR 2015. arXiv 1412.6980, Algorithm 1.

    >>> Adam(lr=0.1).decay
    False
    """

    lr: float = 0.01
    """Step in pixels of [0, 1]."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of the gradient and of its square."""
    decay: bool = False
    """Whether the step falls by 10 at each of `drops`."""
    drops: tuple[float, ...] = DROPS
    """Shares of the steps: 3/8, 5/8, 7/8."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _AdamStepper(self, signed=False)


class _SignStepper(Stepper):
    def __init__(self, update: SignStep, rng: torch.Generator) -> None:
        self.update, self.rng = update, rng

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        low, high = self.update.low, self.update.high
        draw = torch.rand(len(params), generator=self.rng).to(params.device)
        return params - _per_image(low + (high - low) * draw, params) * gradient.sign()


@dataclass(frozen=True, kw_only=True)
class SignStep(Update):
    """A step against the sign of the gradient, its length drawn from [low, high] per image and step; equal ends: PGD.

    Reference: Madry et al. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018. arXiv
    1706.06083; random steps: Chiang et al. "WITCHcraft: Efficient PGD attacks with random step size". ICASSP 2020.
    arXiv 1911.07989.

    >>> SignStep(low=1 / 255, high=4 / 255).high > SignStep().high
    True
    """

    low: float = 2 / 255
    """Shortest step in pixels of [0, 1]."""
    high: float = 2 / 255
    """Longest step."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _SignStepper(self, rng)


class _ForwardBackwardStepper(Stepper):
    """Keeps the last accepted iterate of each image; a candidate that raises its objective too far is rejected.

    A candidate is judged by the evaluation that follows it, so the very last one is never kept.
    """

    def __init__(self, update: ForwardBackward, base: Tensor) -> None:
        self.update, self.base = update, base
        self.lr = torch.full((len(base),), update.lr, device=base.device, dtype=base.dtype)
        self.best = torch.full((len(base),), torch.inf, device=base.device, dtype=base.dtype)
        self.accepted: Tensor | None = None
        self.slope = torch.zeros((), device=base.device)

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        self._check(params, value)
        beta, accepted = self.update.beta, params if self.accepted is None else self.accepted
        pixels = tuple(range(1, params.ndim))
        total = value + beta / 2 * (params - self.base).square_().sum(pixels) if beta else value
        better = total <= self.best + self.update.tolerance * self.best.abs()
        self.best = torch.minimum(total, self.best)
        self.accepted = torch.where(_per_image(better, params), params, accepted)
        self.slope = torch.where(_per_image(better, params), gradient, self.slope)
        self.lr = torch.where(better, 1.05 * self.lr, 0.5 * self.lr)
        lr = _per_image(self.lr, params)
        if not beta:
            return torch.addcmul(self.accepted, lr, self.slope, value=-1)
        shrunk = 1 / (1 + lr * beta)  # forward step and proximal map as one weighted sum, in few passes over the pixels
        return (
            (self.accepted * shrunk).addcmul_(lr * shrunk, self.slope, value=-1).addcmul_(lr * beta * shrunk, self.base)
        )

    def final(self, params: Tensor) -> Tensor:
        return params if self.accepted is None else self.accepted

    def _check(self, params: Tensor, value: Tensor) -> None:
        if value.ndim != 1:
            raise TypeError(
                "forward-backward splitting accepts or rejects each image, so its objective is one per image"
            )
        if self.update.beta and params.shape != self.base.shape:
            raise TypeError(
                f"forward-backward splitting with beta {self.update.beta:g} holds pixels near those of the base, but "
                f"this ball moves parameters {list(params.shape)} of images {list(self.base.shape)}; use beta=0, "
                "another update, or a ball whose parameters are the pixels"
            )


@dataclass(frozen=True, kw_only=True)
class ForwardBackward(Update):
    """Forward-backward splitting of f(x) + beta/2 |x - base|^2: a gradient step on f, the proximal map of the penalty.

    A candidate that raises the objective of its image is rejected and the step of that image is halved; it grows by 5 %
    when a candidate is accepted. In bfloat16 a search that rejects every rise stops where rounding hides what a step
    gains; with a tolerance it goes on.

    Reference: Shafahi et al. "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks". NeurIPS 2018.
    arXiv 1804.00792, Algorithm 1. Deviation: the accept test uses the objective of the iterate itself.

    Raises:
        TypeError: in a search whose objective is joint: each image is accepted or rejected by its own value; or one
            that has a penalty but moves parameters that are not the pixels.

    >>> ForwardBackward(lr=0.1).beta
    0.25
    """

    lr: float = 0.01
    """First step."""
    beta: float = 0.25
    """Weight of the penalty on the distance to the base, which is one of pixels; 0 moves parameters of any kind."""
    tolerance: float = 0.0
    """Share by which a candidate's objective may lie above the lowest one so far; 0.05 covers the noise of bfloat16."""

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _ForwardBackwardStepper(self, base)
