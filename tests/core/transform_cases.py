"""Batches and models that the tests of transforms share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mithridate.core.batch import Batch
from mithridate.core.seeds import stream

MODEL = nn.Identity()
"""For transforms that look at the images alone."""


def batch(count: int = 40, shape: Sequence[int] = (3, 8, 8), *, classes: int | None = None) -> Batch:
    """Random images; as many classes as images unless told, so that mixed targets are the mixing matrix."""
    images = torch.rand(count, *shape, generator=stream(0, "images"))
    targets = torch.eye(count) if classes is None else torch.eye(classes)[torch.arange(count) % classes]
    return Batch(images, targets, torch.arange(count) + 100, 0.25)


def net(shape: Sequence[int], classes: int) -> nn.Module:
    """A small network with batch normalisation and dropout, in train mode, whose running statistics are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * shape[1] * shape[2], classes),
        )
        for _ in range(3):
            module(torch.rand(16, *shape))
    return module.train()
