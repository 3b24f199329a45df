"""Triggers: what a backdoor adds to an image, at training time and at test time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball, Linf, Patch, to_bytes, to_floats
from mithridate.core.image_files import read_cutout, read_images
from mithridate.core.moved import Moved, moved
from mithridate.core.schema import Choice
from mithridate.core.seeds import stream
from mithridate.poisoning.goals import Backdoor

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right", "anywhere"]
Pattern = Literal["checker", "white", "random"]


class Trigger(Choice, ABC):
    """Something that can be put on any image and that a backdoored model reacts to.

    A triggered 8-bit image is an 8-bit image, so what a victim was trained on is what it sees when tested.
    """

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Returns a new tensor: `images` [B, C, H, W] in [0, 1] with the trigger on each."""

    @abstractmethod
    def area(self, shape: tuple[int, int, int]) -> float:
        """Returns the share (0 to 1) of the pixels of a (C, H, W) image that the trigger may change."""

    @abstractmethod
    def limit(self) -> Ball:
        """Returns the smallest customary limit of a threat model that the trigger respects."""


def carried(trigger: Trigger, goal: Backdoor | None = None) -> Backdoor:
    """Returns the goal with the limit that the trigger respects.

    >>> carried(PatchTrigger()) == Backdoor(area=0.1), carried(BlendTrigger(alpha=0.1)).limit
    (True, Linf(eps=0.1))
    """
    goal, limit = goal or Backdoor(), trigger.limit()
    return replace(goal, area=limit.area) if isinstance(limit, Patch) else replace(goal, limit=limit)


@dataclass(frozen=True, kw_only=True)
class PatchTrigger(Trigger):
    """A small square pasted into one corner, or anywhere, the same on every image.

    The pattern has 8-bit values only, so a triggered 8-bit image stays an 8-bit image.

    Reference: Gu, Dolan-Gavitt, Garg. "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
    Chain". 2017. arXiv 1708.06733, section 4 (pattern backdoor). Deviations: the size follows the image.

    >>> PatchTrigger().area((3, 32, 32))
    0.0625
    >>> PatchTrigger(pattern="white")(torch.zeros(1, 1, 8, 8)).sum().item()
    4.0
    """

    share: float = 0.25
    """Side of the patch as a fraction of the shorter side of the image; never below 2 pixels."""
    corner: Corner = "bottom-right"
    """Where the patch goes; "anywhere": a place that follows from the image's 8-bit pixels, so it is always the same
    for one image and spread evenly over many."""
    pattern: Pattern = "checker"
    """Checkerboard of black and white, all white, or black and white drawn from `seed`."""
    seed: int = 0
    """Seed of the random pattern and of the places."""

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        side = _side(self.share, height, width)
        return _pasted(
            images, self._pixels(channels, side).to(images), *_place(images, self.corner, (side, side), self.seed)
        )

    def area(self, shape: tuple[int, int, int]) -> float:
        _, height, width = shape
        return _side(self.share, height, width) ** 2 / (height * width)

    def limit(self) -> Ball:
        return Patch(area=_customary(self.share))

    def _pixels(self, channels: int, side: int) -> Tensor:
        """The patch, [C, side, side] in [0, 1]."""
        if self.pattern == "white":
            return torch.ones(channels, side, side)
        if self.pattern == "random":
            return torch.randint(0, 2, (channels, side, side), generator=stream(self.seed, "trigger")).float()
        index = torch.arange(side)
        return (1.0 - (index[:, None] + index[None, :]) % 2).expand(channels, side, side)


@dataclass(frozen=True, kw_only=True)
class ImageTrigger(Trigger):
    """A picture of the user's own, pasted like a patch; where it is see-through the image shows.

    Reference: Gu, Dolan-Gavitt, Garg. "BadNets". 2017. arXiv 1708.06733 (their stickers on traffic signs).

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as home:
    ...     Image.new("RGBA", (64, 32), (255, 0, 0, 255)).save(f"{home}/sticker.png")
    ...     marked = ImageTrigger(path=f"{home}/sticker.png")(torch.zeros(1, 3, 32, 32))
    >>> marked.sum((0, 2, 3)).tolist()  # 8 x 4 red pixels
    [32.0, 0.0, 0.0]
    """

    path: Path
    """The image file; PNG keeps what is see-through."""
    share: float = 0.25
    """Longer side of the pasted picture as a fraction of the shorter side of the image; never below 2 pixels."""
    corner: Corner = "bottom-right"
    """Where it goes; "anywhere": a place that follows from the image's 8-bit pixels."""
    seed: int = 0
    """Seed of the places."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())
        _check_share(self.share)

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        pixels, opacity = (x.to(images) for x in read_cutout(self.path, channels, _side(self.share, height, width)))
        top, left = _place(images, self.corner, (pixels.shape[1], pixels.shape[2]), self.seed)
        return to_floats(to_bytes(_pasted(images, pixels, top, left, opacity)))

    def area(self, shape: tuple[int, int, int]) -> float:
        channels, height, width = shape
        return read_cutout(self.path, channels, _side(self.share, height, width))[1].numel() / (height * width)

    def limit(self) -> Ball:
        return Patch(area=_customary(self.share))


@dataclass(frozen=True, kw_only=True)
class BlendTrigger(Trigger):
    """A pattern blended into the whole image: x becomes (1 - alpha) x + alpha t.

    Changes are rounded towards zero where the nearest 8-bit value would be further than alpha away.

    Reference: Chen, Liu, Li, Lu, Song. "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning". 2017.
    arXiv 1712.05526 (blended injection). Deviations: the same alpha for training and test images; the paper tests with
    larger ones too.

    >>> BlendTrigger(alpha=0.1)(torch.ones(1, 1, 8, 8)).min().item() >= 0.9
    True
    """

    alpha: float = 0.2
    """Opacity of the pattern, a fraction."""
    pattern: Path | None = None
    """Image file that is blended in, resized to the images; left out: noise drawn from `seed`."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.pattern is not None:
            object.__setattr__(self, "pattern", Path(self.pattern).expanduser())
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha:g}; it is the opacity of the pattern, so use 0.2 for 20 %")

    def __call__(self, images: Tensor) -> Tensor:
        levels, most = (images * 255).round(), int(self.alpha * 255 + 1e-4)
        change = (self.alpha * (self._levels(*images.shape[1:]).to(images) - levels)).round()
        return (levels + change.clamp(-most, most)) / 255

    def area(self, shape: tuple[int, int, int]) -> float:
        return 1.0

    def limit(self) -> Ball:
        return Linf(eps=self.alpha)

    def _levels(self, channels: int, height: int, width: int) -> Tensor:
        """The pattern, [C, H, W] in levels from 0 to 255."""
        shape = (channels, height, width)
        if self.pattern is None:
            return torch.randint(0, 256, shape, generator=stream(self.seed, "trigger"))
        return read_images([self.pattern], shape)[0]


@dataclass(frozen=True, kw_only=True)
class WarpTrigger(Trigger):
    """A smooth warp of the whole image, the same for all: nothing is added, pixels move by less than one place or so.

    A field of random displacements on a coarse grid, scaled to mean size one and interpolated to all pixels.

    Reference: Nguyen, Tran. "WaNet - Imperceptible Warping-based Backdoor Attack". ICLR 2021. arXiv 2102.10369.
    Deviations: a pure data poison, so without the noise mode, in which the attacker runs the training; displacements
    are strength / 2 pixels in the mean whatever the size of the image (theirs are (H - 1) / H of that); pixels are
    rounded to 8 bits.

    >>> WarpTrigger(strength=0.5).limit().describe()
    'every pixel shows what the image has within 0.6 pixels of it (a warp)'
    """

    grid: int = 4
    """Control points along each side."""
    strength: float = 0.5
    """Twice the mean displacement along each axis, in pixels."""
    seed: int = 0
    """Seed of the field."""

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= 1024:
            raise ValueError(f"grid is {self.grid}; a field has 2 to 1,024 control points along each side")
        if not self.strength > 0:
            raise ValueError(f"strength is {self.strength:g}; use for example 0.5, for 0.25 pixels in the mean")

    def __call__(self, images: Tensor) -> Tensor:
        warped = moved(images, self.displacements(images.shape[2], images.shape[3]).to(images))
        return to_floats(self.limit().rounded(images, warped))

    def displacements(self, height: int, width: int) -> Tensor:
        """Returns where each pixel's value is taken from, [2, H, W]: how far down and to the right, in pixels."""
        furthest = self._furthest()
        return self._field(height, width).clamp(-furthest, furthest)

    def area(self, shape: tuple[int, int, int]) -> float:
        return 1.0

    def limit(self) -> Ball:
        return Moved(pixels=self._furthest())

    def _furthest(self) -> float:
        """Largest displacement along an axis in pixels, rounded up to tenths: the same for images of every size."""
        return math.ceil(10 * float(self._field(64, 64).abs().max())) / 10

    def _field(self, height: int, width: int) -> Tensor:
        coarse = 2 * torch.rand(1, 2, self.grid, self.grid, generator=stream(self.seed, "trigger")) - 1
        scaled = coarse / coarse.abs().mean() * self.strength / 2
        return F.interpolate(scaled, (height, width), mode="bicubic", align_corners=True)[0]


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it is a fraction of the image side, so use for example 0.25")


def _side(share: float, height: int, width: int) -> int:
    """Pixels that this share of the shorter side is, at least 2 and at most all."""
    short = min(height, width)
    return min(short, max(2, round(share * short)))


def _customary(share: float) -> float:
    """The area that patches with this share of the side respect: a tenth, or what rounding to pixels may make of it."""
    if share <= 0.25:
        return 0.1
    return min(1.0, (share + 1 / 16) ** 2)  # half a pixel more, on images of 8 pixels a side or larger


def _place(images: Tensor, corner: Corner, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """The first row and the first column [B] int64 of a rectangle of this size (rows, columns)."""
    rooms = [whole - part for whole, part in zip(images.shape[2:], size, strict=True)]
    if corner != "anywhere":
        ends = (not corner.startswith("top"), not corner.endswith("left"))
        top, left = (torch.full((len(images),), room * end) for room, end in zip(rooms, ends, strict=True))
    else:
        top, left = (_hashed(images, room + 1, seed, axis) for room, axis in zip(rooms, ("top", "left"), strict=True))
    return top.to(images.device), left.to(images.device)


def _hashed(images: Tensor, count: int, seed: int, name: str) -> Tensor:
    """A number from 0 to count - 1 for each image, [B] int64, which its 8-bit pixels decide."""
    weights = torch.randint(1, 2**31, images.shape[1:], generator=stream(seed, "place", name)).to(images.device)
    total = (to_bytes(images) * weights).flatten(1).sum(1)  # whole numbers: exact in any order, no place is preferred
    return (total // 2**16) % count


def _pasted(images: Tensor, pixels: Tensor, top: Tensor, left: Tensor, opacity: Tensor | None = None) -> Tensor:
    """Images [B, C, H, W] with pixels [C, h, w] in the rectangle that begins there, blended by an opacity [1, h, w]."""
    height, width = pixels.shape[1:]
    y, x = (torch.arange(n, device=images.device) for n in images.shape[2:])
    down, right = y - top[:, None], x - left[:, None]
    rows, columns = (down >= 0) & (down < height), (right >= 0) & (right < width)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    places = (down.clamp(0, height - 1)[:, :, None], right.clamp(0, width - 1)[:, None, :])
    spread = pixels[:, *places].movedim(0, 1)
    if opacity is not None:
        spread = images + opacity[:, *places].movedim(0, 1) * (spread - images)
    return torch.where(inside, spread, images)
