"""A user's own models, row rule and family of settings, for the tests of the schema."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mithridate.core.balls import Ball
from mithridate.core.batch import RowRule
from mithridate.core.data import ImageData
from mithridate.core.schema import Choice, from_json

HERE = __name__


def net(classes: int) -> nn.Module:
    """A user's own model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def other_net(classes: int) -> nn.Module:
    """Another one."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False))


class Maker:
    """An object that makes models."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), nn.Linear(self.width, classes))

    def make(self, classes: int) -> nn.Module:
        return self(classes)


@dataclass(frozen=True, kw_only=True)
class EveryOther(RowRule):
    """A user's own row rule, outside the package."""

    offset: int = 0

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        return data.ids[self.offset :: 2]


class Colour(Choice, ABC):
    """A family of this test, for the kinds of fields that the package has no example of."""


@dataclass(frozen=True, kw_only=True)
class Paint(Colour):
    """One field of each kind."""

    count: int = 1
    share: float = 0.5
    matt: bool = False
    name: str = "red"
    finish: Literal["rough", "smooth"] = "rough"
    size: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    several: tuple[Ball, ...] = ()
    ball: Ball | None = None
    make: str | Callable[[int], Any] = "net"


def paint(**settings: Any) -> Paint:
    return from_json(settings, Paint)
