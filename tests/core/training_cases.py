"""Small data and recipes that the tests of the training engine share."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe

ROWS = 60


def data(seed: int = 0, *, channels: int = 1, count: int = ROWS) -> ImageData:
    """Three classes of noisy pictures, 8x8."""
    labels = torch.arange(count) % 3
    means = 60 + 130 * torch.rand(3, channels, 8, 8, generator=stream(7, "means"))
    noise = 40 * torch.randn(count, channels, 8, 8, generator=stream(seed, "noise"))
    return ImageData((means[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels, ("ant", "bee", "cat"))


def quick(**settings: object) -> Recipe:
    """Two epochs of a small network in float32."""
    defaults = {"model": "convnet:width=4", "epochs": 2, "batch_size": 16, "precision": "fp32"}
    return Recipe(**(defaults | settings))  # type: ignore[arg-type]


def dropout_net(classes: int) -> nn.Module:
    """Randomness inside the model, from torch's global generator."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes))


def digest(module: nn.Module) -> str:
    """A hash of all weights and buffers, bit by bit."""
    content = b"".join(value.contiguous().numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def digests(recipe: Recipe, *datasets: ImageData, seeds: tuple[int, ...] = (0,)) -> list[str]:
    return [digest(module) for module in recipe.fit(datasets or [data()], seeds).models]
