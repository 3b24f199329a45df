"""Images and networks that all loops by hand share: synthetic images, augmentation, layers as one would write them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.networks import ConvNorm

REACH = 4
"""Pixels an image moves at most: an eighth of 32."""
CLASSES = 10

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Row ids [B] and a generator -> augmented images [B, C, H, W] in units of 0 to 255."""


def synthetic(count: int, classes: int = CLASSES, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Coloured blots with noise: uint8 images [N, 3, side, side] and labels [N], as many of each class."""
    rng = torch.Generator().manual_seed(seed)
    blots = functional.interpolate(torch.rand(classes, 3, 4, 4, generator=rng), size=side, mode="bilinear")
    labels, images = torch.arange(count) % classes, torch.empty(count, 3, side, side, dtype=torch.uint8)
    for rows in torch.arange(count).split(500):  # in pieces: the memory benchmark counts every peak
        noisy = blots[labels[rows]] + 0.3 * torch.randn(len(rows), 3, side, side, generator=rng)
        images[rows] = (noisy.clamp_(0, 1) * 255).to(torch.uint8)
    return images, labels


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel [C] of uint8 images, in units of [0, 1]."""
    values = images.float().div_(255)
    return values.mean((0, 2, 3)), values.std((0, 2, 3))


# --- networks --------------------------------------------------------------------------------------------------------


def ordinary(network: nn.Module) -> nn.Module:
    """A copy in NCHW whose convolutions and BatchNorms are separate layers with the same weights."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    def separate(layer: ConvNorm) -> nn.Module:
        return nn.Sequential(layer.convolution, layer.norm)

    return _exchanged(network, separate)


def folded(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy whose convolutions hold the BatchNorm behind them in their own weights, for once and all, in a dtype.

    For gradients of images alone: the parameters of the two layers are gone.
    """

    def fold(layer: ConvNorm) -> nn.Module:
        old, norm = layer.convolution, layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        new = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            (old.kernel_size[0], old.kernel_size[1]),
            stride=(old.stride[0], old.stride[1]),
            padding=old.padding,  # pyright: ignore[reportArgumentType]
            groups=old.groups,
        ).to(old.weight.device)
        assert new.bias is not None
        with torch.no_grad():
            new.weight.copy_(old.weight * scale[:, None, None, None])
            new.bias.copy_(norm.bias - norm.running_mean * scale)
        return new

    network = _exchanged(copy.deepcopy(network).eval(), fold).requires_grad_(False)
    return network.to(dtype=dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _exchanged(network: nn.Module, exchange: Callable[[ConvNorm], nn.Module]) -> nn.Module:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, exchange(child))
    return network


# --- augmentation ----------------------------------------------------------------------------------------------------


def augment_plain(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image with probability one half, then move it by up to 4 pixels; differentiable. [B, C, H, W]."""
    count, _, height, width = images.shape
    mirrored = (torch.rand(count, generator=rng) < 0.5).to(images.device)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (REACH,) * 4)
    down, right = torch.randint(2 * REACH + 1, (2, count), generator=rng).tolist()
    pieces = [padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(down, right, strict=True))]
    return torch.stack(pieces)


def moves_of(count: int, rng: torch.Generator) -> Tensor:
    """Down, right (0 to 8) and whether mirrored, drawn for `count` images: [3, count] int64."""
    places = torch.randint(2 * REACH + 1, (2, count), generator=rng)
    return torch.cat([places, torch.randint(2, (1, count), generator=rng)])


def mirrored_and_moved(padded: Tensor, rows: Tensor, moves: Tensor) -> Tensor:
    """One gather of whole pixels for batch, mirror and move; differentiable. [B, C, H, W], channels last.

    Args:
        padded: [N, H + 8, W + 8, C].
        rows: Which of the N, [B].
        moves: As `moves_of` returns them, on the device of the images.
    """
    _, tall, wide, channels = padded.shape
    height, width = tall - 2 * REACH, wide - 2 * REACH
    down, right, mirrored = moves[:, :, None]
    across = right + torch.arange(width, device=rows.device)
    x = torch.where(mirrored > 0, wide - 1 - across, across)
    y = rows[:, None] * tall + down + torch.arange(height, device=rows.device)
    index = (y[:, :, None] * wide + x[:, None, :]).flatten()
    pixels = padded.view(-1, channels).index_select(0, index)
    return pixels.view(len(rows), height, width, channels).permute(0, 3, 1, 2)


def padded_pixels(images: Tensor) -> Tensor:
    """Images [N, C, H, W] with a black border, channels last: [N, H + 8, W + 8, C]."""
    return functional.pad(images.permute(0, 2, 3, 1), (0, 0, *(REACH,) * 4)).contiguous()


def one_gather(images: Tensor) -> Draw:
    """Batch, mirror and move in one gather of bytes from all images, which are padded once."""
    padded = padded_pixels(images)

    def draw(rows: Tensor, rng: torch.Generator) -> Tensor:
        return mirrored_and_moved(padded, rows, moves_of(len(rows), rng).to(rows.device, non_blocking=True))

    return draw


def two_passes(images: Tensor) -> Draw:
    """A gather of the batch as floats, one pass that mirrors, one that moves."""
    lying = images.contiguous(memory_format=torch.channels_last)

    def draw(rows: Tensor, rng: torch.Generator) -> Tensor:
        moves = moves_of(len(rows), rng).to(rows.device, non_blocking=True)
        batch = lying.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2).float()
        batch = torch.where((moves[2] > 0)[:, None, None, None], batch.flip(3), batch)
        moves[2] = 0
        return mirrored_and_moved(padded_pixels(batch), torch.arange(len(rows), device=rows.device), moves)

    return draw
