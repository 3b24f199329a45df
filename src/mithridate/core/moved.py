"""The ball of warps: what a pixel may show where nothing is added and pixels only move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball
from mithridate.core.pixels import EDGE
from mithridate.core.recolor import Recolor as Recolor  # so that whoever imports this module knows all balls


@dataclass(frozen=True, kw_only=True)
class Moved(Ball):
    """Every pixel shows what the image has near by: a value that bilinear interpolation finds within some pixels of it.

    Per channel, a pixel lies between the smallest and the largest value that the base has within that distance down and
    to the right, or up and to the left. So it holds every warp by displacements of at most that length, smooth or not,
    and flat regions cannot change. It does not say that the image as a whole is a warp: neighbours may be displaced in
    unrelated ways, channels too, and a pixel may be a mixture of what two displacements would show.

    >>> Moved(pixels=1).describe()
    'every pixel shows what the image has within 1 pixel of it (a warp)'
    """

    pixels: float = 1.0
    """Largest displacement along each axis, in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.pixels < math.inf:
            raise ValueError(f"pixels is {self.pixels}; it is the largest displacement, so use for example 1 or 0.5")

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        low, high = self.range(base)
        return torch.lerp(low, high, _drawn(base, rng))

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return params.clamp(*self.range(base))

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        low, high = self.range(base)
        return torch.where(_drawn(base, rng) < 0.5, low, high)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        low, high = self.range(base)
        return ((images >= low - EDGE) & (images <= high + EDGE)).flatten(1).all(1)

    def describe(self) -> str:
        unit = "pixel" if self.pixels == 1 else "pixels"
        return f"every pixel shows what the image has within {self.pixels:g} {unit} of it (a warp)"

    def range(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the smallest and the largest value that each pixel may have, [P, C, H, W] both.

        Between the pixels the interpolated image is linear along each axis, so its extremes lie at whole displacements
        or at the largest one. Beyond the border the image goes on as it ends.
        """
        reach, whole = math.ceil(self.pixels), math.floor(self.pixels)
        offsets = sorted({-self.pixels, self.pixels, *map(float, range(-whole, whole + 1))})
        padded = F.pad(base, (reach,) * 4, mode="replicate")
        low = high = base
        for down in offsets:
            rows = _from(padded, reach + down, 2, base.shape[2])
            for right in offsets:
                found = _from(rows, reach + right, 3, base.shape[3])
                low, high = torch.minimum(low, found), torch.maximum(high, found)
        return low, high


def moved(images: Tensor, displacements: Tensor) -> Tensor:
    """Returns images [B, C, H, W] whose pixels are taken from elsewhere, by bilinear interpolation; none from outside.

    Args:
        images: in [0, 1].
        displacements: [2, H, W], how far down and how far to the right of each pixel its value is found, in pixels.

    >>> row = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    >>> moved(row, torch.stack([torch.zeros(1, 3), torch.full((1, 3), 0.5)])).flatten().tolist()
    [0.5, 1.5, 2.0]
    """
    sizes = images.shape[2:]
    places = torch.meshgrid(*(torch.arange(n, device=images.device, dtype=images.dtype) for n in sizes), indexing="ij")
    ends = [
        2 * (place + change) / max(size - 1, 1) - 1
        for place, change, size in zip(places, displacements, sizes, strict=True)
    ]
    grid = torch.stack(ends[::-1], -1).expand(len(images), -1, -1, -1)  # x before y
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


def _from(images: Tensor, start: float, dim: int, length: int) -> Tensor:
    """Takes `length` places along a dimension, from one that may lie between two pixels."""
    whole = math.floor(start)
    first = images.narrow(dim, whole, length)
    return first if start == whole else first.lerp(images.narrow(dim, whole + 1, length), start - whole)


def _drawn(base: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(base.shape, generator=rng).to(base)
