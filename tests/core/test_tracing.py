"""Recorded functions: the same bits, and no recording where it would be wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mithridate.core.batchnorm import twice_differentiable
from mithridate.core.tracing import traced


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.rand(2, 3, 6, 6, generator=seeded(seed)).contiguous(memory_format=layout)


def matching(model: nn.Module):
    """The squared length of a parameter gradient, and its derivative in the images."""
    parameters = list(model.parameters())

    def function(images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            loss = model(leaf).logsumexp(1).mean()
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            value = sum(part.square().sum() for part in gradients)
        (slope,) = torch.autograd.grad(value, leaf)
        return value.detach(), slope

    return function


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def test_derivatives_of_derivatives_have_the_same_bits() -> None:
    function = matching(network(nn.BatchNorm2d(4)).eval())
    for layout in (torch.contiguous_format, torch.channels_last):
        replay = traced(function, image(0, layout))
        assert replay is not function
        for seed in (1, 2, 3):
            value, slope = replay(image(seed, layout))
            expected = function(image(seed, layout))
            assert torch.equal(value, expected[0])
            assert torch.equal(slope, expected[1])
            assert not slope.is_inference()
            assert not slope.requires_grad


def test_batchnorm_in_train_mode_is_recorded_with_its_written_out_derivative() -> None:
    model = network(nn.BatchNorm2d(4)).train()
    function = matching(model)
    with twice_differentiable(model):
        replay = traced(function, image(0))
        assert replay is not function
        assert torch.equal(replay(image(1))[1], function(image(1))[1])


def test_arguments_are_left_alone() -> None:
    replay = traced(matching(network(nn.Identity())), image(0))
    given = image(1)
    before = given.clone()
    first, second = replay(given), replay(given)
    assert torch.equal(given, before)
    assert torch.equal(first[1], second[1])
    assert first[1].data_ptr() != second[1].data_ptr()


def test_code_that_looks_at_values_is_called_not_replayed() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        sign = 1.0 if float(x[0, 0, 0, 0]) > float(x[0, 0, 0, -1]) else -1.0
        return sign * x.sum(), sign * torch.ones_like(x)

    example = image(0)
    replay = traced(function, example)
    for seed in range(4):
        assert torch.equal(replay(image(seed))[1], function(image(seed))[1])


def test_code_that_cannot_be_recorded_is_called() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(x.numpy() * 2)
        return values.sum(), values

    assert traced(function, image(0)) is function


def test_random_numbers_are_not_frozen() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), x + torch.rand(3)[0]

    replay = traced(function, image(0))
    assert not torch.equal(replay(image(1))[1], replay(image(1))[1])
