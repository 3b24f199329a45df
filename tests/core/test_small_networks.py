"""The networks without BatchNorm: counts by hand, the layers one by one, initial weights, and that they learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mithridate.core.models import build
from mithridate.core.schedules import Cosine
from mithridate.core.seeds import stream
from mithridate.core.small_networks import lenet, mlp
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe


@pytest.mark.parametrize(
    ("spec", "channels", "side", "classes", "expected"),
    [
        # Zhu, Liu, Han for CIFAR-100: 12 channels of 8 x 8 positions are the 768 inputs of their Linear.
        ("lenet", 3, 32, 100, (75 * 12 + 12) + 2 * (300 * 12 + 12) + 768 * 100 + 100),
        ("lenet:width=4", 1, 9, 5, (25 * 4 + 4) + 2 * (100 * 4 + 4) + 4 * 9 * 5 + 5),
        ("mlp", 1, 8, 10, (64 * 128 + 128) + (128 * 128 + 128) + 128 * 10 + 10),
        ("mlp:width=7", 3, 10, 4, (300 * 7 + 7) + (49 + 7) + 7 * 4 + 4),
    ],
)
def test_parameter_counts_agree_with_counts_by_hand(
    spec: str, channels: int, side: int, classes: int, expected: int
) -> None:
    network = build(spec, classes, (channels, side, side), seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 13, 13), (3, 8, 20), (1, 21, 9)])
def test_lenet_is_convolutions_and_sigmoids(shape: tuple[int, int, int]) -> None:
    network = build("lenet", 5, shape, seed=0)
    images = torch.rand(4, *shape, generator=stream(0, "images"))
    kernels = [p for name, p in network.named_parameters() if "block" in name]
    seen = images
    for weight, bias, stride in zip(kernels[::2], kernels[1::2], (2, 2, 1), strict=True):
        seen = torch.sigmoid(functional.conv2d(seen, weight, bias, stride=stride, padding=2))
    side = (min(shape[1:]) + 3) // 4
    assert seen.shape[2:] == ((shape[1] + 3) // 4, (shape[2] + 3) // 4)
    seen = functional.adaptive_avg_pool2d(seen, side)  # nothing for square images
    weights = dict(network.named_parameters())
    expected = seen.flatten(1) @ weights["linear.weight"].T + weights["linear.bias"]
    torch.testing.assert_close(network(images), expected)


def test_mlp_is_two_hidden_layers_on_the_pixels_as_they_lie() -> None:
    network = build("mlp:width=6", 5, (3, 8, 8), seed=0)
    images = torch.rand(4, 3, 8, 8, generator=stream(0, "images"))
    seen, weights = images.reshape(4, -1), dict(network.named_parameters())
    for place in ("block1.0", "block2.0"):
        seen = (seen @ weights[f"{place}.weight"].T + weights[f"{place}.bias"]).clamp_min(0)
    torch.testing.assert_close(network(images), seen @ weights["linear.weight"].T + weights["linear.bias"])


def test_oblong_images_reach_the_perceptron_averaged_to_squares() -> None:
    network = mlp(5, channels=1, size=8, width=6)
    images = torch.rand(2, 1, 8, 16, generator=stream(0, "images"))
    torch.testing.assert_close(network(images), network(images.unflatten(3, (8, 2)).mean(4)))


def test_initial_weights_of_lenet_are_uniform_between_minus_and_plus_a_half() -> None:
    for parameter in build("lenet", 100, (3, 32, 32), seed=0).parameters():
        assert parameter.abs().max() <= 0.5
        assert parameter.min() < 0 < parameter.max()
        if parameter.numel() > 500:
            assert parameter.abs().max() > 0.49
            assert parameter.std().item() == pytest.approx((1 / 12) ** 0.5, rel=0.03)
            assert parameter.mean().item() == pytest.approx(0, abs=0.03)


def test_lenet_has_a_second_derivative_everywhere() -> None:
    """What follows from sigmoids, and what a network with ReLU has not: no part of it is piecewise linear."""
    assert not [part for part in lenet(5).modules() if isinstance(part, nn.ReLU | nn.MaxPool2d)]
    network = lenet(3, channels=1, size=8, width=2).double()
    images = torch.rand(1, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(network, images)


@pytest.mark.effect
@pytest.mark.parametrize(("name", "rate"), [("lenet", 0.3), ("mlp", 0.1)])
def test_they_learn_digits_in_ten_epochs(name: str, rate: float) -> None:
    train, test = Digits().load()
    recipe = Recipe(model=name, epochs=10, batch_size=64, learning_rate=rate, transforms=(), schedule=Cosine())
    fitted = recipe.fit([train], [0])
    scores = fitted.predictor(test.images.float() / 255).scores[0]
    assert (scores.argmax(1) == test.labels).double().mean() > 0.85
