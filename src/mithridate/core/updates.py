"""How a search inside a ball moves: Adam on the gradient or its sign, sign steps, forward-backward splitting."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

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


def per_image(numbers: Tensor, params: Tensor) -> Tensor:
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
    """How a search moves. Those that climb a model's loss in ways of their own are in `steps`.

    >>> from mithridate.core.schema import parse
    >>> parse(Update, "signed-adam:lr=1/40").lr
    0.025
    """

    home: ClassVar[str] = "mithridate.core.steps"  # which imports this module: all members

    @abstractmethod
    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        """Starts a search around the base images."""


class _Moments:
    """The two running means of Adam, and the step that they make."""

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas, self.count = betas, 0
        self.mean = self.square = torch.zeros(())

    def moved(self, params: Tensor, gradient: Tensor, lr: float) -> Tensor:
        first, second = self.betas
        if self.count == 0:
            self.mean, self.square = torch.zeros_like(params), torch.zeros_like(params)
        self.count += 1
        self.mean.mul_(first).add_(gradient, alpha=1 - first)  # in place: a search keeps as few copies as it can
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = self.square.div(1 - second**self.count).sqrt_().add_(1e-8)
        return params.addcdiv(self.mean, spread, value=-lr / (1 - first**self.count))


class _AdamStepper(Stepper):
    def __init__(self, update: Adam | SignedAdam, signed: bool) -> None:
        self.update, self.signed, self.moments = update, signed, _Moments(update.betas)

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        gradient = gradient.sign() if self.signed else gradient
        lr = self.update.lr * (step_decay(progress, self.update.drops) if self.update.decay else 1)
        return self.moments.moved(params, gradient, lr)


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


def cosine_decay(progress: float, warmup: float = 0.0) -> float:
    """Returns the factor of a schedule that rises from 0 to 1 in a straight line and falls to 0 in half a cosine.

    >>> [round(cosine_decay(p, warmup=0.2), 4) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def _soft_sign(gradient: Tensor) -> Tensor:
    """The hyperbolic tangent of each image's gradient over its mean absolute value."""
    size = gradient.abs().mean(tuple(range(1, gradient.ndim)), keepdim=True)
    return (gradient / size.clamp_min(torch.finfo(gradient.dtype).tiny)).tanh_()


_SIGNS = {"none": lambda gradient: gradient, "hard": torch.sign, "soft": _soft_sign}


class _CosineAdamStepper(Stepper):
    def __init__(self, update: CosineAdam, rng: torch.Generator) -> None:
        self.update, self.rng, self.moments = update, rng, _Moments(update.betas)

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        lr = self.update.lr * cosine_decay(progress, self.update.warmup)
        moved = self.moments.moved(params, _SIGNS[self.update.sign](gradient), lr)
        if not self.update.langevin:
            return moved
        noise = torch.randn(params.shape, generator=self.rng, dtype=params.dtype)
        return moved.add_(noise.to(params.device), alpha=lr * self.update.langevin)


@dataclass(frozen=True, kw_only=True)
class CosineAdam(Update):
    """Adam whose rate rises in a straight line, then falls to 0 in half a cosine; with the gradient's sign, or noise.

    The rate of the very first step is 0 where there is a warm-up. What it sees already counts in both means.

    A soft sign is tanh(g / s) for a gradient g with mean absolute value s in its image: between Adam on the gradient,
    which follows the large entries, and on the sign, for which all are alike; whatever the scale of the objective.

    Reference: the search of Yin et al. "See through Gradients: Image Batch Recovery via GradInversion". CVPR 2021.
    arXiv 2104.07586 (warm-up, cosine, noise; there `langevin` is 0.2). Noise is added to the step and not
    to the gradient, so that Adam does not scale it away.

    Raises:
        ValueError: A warm-up that is no share below 1, or noise of negative size.

    >>> stepper = CosineAdam(lr=0.5).begin(torch.zeros(1, 1, 1, 1), torch.Generator())
    >>> ones = torch.ones(1, 1, 1, 1)
    >>> round(stepper.step(ones, torch.tensor(0.0), 7 * ones, 0.5).item(), 4)
    0.75
    """

    lr: float = 0.1
    """Highest step in pixels of [0, 1]."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of the gradient and of its square."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises from 0."""
    sign: Literal["none", "hard", "soft"] = "none"
    """What is taken of the gradient: all of it, its sign, or a smooth version of its sign."""
    langevin: float = 0.0
    """Standard deviation of Gaussian noise on each step, in units of the rate of that step."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, at least 0 and below 1")
        if not self.langevin >= 0:
            raise ValueError(f"langevin is {self.langevin}; it is a standard deviation, so not below 0")

    def begin(self, base: Tensor, rng: torch.Generator) -> Stepper:
        return _CosineAdamStepper(self, rng)


class _SignStepper(Stepper):
    def __init__(self, update: SignStep, rng: torch.Generator) -> None:
        self.update, self.rng = update, rng

    def step(self, params: Tensor, value: Tensor, gradient: Tensor, progress: float) -> Tensor:
        return params - per_image(self.update.lengths(len(params), self.rng).to(params), params) * gradient.sign()


@dataclass(frozen=True, kw_only=True)
class SignStep(Update):
    """A step against the sign of the gradient, its length drawn from [low, high] at every step; equal ends: PGD.

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
    shared: bool = False
    """Whether one length is drawn for all images of a step, in place of one for each."""

    def lengths(self, count: int, rng: torch.Generator) -> Tensor:
        """Returns the lengths of the next step, one per image: [count]."""
        draw = torch.rand(1 if self.shared else count, generator=rng).expand(count)
        return self.low + (self.high - self.low) * draw

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
        self.accepted = torch.where(per_image(better, params), params, accepted)
        self.slope = torch.where(per_image(better, params), gradient, self.slope)
        self.lr = torch.where(better, 1.05 * self.lr, 0.5 * self.lr)
        lr = per_image(self.lr, params)
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
