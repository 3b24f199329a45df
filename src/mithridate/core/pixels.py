"""Pixels in 8 bits and back, and the clip to their range; what every ball (``core/balls.py``) rounds with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EDGE = 1e-6  # slack of a comparison between floats that came from 8-bit pixels


def to_bytes(images: Tensor) -> Tensor:
    """Rounds pixels in [0, 1] to the nearest uint8.

    >>> to_bytes(torch.tensor([0.0, 0.5, 1.0])).tolist(), to_floats(torch.tensor([0, 255])).tolist()
    ([0, 128, 255], [0.0, 1.0])
    """
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_floats(images: Tensor) -> Tensor:
    """Turns uint8 pixels into floats in [0, 1]."""
    return images.float() / 255


def clipped(images: Tensor) -> Tensor:
    """Clips to [0, 1] and passes the gradient on.

    The clip ends a pixel's change as a projection does; with its own gradient, zero outside, a pixel that several
    changes push out of the range could not come back.

    >>> pixel = torch.tensor(1.5, requires_grad=True)
    >>> clipped(pixel).backward()
    >>> pixel.grad
    tensor(1.)
    """
    return _Clipped.apply(images)


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def rounded_inwards(fits: Callable[[Tensor], Tensor], base: Tensor, images: Tensor, outside: Tensor) -> Tensor:
    """Returns per image the first of these that fits (float images [P, C, H, W] -> [P]), else the last.

    The nearest 8-bit pixels; these, but truncated towards the base where marked as `outside` [P, C, H, W]; all pixels
    truncated towards the base.
    """
    nearest = to_bytes(images)
    steps = ((images - base).clamp(-1, 1) * 255).trunc()
    towards = ((base * 255).round() + steps).clamp(0, 255).to(torch.uint8)
    for better in (torch.where(outside, towards, nearest), nearest):
        towards = torch.where(fits(to_floats(better))[:, None, None, None], better, towards)
    return towards
