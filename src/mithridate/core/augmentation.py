"""Batch transforms that look at the images alone: flip, shift, mixup, cutmix, cutout, noise.

Differentiable, drawn from a generator, written for one batch. Victim and attacker use the same objects: whoever holds
the generator replays the same draws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.models import Normalize


class Move(BatchTransform):
    """Takes every pixel of the result from one place of the same image; black where that place lies outside.

    Moves in a row are one gather (see `transformed`).
    """

    @abstractmethod
    def places(self, count: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the row [B or 1, H] and the column [B or 1, W] that each row and column of the result comes from."""

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        return batch._replace(images=_moved(batch.images, [self], rng))


def transformed(batch: Batch, transforms: Sequence[BatchTransform], model: nn.Module, rng: torch.Generator) -> Batch:
    """Applies transforms in their order: the result of calling one after the other, in fewer passes over the pixels.

    >>> batch = Batch(torch.rand(2, 3, 8, 8), torch.eye(2), torch.arange(2), 0.0)
    >>> one_pass = transformed(batch, [Flip(), Shift()], nn.Identity(), torch.Generator().manual_seed(0))
    >>> rng = torch.Generator().manual_seed(0)
    >>> two_passes = Shift()(Flip()(batch, nn.Identity(), rng), nn.Identity(), rng)
    >>> torch.equal(one_pass.images, two_passes.images)
    True
    """
    if not len(batch.images):  # which Poisson sampling may draw
        return batch
    for moves, group in groupby(transforms, lambda transform: isinstance(transform, Move)):
        if moves:
            batch = batch._replace(images=_moved(batch.images, cast("list[Move]", list(group)), rng))
            continue
        for transform in group:
            batch = transform(batch, model, rng)
    return batch


def _moved(images: Tensor, moves: Sequence[Move], rng: torch.Generator) -> Tensor:
    """One gather of whole pixels (all channels together) from images [B, C, H, W], which are stored channels last."""
    count, channels, height, width = images.shape
    places = [move.places(count, height, width, rng) for move in moves]
    y = reduce(_chained, (rows for rows, _ in places), torch.arange(height)[None])
    x = reduce(_chained, (columns for _, columns in places), torch.arange(width)[None])
    y, x = (line.to(images.device, non_blocking=True) for line in (y, x))
    padded = nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 0, 1, 0))  # row and column -1 are black
    wide, tall = width + 1, height + 1
    first = tall * wide * torch.arange(count, device=images.device)
    index = first[:, None, None] + ((y + 1) * wide)[:, :, None] + (x + 1)[:, None, :]
    moved = padded.reshape(count * tall * wide, channels).index_select(0, index.flatten())
    return moved.view(count, height, width, channels).permute(0, 3, 1, 2)


def _chained(before: Tensor, places: Tensor) -> Tensor:
    """Follows places [B or 1, n] through earlier ones [B or 1, n]; -1 stands for all that lies outside."""
    inside = places == places.clamp(0, before.shape[1] - 1)
    images = torch.arange(len(before))[:, None]  # one line of places for all, or one for each
    return torch.where(inside, before[images, torch.where(inside, places, 0)], -1)


@dataclass(frozen=True, kw_only=True)
class Flip(Move):
    """Mirrors each image left to right with a probability.

    >>> batch = Batch(torch.tensor([[[[0.0, 1.0]]]]), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Flip(probability=1.0)(batch, nn.Identity(), torch.Generator()).images
    tensor([[[[1., 0.]]]])
    """

    probability: float = 0.5

    def places(self, count: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrored = (torch.rand(count, generator=rng) < self.probability)[:, None]
        column = torch.arange(width)
        return torch.arange(height)[None], torch.where(mirrored, width - 1 - column, column)


@dataclass(frozen=True, kw_only=True)
class Shift(Move):
    """Moves each image by whole pixels, uniformly in both directions; what moves in is black.

    >>> batch = Batch(torch.ones(1, 3, 8, 8), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Shift(share=0.25)(batch, nn.Identity(), torch.Generator()).images.shape
    torch.Size([1, 3, 8, 8])
    """

    share: float = 0.125
    """Largest move as a share of the side: 4 pixels of 32, 1 of 8."""

    def places(self, count: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        down, right = (
            (torch.rand(count, generator=rng) * (2 * reach + 1)).long() - reach
            for reach in (round(self.share * height), round(self.share * width))
        )
        return torch.arange(height) + down[:, None], torch.arange(width) + right[:, None]


@dataclass(frozen=True, kw_only=True)
class Mixup(BatchTransform):
    """Replaces every image by a weighted mean of k images of its batch, labels likewise.

    One weight vector per batch, Dirichlet(alpha, ..., alpha); the first term is the batch in its own order and the
    others are random permutations of it, so k = 2 is the classic rule.

    Reference: Zhang, Cisse, Dauphin, Lopez-Paz. "mixup: Beyond Empirical Risk Minimization". ICLR 2018. arXiv
    1710.09412; k-way form: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an
    Accuracy Tradeoff". ICASSP 2021. arXiv 2011.09527.

    Raises:
        ValueError: fewer than 2 images per mixture, or a concentration that is not positive.

    >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.eye(4), torch.arange(4), 0.0)
    >>> torch.allclose(Mixup()(batch, nn.Identity(), torch.Generator()).targets.sum(1), torch.ones(4))
    True
    """

    mixes_rows: ClassVar[bool] = True
    k: int = 2
    """Images per mixture."""
    alpha: float = 1.0
    """Concentration of the weights: small values leave one image dominant."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"mixup k is {self.k}; a mixture needs at least 2 images")
        if not self.alpha > 0:
            raise ValueError(f"mixup alpha is {self.alpha}; it must be positive (1.0 draws the weights uniformly)")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        device = batch.images.device
        seed = int(torch.randint(2**62, (1,), generator=rng))  # torch has no Dirichlet draw that takes a generator
        drawn = np.random.default_rng(seed).dirichlet([self.alpha] * self.k)
        weights = torch.from_numpy(drawn).float().to(device, non_blocking=True)
        images, targets = weights[0] * batch.images, weights[0] * batch.targets
        for weight in weights[1:]:
            order = torch.randperm(len(batch.images), generator=rng).to(device, non_blocking=True)
            images = images + weight * batch.images[order]
            targets = targets + weight * batch.targets[order]
        return batch._replace(images=images, targets=targets)


@dataclass(frozen=True, kw_only=True)
class Cutmix(BatchTransform):
    """Replaces a box of every image by the same box of another image of its batch, labels in proportion to the area.

    One box and one permutation per batch. The box covers 1 - lambda of the image before it is clipped at the border,
    lambda ~ Beta(alpha, alpha), and its centre is uniform; labels are mixed by the area that is left after clipping.

    Reference: Yun, Han, Oh, Chun, Choe, Yoo. "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features". ICCV 2019. arXiv 1905.04899. Deviations: none.

    Raises:
        ValueError: a probability outside 0 to 1, or a concentration that is not positive.

    >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.eye(4), torch.arange(4), 0.0)
    >>> torch.allclose(Cutmix()(batch, nn.Identity(), torch.Generator()).targets.sum(1), torch.ones(4))
    True
    """

    mixes_rows: ClassVar[bool] = True
    alpha: float = 1.0
    """Concentration of lambda, the share of an image that stays; 1.0 draws it uniformly."""
    probability: float = 0.5
    """Share of the batches that are changed; the paper's value for images of 32 pixels."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"cutmix alpha is {self.alpha}; it must be positive (1.0 draws the areas uniformly)")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"cutmix probability is {self.probability}; it is a share of the batches, from 0 to 1")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        count, _, height, width = batch.images.shape
        drawn = bool(torch.rand((), generator=rng) < self.probability)
        seed = int(torch.randint(2**62, (1,), generator=rng))  # torch has no Beta draw that takes a generator
        side = float(np.sqrt(1 - np.random.default_rng(seed).beta(self.alpha, self.alpha)))
        top, bottom = _span(height, int(height * side), rng)
        left, right = _span(width, int(width * side), rng)
        order = torch.randperm(count, generator=rng)
        if not drawn:
            return batch
        order = order.to(batch.images.device, non_blocking=True)
        images = batch.images.clone()
        images[:, :, top:bottom, left:right] = batch.images[:, :, top:bottom, left:right][order]
        share = (bottom - top) * (right - left) / (height * width)
        return batch._replace(images=images, targets=(1 - share) * batch.targets + share * batch.targets[order])


def _span(length: int, side: int, rng: torch.Generator) -> tuple[int, int]:
    """One side of a box: a uniform centre, and what of the side lies inside the image."""
    start = int(torch.randint(length, (1,), generator=rng)) - side // 2
    return max(start, 0), min(start + side, length)


@dataclass(frozen=True, kw_only=True)
class Cutout(BatchTransform):
    """Covers one box of every image with the mean colour; labels stay.

    Each image has a box of its own: the side is fixed, the centre is uniform over the pixels, and what reaches over the
    border is cut off. The colour is the mean that the model's `Normalize` layer subtracts, so that the network sees
    zeros there, as in the paper; black for a model without such a layer.

    Reference: DeVries, Taylor. "Improved Regularization of Convolutional Neural Networks with Cutout". 2017. arXiv
    1708.04552. Deviations: none.

    Raises:
        ValueError: a side that is no share of the image.

    >>> batch = Batch(torch.ones(2, 1, 8, 8), torch.eye(2), torch.arange(2), 0.0)
    >>> bool((Cutout()(batch, nn.Identity(), torch.Generator()).images == 0).flatten(1).any(1).all())
    True
    """

    side: float = 0.5
    """Side of the box as a share of the image's: 16 pixels of 32, the paper's value for CIFAR-10."""

    def __post_init__(self) -> None:
        if not 0 < self.side <= 1:
            raise ValueError(f"cutout side is {self.side}; it is a share of the image's side, so use 0.5 for 50 %")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        device, (height, width) = batch.images.device, batch.images.shape[2:]
        rows = _inside(height, round(self.side * height), len(batch.images), rng).to(device, non_blocking=True)
        columns = _inside(width, round(self.side * width), len(batch.images), rng).to(device, non_blocking=True)
        box = (rows[:, :, None] & columns[:, None, :])[:, None]
        layer = next((part for part in model.modules() if isinstance(part, Normalize)), None)
        colour = batch.images.new_zeros(1) if layer is None else layer.mean.to(batch.images.dtype)
        return batch._replace(images=torch.where(box, colour[:, None, None], batch.images))


def _inside(length: int, side: int, count: int, rng: torch.Generator) -> Tensor:
    """Marks one side of a box per image, [count, length] bool; the centre is uniform."""
    start = torch.randint(length, (count, 1), generator=rng) - side // 2
    place = torch.arange(length)
    return (place >= start) & (place < start + side)


def _laplace(shape: torch.Size, rng: torch.Generator) -> Tensor:
    draw = torch.rand(shape, generator=rng).sub_(0.5 - 2**-25)  # symmetric, and never 1/2: its logarithm is infinite
    return draw.abs().mul_(-2).log1p_().mul_(draw.sign_()).neg_()


def _gaussian(shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng)


def _bernoulli(shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=rng).float().mul_(2).sub_(1)


_NOISES = {"laplace": _laplace, "gaussian": _gaussian, "bernoulli": _bernoulli}


@dataclass(frozen=True, kw_only=True)
class Noise(BatchTransform):
    """Adds independent noise to every pixel value.

    Pixels are not clipped to [0, 1]: clipping would change the mean of dark and bright pixels and stop the gradient
    there, and a network takes any number.

    Reference: Borgnia, Geiping, Cherepanova, Fowl, Gupta, Ghiasi, Huang, Goldblum, Goldstein. "DP-InstaHide: Provably
    Defusing Poisoning and Backdoor Attacks with Differentially Private Data Augmentations". 2021. arXiv 2103.02079.
    Deviations: noise alone; their mixing is `Mixup` before it.

    Raises:
        ValueError: an unknown kind, or a scale that is negative.

    >>> batch = Batch(torch.zeros(2, 1, 8, 8), torch.eye(2), torch.arange(2), 0.0)
    >>> Noise(kind="bernoulli", scale=0.5)(batch, nn.Identity(), torch.Generator()).images.unique().tolist()
    [-0.5, 0.5]
    """

    kind: Literal["laplace", "gaussian", "bernoulli"] = "laplace"
    """Distribution of the noise; bernoulli is plus or minus the scale."""
    scale: float = 16 / 255
    """In pixels of [0, 1]: the deviation (of laplace: its parameter b, the deviation divided by the root of two)."""

    def __post_init__(self) -> None:
        if self.kind not in _NOISES:
            raise ValueError(f"noise kind is {self.kind!r}; use one of {', '.join(_NOISES)}")
        if not self.scale >= 0:
            raise ValueError(f"noise scale is {self.scale}; it is 0 or more, in pixels of [0, 1] (for example 16/255)")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        count, channels, height, width = batch.images.shape
        drawn = _NOISES[self.kind](torch.Size((count, height, width, channels)), rng)  # in the layout of a batch
        noise = drawn.to(batch.images, non_blocking=True).permute(0, 3, 1, 2)
        return batch._replace(images=torch.add(batch.images, noise, alpha=self.scale))
