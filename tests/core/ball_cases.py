"""The balls and the pictures that the tests of perturbations and of the search share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mithridate.core.balls import L2, AnyImage, Ball, Linf, Patch, Sum, to_floats
from mithridate.core.moved import Moved
from mithridate.core.recolor import Recolor
from mithridate.core.seeds import stream

SUMS: list[Ball] = [
    Sum(balls=(Linf(eps=8 / 255),)),
    Linf(eps=8 / 255) + Patch(area=0.1),
    Linf(eps=0.0213) + L2(eps=0.5),
    L2(eps=0.3) + L2(eps=0.4) + Linf(eps=0.01),
    Linf(eps=0.0213) + Linf(eps=8 / 255),
    Patch(area=0.1) + AnyImage() + L2(eps=0.5),
    Recolor(eps=0.04) + Linf(eps=8 / 255),
    Linf(eps=0.0213) + Moved(pixels=0.6),
    Linf(eps=0.001) + Recolor(eps=0.01, grid=4) + Linf(eps=0.0005),
]
BALLS: list[Ball] = [
    Linf(eps=8 / 255),
    Linf(eps=0.0213),
    L2(eps=0.5),
    L2(eps=12.0),
    AnyImage(),
    Patch(area=0.2),
    Moved(pixels=1),
    Moved(pixels=1.3),
    Recolor(eps=0.04),
    Recolor(eps=0.0213, grid=3),
    *SUMS,
]
ANY_BALL = pytest.mark.parametrize("ball", BALLS, ids=str)


def pictures(seed: int, count: int = 4, channels: int = 3, side: int = 8) -> Tensor:
    """8-bit images [count, channels, side, side] as floats, with plenty of pixels at both ends of the range."""
    drawn = torch.randint(-80, 336, (count, channels, side, side), generator=stream(seed, "pictures"))
    return to_floats(drawn.clamp(0, 255).to(torch.uint8))


def anywhere(like: Tensor, seed: int) -> Tensor:
    return like + torch.randn(like.shape, generator=stream(seed, "anywhere"))
