"""``Recolor``: a smooth map of colours for each image, the half of MetaPoison's perturbation that is no noise."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball
from mithridate.core.pixels import EDGE, to_bytes, to_floats

_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))  # ITU-R BT.601
_HALF_LEVEL = 0.5 / 255  # what rounding to 8 bits moves a pixel by, at most

_Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Recolor(Ball):
    """Colours move along a smooth map of one's own for each image: equal colours move alike, by at most eps.

    The search moves the displacements of the points of a grid over YUV, [P, grid, grid, grid, 3] with the axes Y in
    [0, 1], U and V in [-0.5, 0.5]; between the points they are interpolated. Images of one channel have a grid over
    their brightness, [P, grid, 1]. A displacement that would leave the range of pixels is shortened, all channels
    alike. The judge asks of an image what can be told exactly: that no pixel moves by more than eps in Y, U or V.

    Reference: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison: Practical General-purpose Clean-label Data
    Poisoning". NeurIPS 2020. arXiv 2004.00225; the colour grid: Laidlaw, Feizi. "Functional Adversarial
    Attacks". NeurIPS 2019. arXiv 1906.00001. Deviations: the parameters are displacements, and are not clipped where
    they lead beyond the ends of the axes; the range of pixels is kept during the search, not only at its end; the
    space is YUV, as in the code of MetaPoison, which calls it LUV.

    Raises:
        ValueError: a setting out of its range; on use, images that have neither 3 channels (RGB) nor 1.

    >>> from mithridate.core.balls import Linf
    >>> ball, grey = Recolor(eps=0.04), torch.full((1, 3, 1, 1), 0.5)
    >>> ball.contains(grey, grey + 0.04).item(), ball.contains(grey, grey + 0.05).item()  # only Y moves
    (True, False)
    >>> print((ball + Linf(eps=8 / 255)).describe())
    the colour of every pixel moves by at most 0.04 in each of Y, U and V (recolouring), and added to that every pixel
    value moves by at most 8/255 (Linf)
    """

    eps: float = 0.04
    """Largest change of Y, U and V of a pixel; Y spans [0, 1], U and V nearly [-0.5, 0.5]."""
    grid: int = 10
    """Points of the colour grid along each axis."""
    smoothness: float = 1.0
    """Weight of the penalty on differences between neighbouring points of the grid."""

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps is {self.eps}; it is a change of Y, U and V, which span 1, so use 0.04 for 4 %")
        if self.grid < 2:
            raise ValueError(f"grid is {self.grid}; each axis needs at least its 2 ends (the paper has 10 points)")
        if not 0 <= self.smoothness < math.inf:
            raise ValueError(f"smoothness is {self.smoothness}; a weight is 0 (no penalty) or positive")

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self._still(base)

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return params.clamp(-self.eps, self.eps)

    def images(self, base: Tensor, params: Tensor) -> Tensor:
        return _Moved.apply(base, _mixed(_inverse(base.shape[1]), _displacements(base, params)))

    def params_of(self, base: Tensor, images: Tensor) -> Tensor:
        """Returns at each point of the grid the mean change of the colours near it, weighted as they interpolate."""
        still, change = self._still(base).requires_grad_(), _mixed(_rows(base.shape[1]), (images - base).detach())
        with torch.enable_grad():
            spread = _displacements(base.detach(), still)  # linear: its gradient is its adjoint, whatever the point
        (total,) = torch.autograd.grad(spread, still, change, retain_graph=True)
        (weight,) = torch.autograd.grad(spread, still, torch.ones_like(change))
        return self.project(base, torch.where(weight > 0, total / weight, 0.0))

    def penalty(self, base: Tensor, params: Tensor) -> Tensor:
        """Returns the weighted mean square of the slopes of the map: over images, axes, points and channels, []."""
        slopes = [params.diff(dim=axis) * self.grid for axis in range(1, params.ndim - 1)]
        return self.smoothness * torch.stack([slope.square().mean() for slope in slopes]).mean()

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        signs = torch.randn(self._still(base).shape, generator=rng).sign().to(base)
        return self.images(base, self.eps * signs)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        return self._inside(base, images, 0.0).flatten(1).all(1)

    def within(self, base: Tensor, images: Tensor, slack: float) -> Tensor:
        """Tells for each image [P] whether some image of the ball is at most `slack` away from it in every pixel.

        Exact but for the range of pixels: for each pixel the changes that the two allow together fill a solid between
        parallel walls (15 pairs in three dimensions), and the change is compared with them all.
        """
        return self._inside(base, images, slack).flatten(1).all(1)

    def rounded(self, base: Tensor, images: Tensor, slack: float | None = None) -> Tensor:
        """Returns uint8 images inside the ball, or at most `slack` away from one, for such images and an 8-bit base.

        The nearest pixels; the change of those that overstep is first shortened, all channels alike, by just so much
        that no rounding can overstep.
        """
        slack = slack or 0.0
        nearest = to_bytes(images)
        inside = self._inside(base, to_floats(nearest).to(base), slack)[:, None]
        change = images.clamp(0, 1) - base
        share = torch.ones_like(inside, dtype=base.dtype)
        for wall in _walls(base.shape[1], slack > 0):
            room = max(wall.reach(self.eps, slack) - _HALF_LEVEL * wall.cube, 0.0)
            share = torch.minimum(share, room / _dot(wall.normal, change)[:, None].abs().clamp_min(1e-12))
        return torch.where(inside, nearest, to_bytes(base + share * change))

    def describe(self) -> str:
        return f"the colour of every pixel moves by at most {self.eps:g} in each of Y, U and V (recolouring)"

    def _still(self, base: Tensor) -> Tensor:
        channels = len(_rows(base.shape[1]))
        return base.new_zeros(len(base), *(self.grid,) * channels, channels)

    def _inside(self, base: Tensor, images: Tensor, slack: float) -> Tensor:
        """Tells for each pixel [P, H, W] whether it lies behind all walls."""
        change, eps, slack = images - base, self.eps + EDGE, slack and slack + EDGE
        walls = _walls(base.shape[1], slack > 0)
        inside = [_dot(wall.normal, change).abs() <= wall.reach(eps, slack) for wall in walls]
        return functools.reduce(torch.logical_and, inside)


class _Moved(torch.autograd.Function):
    """Adds changes [P, C, H, W] to images, each pixel's change shortened until it ends in [0, 1].

    Shortened, not clipped channel by channel, since that would change its direction and so leave the ball. The
    gradient passes as if nothing were shortened; with that of the true map a pixel at the end of its way stays there.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, change: Tensor) -> Tensor:
        room = torch.where(change > 0, 1 - base, base) + EDGE / 2  # else rounding noise in one channel stops the others
        share = (room / change.abs().clamp_min(1e-12)).amin(1, keepdim=True).clamp_max(1)
        return (base + share * change).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


def _displacements(base: Tensor, params: Tensor) -> Tensor:
    """Returns the displacement of each pixel's colour, [P, C, H, W] in YUV, by linear interpolation in the grid."""
    channels = base.shape[1]
    colours = _mixed(_rows(channels), base)
    ends = [2 * colours[:, 0] - 1, *(2 * colours[:, axis] for axis in range(1, channels))]  # [-1, 1] along each axis
    places = torch.stack([*ends[::-1], *[torch.zeros_like(ends[0])] * (3 - channels)], -1)  # x, y, z: last axis first
    volume = params.movedim(-1, 1)
    volume = volume.reshape(*volume.shape[:2], *(1,) * (3 - channels), *volume.shape[2:])
    return F.grid_sample(volume, places[:, None], padding_mode="border", align_corners=True)[:, :, 0]


def _mixed(rows: _Rows, images: Tensor) -> Tensor:
    """Multiplies each pixel of [P, C, H, W] with a matrix."""
    return torch.stack([_dot(row, images) for row in rows], 1)


def _dot(row: tuple[float, ...], images: Tensor) -> Tensor:
    """One number for each pixel, [P, H, W]; a plain sum: no device computes it in fewer bits, as it may a product."""
    return functools.reduce(torch.add, [w * x for w, x in zip(row, images.unbind(1), strict=True)])


def _rows(channels: int) -> _Rows:
    """RGB to YUV; grey to itself."""
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels; recolouring needs 3 (RGB) or 1 (grey)")
    return _YUV if channels == 3 else ((1.0,),)


@functools.cache
def _inverse(channels: int) -> _Rows:
    return tuple(map(tuple, np.linalg.inv(_rows(channels)).tolist()))


class _Wall(NamedTuple):
    """A pair of opposite walls of {change + noise: |YUV of the change| <= eps, |noise| <= slack}."""

    normal: tuple[float, ...]
    """Direction in RGB."""
    cube: float
    """How far the cube |noise| <= 1 extends along it."""
    cell: float
    """How far the changes with |YUV| <= 1 extend along it."""

    def reach(self, eps: float, slack: float) -> float:
        return slack * self.cube + eps * self.cell


@functools.cache
def _walls(channels: int, noisy: bool) -> list[_Wall]:
    """Those of the changes alone, or also those that noise adds.

    A sum of segments (three of the cube, three of the changes) has its walls along pairs of segments.
    """
    rows, edges = np.array(_rows(channels)), np.array(_inverse(channels)).T
    normals = [*rows]
    if noisy and channels == 3:
        cube = np.eye(3)
        normals += [*cube, *(np.cross(side, edge) for side in cube for edge in edges)]
    return [_Wall(tuple(map(float, u)), float(abs(u).sum()), float(abs(edges @ u).sum())) for u in normals]
