"""Models by name or function: reproducible weights, clear errors, normalisation, the last layer."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.models import MODELS, Normalize, build, last_linear

NAMES = sorted(MODELS)


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_seed_and_nothing_else(name: str) -> None:
    def weights(seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(build(f"{name}:width=4", 3, (3, 8, 8), seed).parameters()).detach()

    torch.manual_seed(1)
    first = weights(7)
    torch.manual_seed(2)
    build("convnet", 10, (1, 8, 8), seed=0)
    assert torch.equal(first, weights(7))
    assert not torch.equal(first, weights(8))


def test_global_generator_is_untouched() -> None:
    before = torch.random.get_rng_state()
    build("resnet18:width=4", 3, (3, 8, 8), seed=7)
    assert torch.equal(before, torch.random.get_rng_state())


def test_building_leaves_train_mode_and_fresh_batch_statistics() -> None:
    network = build("convnet", 10, (3, 32, 32), seed=0)
    assert all(part.training for part in network.modules())
    assert all(part.num_batches_tracked == 0 for part in network.modules() if isinstance(part, nn.BatchNorm2d))


def only_classes(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def with_keywords(classes: int, *, channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))


def forwards_anything(classes: int, **others: object) -> nn.Module:
    assert not others
    return only_classes(classes)


def frozen_part(classes: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3).eval(), *only_classes(classes))


@pytest.mark.parametrize("make", [only_classes, with_keywords, forwards_anything, lambda k: only_classes(k)])
def test_a_function_is_called_with_what_its_signature_names(make: object) -> None:
    assert build(make, 4, (3, 8, 8), seed=0)(torch.rand(2, 3, 8, 8)).shape == (2, 4)  # type: ignore[arg-type]


def test_modes_that_a_function_chose_are_kept() -> None:
    network = build(frozen_part, 4, (3, 8, 8), seed=0)
    assert isinstance(network, nn.Sequential)
    assert network.training
    assert not network[0].training


def test_a_module_and_function_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_networks")
    module.__dict__["tiny"] = with_keywords
    monkeypatch.setitem(sys.modules, "somebodys_networks", module)
    assert parameters_of(build("somebodys_networks:tiny", 4, (1, 8, 8), seed=0)) == 64 * 4 + 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("convnett", ["convnett", "did you mean convnet?", "resnet18", "package.module:function"]),
        ("vitamin", ["vitamin", "convnet, convnet-wide, lenet, mlp, mobilenet_v2, resnet18, vgg11", "timm:NAME"]),
        ("mobilenet-v2", ["did you mean mobilenet_v2?"]),
        ("resnet81:width=8", ["resnet81", "did you mean resnet18?"]),
        ("resnet18:widht=8", ["widht", "did you mean width?"]),
        ("resnet18:depth=8", ["'depth'", "known: norm, width"]),
        ("resnet18:norm=layer", ["'layer'", "resnet18:norm=group"]),
        ("lenet:norm=group", ["'norm'", "known: width"]),
        ("convnet:width=0.5", ["'0.5'", "whole number", "convnet:width=8"]),
        ("convnet:width=0", ["'0'", "whole number"]),
        ("convnet:width", ["width", "whole number"]),
        ("no_such_package_here.models:make", ["no_such_package_here"]),
        ("torch.nn:no_such_function", ["no_such_function"]),
    ],
)
def test_wrong_names_say_what_is_wrong_and_what_to_do(spec: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build(spec, 10, (3, 32, 32), seed=0)
    assert [word for word in words if word not in str(caught.value)] == []


def fixed_width(classes: int) -> nn.Module:
    return only_classes(classes + 1)


def keeps_positions(classes: int) -> nn.Module:
    return nn.Conv2d(3, classes, 1)


def gives_a_pair(classes: int) -> nn.Module:
    return nn.LSTM(8, classes)


def wants_grey(classes: int) -> nn.Module:
    return nn.Conv2d(1, classes, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fixed_width, ["fixed_width", "[2, 5]", "[2, 4]", "last layer"]),
        (keeps_positions, ["[2, 4, 8, 8]", "[2, 4]"]),
        (wants_grey, ["wants_grey", "[2, 3, 8, 8]", "channels"]),
        (gives_a_pair, ["gives_a_pair"]),
    ],
)
def test_wrong_output_shows_what_came_and_what_was_expected(make: object, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build(make, 4, (3, 8, 8), seed=0)  # type: ignore[arg-type]
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: only_classes(4), "cannot be called with the number of classes"),
        (lambda classes, depth: only_classes(classes), "depth"),
        (lambda classes: "a network", "returned str"),
        (nn.Linear(2, 2), "is a Linear; give a name or a function"),
    ],
)
def test_things_that_are_not_model_functions_are_type_errors(make: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        build(make, 4, (3, 8, 8), seed=0)  # type: ignore[arg-type]


def test_normalize_is_the_affine_map_per_channel() -> None:
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 1.0]
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalize(mean, std)(images), expected)


def test_normalize_keeps_channels_last_and_moves_with_the_module() -> None:
    layer = Normalize([0.5] * 3, [0.25] * 3)
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert layer(images).is_contiguous(memory_format=torch.channels_last)
    assert sorted(layer.state_dict()) == ["mean", "std"]
    assert not list(layer.parameters())


def test_normalize_does_not_share_its_arguments() -> None:
    mean = torch.zeros(1)
    layer = Normalize(mean, torch.ones(1))
    mean.fill_(5)
    assert layer.mean.item() == 0


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ([0.5], [0.0], "constant channel"),
        ([0.5], [float("nan")], "std is"),
        ([0.5], [1.0, 1.0], "one number per channel"),
    ],
)
def test_normalize_refuses_what_cannot_be(mean: list[float], std: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Normalize(mean, std)


def test_last_linear_is_the_last_in_module_order() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)), nn.Softmax(1))
    assert last_linear(nn.Sequential(Normalize([0.5], [1.0]), network)) is network[2][0]


def test_last_linear_names_the_model_that_has_none() -> None:
    with pytest.raises(ValueError, match="no final Linear in Conv2d"):
        last_linear(nn.Conv2d(3, 10, 1))
