"""Small networks, images and leaks for the tests of gradient inversion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mithridate.inversion.client import Client
from mithridate.inversion.leak import Leak

SHAPE = (3, 8, 8)
CLASSES = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A convolution and two Linears with sigmoids: everything can be differentiated twice."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.Sigmoid(),
        nn.Linear(12, CLASSES),
    )
    rng = seeded(seed)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=rng) - 0.5
    return model.to(dtype)


def normed(seed: int = 0) -> nn.Sequential:
    """A convolution with BatchNorm, whose running statistics are not those of any batch."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256, CLASSES),
    )
    rng = seeded(seed)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=rng) - 0.5
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0.0])
    norm.running_var = torch.tensor([0.5, 1.5, 0.8, 1.1])
    return model


def perceptron(hidden: int = 32, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """Three Linears on the pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(192, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, CLASSES),
        )


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth images [B, 3, 8, 8] in [0, 1]: nothing that total variation would hate."""
    coarse = torch.rand(count, 3, 3, 3, generator=seeded(seed + 100))
    return nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True).to(dtype)


def labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def leak_of(model: nn.Module, count: int = 1, client: Client | None = None, seed: int = 0) -> Leak:
    like = next(model.parameters())
    client = client or Client(batch=count)
    return client.share(model, images(client.batch, seed, like.dtype), labels(client.batch), seed=seed)
