"""Clipped sums against one backward pass per image, for every way of computing them; and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import per_sample
from mithridate.core.batch import Batch
from mithridate.core.classifier import Classifier
from mithridate.core.gradient_rules import trainable
from mithridate.core.models import MODELS, Normalize, build
from mithridate.core.per_sample import clipped_sum
from mithridate.core.seeds import stream

SIDE, CLASSES = 8, 3
ALONE = {"lenet": "lenet:width=4", "mlp": "mlp:width=8"} | {
    name: f"{name}:width=4,norm=group" for name in ("convnet", "convnet-wide", "mobilenet_v2", "resnet18", "vgg11")
}
"""The built-in networks, such that each sees an image alone."""


def batch(count: int = 5, channels: int = 3, side: int = SIDE, dtype: torch.dtype = torch.float64) -> Batch:
    rng = stream(count, "batch")
    images = torch.rand(count, channels, side, side, generator=rng).to(dtype)
    targets = torch.softmax(3 * torch.randn(count, CLASSES, generator=rng), 1).to(dtype)
    return Batch(images, targets, torch.arange(count), 0.0)


def one_by_one(model: nn.Module, given: Batch, clip: float) -> tuple[dict[str, Tensor], float]:
    """A backward pass for each image, its norm in plain arithmetic; fills and clears .grad."""
    total = {name: torch.zeros_like(parameter) for name, parameter in trainable(model).items()}
    losses = []
    for image, target in zip(given.images, given.targets, strict=True):
        model.zero_grad()
        loss = -(target * model(image[None])[0].log_softmax(0)).sum()
        loss.backward()
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in trainable(model).items()
        }
        length = sum((gradient**2).sum().item() for gradient in gradients.values()) ** 0.5
        for name, gradient in gradients.items():
            total[name] += gradient * min(1.0, clip / length)
        losses.append(loss.item())
    model.zero_grad(set_to_none=True)
    return total, sum(losses) / len(losses)


def agrees(model: nn.Module, given: Batch, way: str, clip: float = 0.5) -> None:
    """The sum is that of the loop, and was found in the way that is expected."""
    found, loss = clipped_sum(model, given, trainable(model), clip)
    assert per_sample._ways[model] == way
    expected, mean = one_by_one(model, given, clip)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)
        assert not value.requires_grad
    assert abs(loss.item() - mean) < 1e-9
    assert not loss.requires_grad


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


# --- the built-in networks -------------------------------------------------------------------------------------------


def test_the_table_holds_every_network() -> None:
    assert set(ALONE) == set(MODELS)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_a_network_against_a_loop(name: str, clip: float) -> None:
    model = build(ALONE[name], CLASSES, (3, SIDE, SIDE), seed=1).double().train()
    agrees(model, batch(4), "layers", clip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normalised_network_in_the_layout_of_training(dtype: torch.dtype) -> None:
    network = build("convnet:width=4,norm=group", CLASSES, (3, 16, 16), seed=1)
    model = Classifier(network, Normalize([0.5] * 3, [0.25] * 3), bf16=False)
    model = model.to(dtype=dtype, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    given = batch(6, side=16, dtype=dtype)
    found, _ = clipped_sum(model, given, trainable(model), 0.5)
    for name, value in one_by_one(model, given, 0.5)[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_head_alone_behind_batch_norm_that_rests() -> None:
    model = build("convnet:width=4", CLASSES, (3, SIDE, SIDE), seed=1).double().eval().requires_grad_(False)
    model.get_submodule("linear").requires_grad_(True)
    agrees(model, batch(5), "layers")
    assert set(clipped_sum(model, batch(5), trainable(model), 0.5)[0]) == {"linear.weight", "linear.bias"}


# --- layers ----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "stride": 2, "padding": 1},
    {"kernel_size": 8},
    {"kernel_size": 2, "groups": 4, "dilation": (1, 3), "bias": False},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize("kept", [0, 2**23])
def test_convolutions(settings: dict, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the gradients of single images kept, once with their norms alone, a few images at a time."""
    monkeypatch.setattr(per_sample, "KEPT", kept)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 8, **settings), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES)))
    with torch.no_grad():
        model(torch.zeros(1, 4, SIDE, SIDE, dtype=torch.float64))
    agrees(model, batch(5, channels=4), "layers")


class Tokens(nn.Module):
    """Patches as tokens [B, T, D]: Linear and LayerNorm over more than two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 6)
        self.norm = nn.LayerNorm((16, 6))
        self.narrow = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.unfold(images, 2, stride=2).transpose(1, 2)
        return self.head(self.narrow(torch.tanh(self.norm(self.embed(tokens)))).mean(1))


@pytest.mark.parametrize("kept", [0, 2**23])
def test_tokens(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "KEPT", kept)
    agrees(seeded(Tokens), batch(5), "layers")


def test_a_layer_whose_output_is_changed_in_place() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, CLASSES)
        )
    )
    agrees(model, batch(5), "layers")


def test_frozen_parameters_play_no_part() -> None:
    model = seeded(Tokens)
    model.get_parameter("embed.weight").requires_grad_(False)
    model.get_parameter("norm.bias").requires_grad_(False)
    agrees(model, batch(4), "layers")


def test_dropout_draws_once_for_norm_and_sum() -> None:
    """With the noise drawn twice, the clipped gradients would be those of other networks than the norms."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES))).train()
    for _ in range(20):
        total, _ = clipped_sum(model, batch(1), trainable(model), 0.1)
        assert sum(float(part.square().sum()) for part in total.values()) ** 0.5 == pytest.approx(0.1)


# --- what the layers' formulas do not cover --------------------------------------------------------------------------


class Unknown(nn.Module):
    """Parameters of its own, which no formula knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.linear = nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear((images * self.scale).sin().flatten(1))


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(images).tanh()).flatten(1))


class Borrowed(nn.Module):
    """A layer that is called once, and its weight used once more past it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(192, 192), nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.linear(self.layer(images.flatten(1)).tanh(), self.layer.weight.T))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images.flatten(1)).tanh()))


class PlacesFirst(nn.Module):
    """[T, B, D], as some transformers have it: rows of what goes into a layer are places, not images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 6), nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.unfold(images, 2, stride=2).permute(2, 0, 1)
        return self.head(self.embed(tokens).tanh().mean(0))


class Folded(nn.Module):
    """All places of all images as rows of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 6), nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.unfold(images, 2, stride=2).transpose(1, 2)
        return self.head(self.embed(tokens.reshape(-1, 12)).tanh().view(len(images), 16, 6).mean(1))


class Doubling(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images.flatten(1)) ** 2


def unusual() -> dict[str, Callable[[], nn.Module]]:
    flat = nn.Flatten
    return {
        "own parameters": Unknown,
        "called twice": Twice,
        "weight borrowed": Borrowed,
        "tied": Tied,
        "places first": PlacesFirst,
        "folded": Folded,
        "subclass": lambda: Doubling(192, CLASSES),
        "circular": lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), flat(), nn.Linear(256, CLASSES)
        ),
        "same": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), flat(), nn.Linear(256, CLASSES)),
        "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 2), flat(), nn.Linear(162, CLASSES)),
        "instance norm": lambda: nn.Sequential(
            nn.InstanceNorm2d(3, affine=True), nn.Tanh(), flat(), nn.Linear(192, CLASSES)
        ),
        "weight norm": lambda: nn.Sequential(
            flat(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 4)), nn.Linear(4, CLASSES)
        ),
    }


@pytest.mark.parametrize("name", unusual())
@pytest.mark.parametrize("mapped", [200, 2**25])
def test_anything_else_is_mapped_over_the_images(name: str, mapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "MAPPED", mapped)
    agrees(seeded(unusual()[name]), batch(5), "mapped")


def test_as_many_images_as_places_are_not_mistaken_for_images() -> None:
    """The layer's first axis has the right length and holds something else; later batches keep to the other way."""
    model = seeded(PlacesFirst)
    agrees(model, batch(16), "mapped")
    agrees(model, batch(5), "mapped")


class Branching(Unknown):
    """A choice by value, which cannot be mapped."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2 if float(images.sum()) > 96 else 1)


def test_what_cannot_be_mapped_is_run_image_by_image() -> None:
    agrees(seeded(Branching), batch(6), "loop")


def test_a_classifier_of_an_unknown_network_is_mapped() -> None:
    model = Classifier(seeded(Unknown), Normalize([0.5] * 3, [0.25] * 3).double(), bf16=False)
    given = batch(5)
    agrees_loosely = clipped_sum(model, given, trainable(model), 0.5)[0]
    assert per_sample._ways[model] == "mapped"
    for name, value in one_by_one(model, given, 0.5)[0].items():
        torch.testing.assert_close(agrees_loosely[name], value, rtol=1e-5, atol=1e-7)  # logits are in float32


# --- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: build(ALONE["convnet"], CLASSES, (3, 8, 8), 0).double(), Unknown, Branching])
def test_one_row_moves_the_sum_by_at_most_the_clip(make: Callable[[], nn.Module]) -> None:
    """Whatever the others are; and by all of it where its gradient is large."""
    model, largest = seeded(make), 0.0
    for trial in range(12):
        clip = 10.0 ** (trial % 3 - 2)
        images = 5 * torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=stream(trial, "images"))
        targets = torch.eye(CLASSES, dtype=torch.float64)[torch.randint(CLASSES, (6,), generator=stream(trial))]
        more = Batch(images, targets, torch.arange(6), 0.0)
        less = Batch(images[1:], targets[1:], torch.arange(5), 0.0)
        with_it, without = (clipped_sum(model, one, trainable(model), clip)[0] for one in (more, less))
        moved = sum(float((with_it[name] - without[name]).square().sum()) for name in with_it) ** 0.5
        assert moved <= clip * (1 + 1e-9)
        largest = max(largest, moved / clip)
    assert largest > 0.999


@pytest.mark.parametrize("make", [lambda: build(ALONE["convnet"], CLASSES, (3, 8, 8), 0).double(), Unknown, Branching])
def test_an_empty_batch_adds_nothing_and_a_single_image_is_clipped(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    total, loss = clipped_sum(model, batch(0), trainable(model), 1.0)
    assert {name: value.shape for name, value in total.items()} == {n: p.shape for n, p in trainable(model).items()}
    assert not any(bool(value.any()) for value in total.values())
    assert loss.item() == 0
    total, _ = clipped_sum(model, batch(1), trainable(model), 1e-4)
    assert sum(float(part.square().sum()) for part in total.values()) ** 0.5 == pytest.approx(1e-4)


def test_nothing_is_left_behind() -> None:
    model, given = build(ALONE["convnet"], CLASSES, (3, 8, 8), 0).double(), batch(4)
    before = given.images.clone()
    clipped_sum(model, given, trainable(model), 1.0)
    assert torch.equal(given.images, before)
    assert not given.images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.InstanceNorm2d(3, track_running_stats=True)]
)
def test_batch_statistics_are_refused_with_the_way_out(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(192, CLASSES)).double()
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} \(0\).*convnet:norm=group.*trainable='head'"):
        clipped_sum(model.train(), batch(4), trainable(model), 1.0)
    if not isinstance(layer, nn.SyncBatchNorm):
        agrees(model.eval(), batch(4), "mapped" if layer.affine else "layers")


class Centred(nn.Module):
    """Statistics of the batch in a layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear((images - images.mean(0)).flatten(1))


def test_a_model_of_the_users_own_that_lets_images_meet_is_refused() -> None:
    model = seeded(Centred)
    with pytest.raises(ValueError, match="depend on other images of the batch"):
        clipped_sum(model, batch(4), trainable(model), 1.0)
