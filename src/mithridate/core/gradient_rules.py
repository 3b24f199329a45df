"""How a step gets its gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mithridate.core import gradients as algebra
from mithridate.core.batch import Batch, GradientRule
from mithridate.core.data import ImageData
from mithridate.core.guarantees import Guarantee
from mithridate.core.per_sample import clipped_sum
from mithridate.core.privacy import at_most, subsampled_gaussian_epsilon
from mithridate.core.sampling import Poisson
from mithridate.core.schema import name_of

if TYPE_CHECKING:
    from mithridate.core.training import Recipe


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that training may change, by name.

    >>> sorted(trainable(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def refuse_second_rule(recipes: Iterable[Recipe], name: str) -> None:
    """Makes sure that nothing but the mean says how a step gets its gradient, before `name` does.

    Raises:
        ValueError: Another rule does, which would be replaced without a word.
    """
    for recipe in recipes:
        if not isinstance(recipe.gradient, Mean):
            raise ValueError(
                f"{name} says how a step gets its gradient, and so does what came before it "
                f"({name_of(recipe.gradient)}); use one of the two"
            )


class RowSum(GradientRule):
    """A rule that adds something up over the rows of a batch and then works on the sum: devices can share the rows."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of each trainable parameter by name, and the mean loss []."""
        gradients, loss = self.added(model, batch, 1.0)
        return self.finished(gradients, rng), loss

    @abstractmethod
    def added(self, model: nn.Module, batch: Batch, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns what these rows add to the sum, and to the mean loss [].

        Args:
            model: What is trained.
            batch: Some rows of a batch, or all.
            share: How much of the whole batch they are.
        """

    @abstractmethod
    def finished(self, gradients: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Returns what becomes of the sum over all rows."""


@dataclass(frozen=True, kw_only=True)
class Mean(RowSum):
    """The gradient of the mean cross-entropy of the batch: ordinary training. That of an empty batch is zero.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> gradients, loss = Mean()(model, batch, torch.Generator())
    >>> sorted(gradients), loss.shape
    (['1.bias', '1.weight'], torch.Size([]))
    """

    def added(self, model: nn.Module, batch: Batch, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of the mean loss of these rows, times their share."""
        parameters = trainable(model)
        if not len(batch.images):  # which Poisson sampling may draw
            return {name: torch.zeros_like(one) for name, one in parameters.items()}, batch.images.new_zeros(())
        loss = nn.functional.cross_entropy(model(batch.images), batch.targets) * share
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True)), loss.detach()

    def finished(self, gradients: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Returns them as they are."""
        return gradients


@dataclass(frozen=True, kw_only=True)
class NormBias(RowSum):
    """Pulls the norm of the weights towards a value: the gradient of (strength / 2) * | |weights|^2 - norm^2 |.

    With norm 0 it is weight decay, bit for bit. Use it with `weight_decay=0`, which would pull as well. The pull has
    one of two directions, so that near the value the norm swings by about learning rate x strength x norm at a step.

    Reference: Goldblum, Geiping, Schwarzschild, Moeller, Goldstein. "Truth or Backpropaganda? An Empirical
    Investigation of Deep Learning Theory". ICLR 2020. arXiv 1910.00359. Deviations: `norm` is the norm, where the
    authors' code takes its square.

    Raises:
        ValueError: A strength or a norm that is negative.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> (plain, _), (low, _) = (
    ...     rule(model, batch, torch.Generator()) for rule in (Mean(), NormBias(norm=100.0))
    ... )
    >>> torch.allclose(low["1.weight"], plain["1.weight"] - 1e-4 * model[1].weight)
    True
    """

    strength: float = 1e-4
    """Of the pull; what weight decay is called elsewhere."""
    norm: float = 0.0
    """Euclidean norm of all trainable parameters together that they are pulled to."""

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("norm", self.norm)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"norm-bias {name} is {value:g}; it is 0 or more, and finite")

    def added(self, model: nn.Module, batch: Batch, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of the mean loss of these rows and of the pull, times their share."""
        gradients, loss = Mean().added(model, batch, share)
        parameters = {name: one.detach() for name, one in trainable(model).items()}
        strength = self.strength * share
        if self.norm == 0:
            return {name: one.add(parameters[name], alpha=strength) for name, one in gradients.items()}, loss
        side = (algebra.norm(parameters) - self.norm).sign() * strength  # stays on the device
        return {name: one + side * parameters[name] for name, one in gradients.items()}, loss

    def finished(self, gradients: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Returns them as they are."""
        return gradients


def _noise(like: Tensor, deviation: float, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng).to(like, non_blocking=True).mul_(deviation)


def _check_scales(rule: GradientRule, clip: float, noise: float) -> None:
    if not clip > 0:
        raise ValueError(f"{name_of(rule)} clip is {clip}; it is the largest norm of a gradient, so it is positive")
    if not noise >= 0:
        raise ValueError(f"{name_of(rule)} noise is {noise}; it is a multiple of clip, at least 0")


@dataclass(frozen=True, kw_only=True)
class Shaped(RowSum):
    """Clips the norm of the batch's mean gradient and adds Gaussian noise to it.

    This bounds how far and in which direction a step goes. It is not private: one image can turn the whole gradient of
    a batch, clipped or not.

    Reference: Hong, Chandrasekaran, Kaya, Dumitras, Papernot. "On the Effectiveness of Mitigating Data Poisoning
    Attacks with Gradient Shaping". 2020. arXiv 2002.11497. Deviations: the norm of the batch's gradient is clipped, as
    in the experiments of Borgnia et al. (arXiv 2011.09527), not that of each image's.

    Raises:
        ValueError: A clip that is not positive, or negative noise.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> gradients, _ = Shaped(clip=0.01, noise=0.0)(model, batch, torch.Generator())
    >>> round(algebra.norm(gradients).item(), 4)
    0.01
    """

    clip: float = 1.0
    """Largest norm of the gradient, over all parameters together."""
    noise: float = 0.01
    """Deviation of the noise on each number of the gradient, as a multiple of clip."""

    def __post_init__(self) -> None:
        _check_scales(self, self.clip, self.noise)

    def added(self, model: nn.Module, batch: Batch, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of the mean loss of these rows, times their share."""
        return Mean().added(model, batch, share)

    def finished(self, gradients: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Clips the norm of the sum and adds noise."""
        factor = (self.clip / algebra.norm(gradients).clamp_min(1e-12)).clamp_max(1)
        deviation = self.clip * self.noise
        return {name: one * factor + _noise(one, deviation, rng) for name, one in gradients.items()}


@dataclass(frozen=True, kw_only=True)
class PerSample(RowSum):
    """Clips the gradient of each image, sums them up and adds Gaussian noise: the step of private training (DP-SGD).

    An empty batch is a step, too, of noise alone. The sum is divided by a constant and not by the size of the batch,
    which is secret. The loss that comes back is the mean of the unclipped losses; it is not private.

    Reference: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. "Deep Learning with Differential Privacy". CCS
    2016. arXiv 1607.00133, Algorithm 1. Deviations: one norm over all parameters.

    Raises:
        ValueError: A clip that is not positive, negative noise, a lot below 1, or a delta outside (0, 1).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> gradients, _ = PerSample(clip=0.01, noise=0.0, lot=3)(model, batch, torch.Generator())
    >>> bool(algebra.norm(gradients) <= 0.010001)
    True
    """

    clip: float = 1.0
    """Largest norm of the gradient of one image, over all parameters together."""
    noise: float = 1.0
    """Deviation of the noise on each number of the sum, as a multiple of clip."""
    lot: int = 128
    """What the sum is divided by: the expected size of a batch."""
    delta: float = 1e-5
    """Probability that the guarantee may fail with; well below one over the number of rows."""

    def __post_init__(self) -> None:
        _check_scales(self, self.clip, self.noise)
        if self.lot < 1:
            raise ValueError(f"per-sample lot is {self.lot}; it is the expected size of a batch, at least 1")
        if not 0 < self.delta < 1:
            raise ValueError(f"per-sample delta is {self.delta}; it is a probability above 0 and below 1, say 1e-5")

    def added(self, model: nn.Module, batch: Batch, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the sum of the clipped gradients of these rows."""
        total, loss = clipped_sum(model, batch, trainable(model), self.clip)
        return total, loss * share

    def finished(self, gradients: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Adds noise, and divides by the expected size of a batch."""
        deviation = self.noise * self.clip
        return {name: (one + _noise(one, deviation, rng)) / self.lot for name, one in gradients.items()}

    def check(self, recipe: Recipe) -> None:
        """Makes sure that what is clipped and counted is what one row adds.

        Raises:
            ValueError: Another sampler than `Poisson`, transforms or a row rule that look at other rows, a number
                format in which the norms are not those of what is summed, or a normalisation by the data.
        """
        wrong = next((words for holds, words in _unsuitable(recipe) if holds), None)
        if wrong:
            raise ValueError(f"private training (per-sample gradients): {wrong}")

    def guarantee(self, recipe: Recipe, data: ImageData) -> Guarantee | None:
        """The privacy of a whole training run; None without noise."""
        sampler, rows = recipe.sampler, len(data)
        if self.noise == 0 or not isinstance(sampler, Poisson):
            return None
        rate, steps = sampler.rate(rows, recipe.batch_size), recipe.epochs * sampler.batches(rows, recipe.batch_size)
        epsilon = subsampled_gaussian_epsilon(rate, self.noise, steps, self.delta)
        shown = at_most(epsilon)
        return Guarantee(
            kind="differential-privacy",
            statement=f"the trained weights are ({shown}, {self.delta:g})-differentially private: adding or "
            "removing one training row, image and label, changes how likely any outcome is by a factor of at most "
            f"exp({shown}), apart from a probability of {self.delta:g}",
            assumptions=_PRIVATE,
            values={
                "epsilon": epsilon,
                "delta": self.delta,
                "noise_multiplier": self.noise,
                "sampling_rate": rate,
                "steps": float(steps),
            },
        )


def _unsuitable(recipe: Recipe) -> list[tuple[bool, str]]:
    """What in a recipe would make the claim false: whether it does, and what to say."""
    mixing = [name_of(transform) for transform in recipe.transforms if transform.mixes_rows] or [""]
    return [
        (
            not isinstance(recipe.sampler, Poisson),
            f"{name_of(recipe.sampler)} does not draw each row independently, as is counted; set sampler=Poisson()",
        ),
        (
            bool(mixing[0]),
            f"{mixing[0]} mixes images, so one row would reach the gradients of several; leave {mixing[0]} out",
        ),
        (
            recipe.row_rule is not None,
            "the row rule chooses rows by looking at all of them, which no noise covers; leave it out",
        ),
        (
            recipe.precision != "fp32",
            f"precision is {recipe.precision!r}, and in bfloat16 norms are only rough; set precision='fp32'",
        ),
        (
            recipe.normalize == "data",
            "normalize is 'data', and mean and deviation of the data are not private; set normalize='fixed'",
        ),
    ]


_PRIVATE = (
    "protected is one row, image and label together; for m rows epsilon is m times as large, and delta grows with it",
    "the number of rows, the classes and all settings are public, and settings were not chosen by looking at the data",
    "the seed is secret: whoever knows it knows the noise and the batches, and for them nothing is private",
    "weights that training starts from (start_from) are public or owe nothing to these rows",
    "one training run is released, and of it the weights alone: not the losses in its history, nor other runs",
    "the model and the transforms handle each image by itself",
    "draws of a pseudo-random generator and sums of floating-point numbers count as exact",
)
