"""Triggers: what a backdoor adds to an image, at training time and at test time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mithridate.core.schema import Choice
from mithridate.core.seeds import stream

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Pattern = Literal["checker", "white", "random"]


class Trigger(Choice, ABC):
    """Something that can be put on any image and that a backdoored model reacts to."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Returns a new tensor: `images` [B, C, H, W] in [0, 1] with the trigger on each."""

    @abstractmethod
    def area(self, shape: tuple[int, int, int]) -> float:
        """Returns the share (0 to 1) of the pixels of a (C, H, W) image that the trigger may change."""


@dataclass(frozen=True, kw_only=True)
class PatchTrigger(Trigger):
    """A small square pasted into one corner, the same on every image.

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
    """Where the patch goes."""
    pattern: Pattern = "checker"
    """Checkerboard of black and white, all white, or black and white drawn from `seed`."""
    seed: int = 0
    """Seed of the random pattern."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it is a fraction of the image side, so use for example 0.25")

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        side = self._side(height, width)
        top = 0 if self.corner.startswith("top") else height - side
        left = 0 if self.corner.endswith("left") else width - side
        marked = images.clone()
        marked[:, :, top : top + side, left : left + side] = self._pixels(channels, side).to(images)
        return marked

    def area(self, shape: tuple[int, int, int]) -> float:
        _, height, width = shape
        return self._side(height, width) ** 2 / (height * width)

    def _side(self, height: int, width: int) -> int:
        short = min(height, width)
        return min(short, max(2, round(self.share * short)))

    def _pixels(self, channels: int, side: int) -> Tensor:
        """The patch, [C, side, side] in [0, 1]."""
        if self.pattern == "white":
            return torch.ones(channels, side, side)
        if self.pattern == "random":
            return torch.randint(0, 2, (channels, side, side), generator=stream(self.seed, "trigger")).float()
        index = torch.arange(side)
        return (1.0 - (index[:, None] + index[None, :]) % 2).expand(channels, side, side)
