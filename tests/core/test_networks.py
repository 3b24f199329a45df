"""The built-in networks: counts by hand, shapes, exact reordering of pool and ReLU, folding, second derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.models import MODELS, build
from mithridate.core.networks import ConvNorm, convnet

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


def mobilenet_count(widths: tuple[int, ...], channels: int, classes: int) -> int:
    """Widths: first convolution, seven stages, last convolution; two BatchNorm vectors for each convolution."""
    stem, *stages, last = widths
    count, seen = 9 * channels * stem + 2 * stem, stem
    for outputs, expansion, blocks in zip(stages, (1, 6, 6, 6, 6, 6, 6), (1, 2, 3, 4, 3, 3, 1), strict=True):
        for _ in range(blocks):
            inner = expansion * seen
            count += 0 if expansion == 1 else seen * inner + 2 * inner
            count += (9 * inner + 2 * inner) + (inner * outputs + 2 * outputs)
            seen = outputs
    return count + seen * last + 2 * last + last * classes + classes


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
        # As published for CIFAR, less the biases of its convolutions: BatchNorm has a shift of its own.
        ("vgg11", 3, 10, 9_231_114 - (64 + 128 + 2 * 256 + 4 * 512)),
        ("vgg11:width=8", 1, 3, plain_count((8, 16, 32, 32, 64, 64, 64, 64), 1, 3)),
        ("mobilenet_v2", 3, 1000, 3_504_872),  # as published: strides have no parameters
        ("mobilenet_v2:width=8", 1, 3, mobilenet_count((8, 4, 6, 8, 16, 24, 40, 80, 320), 1, 3)),
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


@pytest.mark.parametrize(("side", "expected"), [(8, 3), (16, 4), (32, 5), (64, 5)])
def test_vgg11_pools_after_five_blocks_where_the_side_allows(side: int, expected: int) -> None:
    network = build("vgg11:width=2", 5, (3, side, side), seed=0)
    assert isinstance(network, nn.Sequential)
    assert sum(isinstance(part, nn.MaxPool2d) for part in network.modules()) == expected
    positions = network[:8](torch.rand(2, 3, side, side)).shape[-1]
    assert positions == {8: 1, 16: 1, 32: 1, 64: 2}[side]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(("side", "before_pooling"), [(8, 2), (16, 2), (32, 4), (64, 8)])
def test_strides_that_a_small_image_does_not_allow_are_dropped(name: str, side: int, before_pooling: int) -> None:
    network = build(f"{name}:width=4", 5, (3, side, side), seed=0)
    assert isinstance(network, nn.Sequential)
    images = torch.rand(2, 3, side, side)
    for name, part in network.named_children():
        if name == "pool":
            break
        images = part(images)
    assert images.shape[2:] == (before_pooling, before_pooling)


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


def test_inverted_residuals_are_the_textbook_ones() -> None:
    network = with_history(build("mobilenet_v2:width=4", 4, (1, 16, 16), seed=1))
    weights = dict(network.named_parameters()) | dict(network.named_buffers())

    def convolve(images: Tensor, place: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{place}.convolution.weight"]
        images = functional.conv2d(images, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, gain, bias = (weights[f"{place}.norm.{name}"] for name in NORM)
        return functional.batch_norm(images, mean, variance, gain, bias)

    images = torch.rand(3, 1, 16, 16)
    seen = convolve(images, "stem.0").clamp(0, 6)
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1):
        for block in range(blocks):
            place = f"stage{stage}.{block}.body."
            inner, parts = seen, iter(("0", "2", "4"))
            if stage > 1:
                inner = convolve(seen, place + next(parts)).clamp(0, 6)
            stride = 2 if block == 0 and stage in (3, 4, 6) else 1
            inner = convolve(inner, place + next(parts), stride, inner.shape[1]).clamp(0, 6)
            inner = convolve(inner, place + next(parts))
            seen = seen + inner if block > 0 else inner
    seen = convolve(seen, "last.0").clamp(0, 6)
    logits = functional.linear(seen.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])
    torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (1, 2, 1), (3, 2, 4)])
def test_folded_layer_has_the_gradients_of_convolution_and_norm(kernel: int, stride: int, groups: int) -> None:
    layer = ConvNorm(4, 4, kernel, stride, groups).double()
    with_history(layer)
    layer.double()
    ordinary = nn.Sequential(layer.convolution, layer.norm)
    images = torch.rand(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
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


def test_convolutions_start_kaiming_normal_by_fan_out() -> None:
    network = build("convnet", 10, (3, 32, 32), seed=0)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            expected = math.sqrt(2 / (9 * part.out_channels))
            few = part.weight.numel() < 1000
            assert part.weight.std().item() == pytest.approx(expected, rel=0.15 if few else 0.05)
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.unique().tolist() == [1.0]


# --- GroupNorm -------------------------------------------------------------------------------------------------------

GROUPED = sorted(set(NAMES) - {"lenet", "mlp"})


@pytest.mark.parametrize("name", GROUPED)
def test_with_group_norm_an_image_never_meets_the_others(name: str) -> None:
    model = build(f"{name}:norm=group,width=4", 3, (3, 8, 8), seed=0).train()
    plain = build(f"{name}:norm=batch,width=4", 3, (3, 8, 8), seed=0)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    assert parameters_of(model) == parameters_of(plain)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.eval()(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "groups"), [(16, 8), (6, 6), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_groups_divide_the_channels(width: int, groups: int) -> None:
    norms = [part for part in convnet(3, width=width, norm="group").modules() if isinstance(part, nn.GroupNorm)]
    assert norms[0].num_groups == groups
    assert all(norm.num_channels % norm.num_groups == 0 for norm in norms)


def test_group_norm_is_differentiated_twice() -> None:
    """What gradient matching needs: the slope of a squared gradient norm, against finite differences."""
    model = build("convnet:norm=group,width=4", 3, (1, 8, 8), seed=0).double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def squared(x: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(x), torch.tensor([0, 2]))
        return sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()), create_graph=True))

    moving = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squared(moving), moving)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = (squared(images + 1e-6 * direction) - squared(images - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), expected, rtol=1e-4, atol=1e-8)
