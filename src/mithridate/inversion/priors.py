"""Priors: what an attacker believes of images before it sees a gradient. Each gives its value and its slope."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the anisotropic total variation [], mean |dx| + mean |dy| over neighbouring pixels, and its slope.

    Reference: Rudin, Osher, Fatemi. "Nonlinear total variation based noise removal algorithms". Physica D 1992; in this
    form Geiping et al. (arXiv 2003.14053).

    Args:
        images: [B, C, H, W].

    >>> value, slope = total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    >>> value, slope.flatten().tolist()
    (tensor(1.), [-0.5, 0.5, -0.5, 0.5])
    """
    down, right = images.diff(dim=2), images.diff(dim=3)
    slope = torch.zeros_like(images)
    value = images.new_zeros(())
    for change, axis in ((down, 2), (right, 3)):
        if not change.numel():
            continue
        signs = change.sign().div_(change.numel())
        size = images.shape[axis]
        slope.narrow(axis, 1, size - 1).add_(signs)
        slope.narrow(axis, 0, size - 1).sub_(signs)
        value = value + change.abs().mean()
    return value, slope


def squared_length(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns half the mean squared distance [] of the pixels from middle grey, and its slope.

    >>> squared_length(torch.tensor([[[[1.5]]]]))
    (tensor(0.5000), tensor([[[[1.]]]]))
    """
    away = images - 0.5
    return away.square().mean() / 2, away / away.numel()


def colour_total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the total variation [] of the channels and, with weight one half, of their differences; and its slope.

    Edges of natural images are in all channels at the same places, so a difference of channels varies less. Images of
    one channel have the plain total variation.

    >>> grey = torch.rand(1, 1, 4, 4).expand(-1, 3, -1, -1)
    >>> torch.allclose(colour_total_variation(grey)[0], total_variation(grey)[0])
    True
    """
    value, slope = total_variation(images)
    channels = images.shape[1]
    if channels < 2:
        return value, slope
    rolled = images - images.roll(1, 1)
    more, towards = total_variation(rolled)
    return value + more / 2, slope + (towards - towards.roll(-1, 1)) / 2
