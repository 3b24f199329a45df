"""Networks of users that call `view`: it fails on images stored channels last, as all images here are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.core import models
from mithridate.core.learners import TrainFunction
from tests.core.training_cases import quick

SHAPES = [(1, 8, 8), (3, 8, 8)]


class Viewing(nn.Module):
    """Two convolutions and a Linear; `view` or `flatten` between them."""

    def __init__(self, classes: int, channels: int, view: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.view = nn.Linear(8 * 16, classes), view

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, C, 8, 8] to logits."""
        maps = torch.max_pool2d(self.second(torch.relu(self.first(images))), 2)
        return self.last(maps.view(len(maps), -1) if self.view else maps.flatten(1))


def viewing(classes: int, *, channels: int) -> nn.Module:
    return Viewing(classes, channels)


def flattening(classes: int, *, channels: int) -> nn.Module:
    return Viewing(classes, channels, view=False)


def some(channels: int, count: int = 24) -> mi.ImageData:
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    return mi.ImageData(images.to(torch.uint8), torch.arange(count) % 3, ("a", "b", "c"))


@pytest.mark.parametrize("shape", SHAPES)
def test_only_networks_that_need_it_get_their_images_in_order(shape: tuple[int, int, int]) -> None:
    last = torch.zeros(4, *shape).contiguous(memory_format=torch.channels_last)
    network = models.build(viewing, 3, shape, seed=0)
    assert not models.takes_channels_last(network)
    assert models.takes_channels_last(models.build(flattening, 3, shape, seed=0))
    for made in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert made(last).shape == (4, 3)
        assert len(made._forward_pre_hooks) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_view_learns_what_flatten_learns(channels: int) -> None:
    data = some(channels)
    one, other = (
        quick(model=model, epochs=2, transforms=()).fit([data], seeds=[0]).models[0] for model in (viewing, flattening)
    )
    with torch.no_grad():
        assert torch.allclose(one(data.floats(data.ids)), other(data.floats(data.ids)), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_modules_of_the_users_own_training_may_view(channels: int) -> None:
    data = some(channels)
    learner = TrainFunction(train=lambda images, seed: Viewing(3, channels))
    fitted = learner.fit([data], seeds=[0])
    assert fitted.models[0](data.floats(data.ids)).shape == (24, 3)


@pytest.mark.parametrize(
    "defense", [mi.DPSGD(noise=1.0, clip=1.0), mi.SpectralSignatures(), mi.FinePruning(), mi.Strip()]
)
def test_defenses_take_such_networks(defense: mi.Defense) -> None:
    data = some(3)
    recipe = quick(model=viewing, epochs=1, transforms=(), batch_size=8)
    fitted = defense(recipe).fit([data], seeds=[0], trusted=some(3, 9))
    assert fitted.predictor(data.floats(data.ids)).scores.shape[-2:] == (24, 3)


@pytest.mark.parametrize(
    "attack", [mi.WitchesBrew(steps=2, restarts=1, surrogates=1), mi.MetaPoison(steps=2, surrogates=1)]
)
def test_attacks_take_such_networks(attack: mi.Attack) -> None:
    train, test = some(3, 60), some(3, 30)
    task = mi.ThreatModel(budget=0.1).draw(train, test, seed=0)
    task.check(attack.craft(task, quick(model=viewing, epochs=1), seed=0))


def test_a_shared_gradient_of_such_a_network_is_computed() -> None:
    data = some(3, 2)
    leak = mi.Client(batch=2).share(Viewing(3, 3), data.floats(data.ids), data.labels, seed=0)
    assert leak.count == 2
