"""Networks: counts by hand, shapes, reproducible weights, exact reordering of pool and ReLU, clear errors."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.models import MODELS, Normalize, build, last_linear
from mithridate.core.networks import ConvNorm

NAMES = sorted(MODELS)
NORM = ("running_mean", "running_var", "weight", "bias")


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plain_count(widths: tuple[int, ...], channels: int, classes: int) -> int:
    """3x3 convolutions without bias, two BatchNorm vectors each, a linear layer with bias."""
    pairs = zip((channels, *widths), widths, strict=False)
    return sum(9 * a * b + 2 * b for a, b in pairs) + widths[-1] * classes + classes


def resnet18_count(width: int, channels: int, classes: int) -> int:
    count, seen = 9 * channels * width + 2 * width, width
    for outputs in (width, 2 * width, 4 * width, 8 * width):
        count += 9 * seen * outputs + 3 * 9 * outputs**2 + 4 * 2 * outputs
        count += seen * outputs + 2 * outputs if seen != outputs else 0
        seen = outputs
    return count + seen * classes + classes


def with_history(network: nn.Module) -> nn.Module:
    """Gives every BatchNorm statistics and weights other than zero and one; eval mode."""
    rng = torch.Generator().manual_seed(5)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for name in NORM:
                value = getattr(part, name)
                value.data = 0.5 + torch.rand(value.shape, generator=rng)
    return network.eval()


@pytest.mark.parametrize(
    ("spec", "channels", "classes", "expected"),
    [
        ("convnet", 3, 10, 70_618),
        ("convnet", 1, 10, plain_count((16, 32, 32, 64, 64), 1, 10)),
        ("convnet:width=8", 3, 7, plain_count((8, 16, 16, 32, 32), 3, 7)),
        ("convnet-wide", 3, 10, plain_count((32, 64, 128, 128), 3, 10)),
        ("convnet-wide:width=16", 1, 2, plain_count((16, 32, 64, 64), 1, 2)),
        ("resnet18", 3, 10, 11_173_962),  # as published for the CIFAR variant
        ("resnet18:width=8", 1, 3, resnet18_count(8, 1, 3)),
    ],
)
def test_parameter_counts_agree_with_counts_by_hand(spec: str, channels: int, classes: int, expected: int) -> None:
    assert parameters_of(build(spec, classes, (channels, 32, 32), seed=0)) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 13, 28, 32, 64])
def test_logits_have_one_column_per_class_from_8_to_64_pixels(name: str, channels: int, side: int) -> None:
    network = build(f"{name}:width=4", 5, (channels, side, side), seed=0)
    assert network(torch.rand(3, channels, side, side)).shape == (3, 5)


@pytest.mark.parametrize("name", NAMES)
def test_oblong_images_work(name: str) -> None:
    assert build(f"{name}:width=4", 5, (3, 8, 20), seed=0)(torch.rand(2, 3, 8, 20)).shape == (2, 5)


@pytest.mark.parametrize(("side", "expected"), [(8, 2), (16, 3), (32, 4), (64, 5)])
def test_convnet_pools_only_while_the_side_is_at_least_four(side: int, expected: int) -> None:
    network = build("convnet", 5, (3, side, side), seed=0)
    assert sum(isinstance(part, nn.MaxPool2d) for part in network.modules()) == expected


@pytest.mark.parametrize(("side", "before_pooling"), [(8, 2), (16, 2), (32, 4), (64, 8)])
def test_resnet18_drops_strides_that_a_small_image_does_not_allow(side: int, before_pooling: int) -> None:
    network = build("resnet18:width=4", 5, (3, side, side), seed=0)
    assert isinstance(network, nn.Sequential)
    images = torch.rand(2, 3, side, side)
    for name, part in network.named_children():
        if name == "pool":
            break
        images = part(images)
    assert images.shape == (2, 32, before_pooling, before_pooling)


def test_pooling_before_the_relu_is_the_usual_network_exactly() -> None:
    network = with_history(build("convnet", 4, (3, 16, 16), seed=1))
    images = torch.rand(6, 3, 16, 16, requires_grad=True)

    def usual(images: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU, pool, written with functions on the same weights."""
        weights = dict(network.named_parameters()) | dict(network.named_buffers())
        for block in range(1, 6):
            place = f"block{block}.0"
            images = functional.conv2d(images, weights[f"{place}.convolution.weight"], padding=1)
            mean, variance, gain, bias = (weights[f"{place}.norm.{name}"] for name in NORM)
            images = functional.batch_norm(images, mean, variance, gain, bias).relu()
            images = functional.max_pool2d(images, 2) if images.shape[-1] >= 4 else images
        return functional.linear(images.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])

    results = []
    for model in (network, usual):
        logits = model(images)
        results.append((logits, torch.autograd.grad(logits.square().sum(), images)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_residual_network_is_the_textbook_one() -> None:
    network = with_history(build("resnet18:width=4", 4, (1, 16, 16), seed=1))
    weights = dict(network.named_parameters()) | dict(network.named_buffers())

    def convolve(images: Tensor, place: str, stride: int) -> Tensor:
        kernel = weights[f"{place}.convolution.weight"]
        images = functional.conv2d(images, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, gain, bias = (weights[f"{place}.norm.{name}"] for name in NORM)
        return functional.batch_norm(images, mean, variance, gain, bias)

    images = torch.rand(3, 1, 16, 16)
    seen = convolve(images, "stem.0", 1).relu()
    for stage in range(1, 5):
        for block in range(2):
            place, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = convolve(convolve(seen, f"{place}.body.0", stride).relu(), f"{place}.body.2", 1)
            changes = f"{place}.shortcut.convolution.weight" in weights
            assert changes == (stage > 1 and block == 0)
            beside = convolve(seen, f"{place}.shortcut", stride) if changes else seen
            seen = (inner + beside).relu()
    logits = functional.linear(seen.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])
    torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_folded_layer_has_the_gradients_of_convolution_and_norm(kernel: int, stride: int) -> None:
    layer = ConvNorm(3, 4, kernel, stride).double()
    with_history(layer)
    layer.double()
    ordinary = nn.Sequential(layer.convolution, layer.norm)
    images = torch.rand(2, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    leaves = [images, *layer.parameters()]

    def derivatives(module: nn.Module) -> list[Tensor]:
        """The output, its gradients, and the gradient with respect to the images of their squared length."""
        output = module(images)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), images)
        return [output, *first, *second]

    torch.testing.assert_close(derivatives(layer), derivatives(ordinary))


def test_folding_happens_in_eval_mode_alone() -> None:
    layer, images = ConvNorm(3, 4), torch.rand(8, 3, 5, 5)
    normalised = layer(images)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert layer.norm.num_batches_tracked == 1
    layer.eval()(images)
    assert layer.norm.num_batches_tracked == 1


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_agrees_with_finite_differences(name: str) -> None:
    network = build(f"{name}:width=2", 3, (1, 8, 8), seed=0).double().eval()
    weights = list(network.parameters())
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 8, 8, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    direction = torch.randn(images.shape, generator=rng, dtype=torch.float64)

    def squared_norm(images: Tensor) -> Tensor:
        loss = functional.cross_entropy(network(images), labels)
        return sum((g.square().sum() for g in torch.autograd.grad(loss, weights, create_graph=True)), torch.zeros(()))

    slope = (torch.autograd.grad(squared_norm(images), images)[0] * direction).sum()
    step = 1e-7
    measured = (squared_norm(images + step * direction) - squared_norm(images - step * direction)) / (2 * step)
    assert measured.item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_and_channels_last_compute_the_same_function(name: str) -> None:
    network = build(f"{name}:width=8", 3, (3, 16, 16), seed=0).eval()
    images = torch.rand(8, 3, 16, 16)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.cosine_similarity(network(images).float(), expected).min() > 0.995


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


def test_convolutions_start_kaiming_normal_by_fan_out() -> None:
    network = build("convnet", 10, (3, 32, 32), seed=0)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            expected = math.sqrt(2 / (9 * part.out_channels))
            few = part.weight.numel() < 1000
            assert part.weight.std().item() == pytest.approx(expected, rel=0.15 if few else 0.05)
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.unique().tolist() == [1.0]


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
        ("vitamin", ["vitamin", "convnet, convnet-wide, resnet18"]),
        ("resnet81:width=8", ["resnet81", "did you mean resnet18?"]),
        ("resnet18:widht=8", ["widht", "did you mean width?"]),
        ("resnet18:depth=8", ["'depth'", "known: width"]),
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
