"""BatchNorm whose second derivative is written out, against that of PyTorch and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mithridate.core.batchnorm import twice_differentiable
from mithridate.core.models import build


def layer(channels: int = 4, **settings) -> nn.BatchNorm2d:
    """In float64; one weight is zero and one negative."""
    made = nn.BatchNorm2d(channels, **settings).double()
    if made.affine:
        with torch.no_grad():
            made.weight.copy_(torch.tensor([0.7, 0.0, -1.3, 2.0])[:channels])
            made.bias.copy_(torch.linspace(-1, 1, channels))
    return made


def images(*shape: int, last: bool = False) -> Tensor:
    drawn = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


@pytest.mark.parametrize("last", [False, True])
def test_first_and_second_derivatives_agree_with_finite_differences(last: bool) -> None:
    norm, given = layer(), images(3, 4, 3, 2, last=last).requires_grad_()
    weights = [value.detach().clone().requires_grad_() for value in (norm.weight, norm.bias)]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with twice_differentiable(norm):
            return functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (given, *weights))
    assert torch.autograd.gradgradcheck(function, (given, *weights))


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.3}])
def test_values_and_gradients_are_those_of_pytorch(settings: dict) -> None:
    norm = layer(**settings)

    def passes() -> list[Tensor]:
        given = images(5, 4, 3, 3, last=True).requires_grad_()
        out = norm(given)
        inputs = [given, *norm.parameters()]
        first = torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(slope.pow(2).sum() for slope in first), inputs)
        return [out, *first, *second]

    expected = passes()
    with twice_differentiable(norm):
        found = passes()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_whole_network_has_the_same_gradient_of_a_gradient() -> None:
    network = build("resnet18:width=4", 3, (3, 8, 8), seed=0).train()
    given, labels = images(6, 3, 8, 8, last=True).float().div(10), torch.arange(6) % 3

    def towards() -> Tensor:
        leaf = given.clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(leaf), labels)
        slopes = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaf)[0]

    expected = towards()
    with twice_differentiable(network):
        found = towards()
    assert float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)) > 0.9999


def test_in_bfloat16_it_is_as_near_to_the_exact_gradient_as_pytorch_is() -> None:
    norm, shape = nn.BatchNorm2d(8), (32, 8, 6, 6)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))

    def second(dtype: torch.dtype) -> Tensor:
        leaf = given.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        (slope,) = torch.autograd.grad((norm(leaf).tanh() * weight.to(dtype)).sum(), leaf, create_graph=True)
        return torch.autograd.grad((slope * weight.flip(0).to(dtype)).sum(), leaf)[0].float()

    exact = second(torch.float32)
    plain = second(torch.bfloat16)
    with twice_differentiable(norm):
        torch.testing.assert_close(second(torch.float32), exact, rtol=1e-4, atol=1e-5)
        ours = second(torch.bfloat16)
    assert float((ours - exact).norm()) < 1.5 * float((plain - exact).norm())


def test_statistics_stay_and_the_layer_is_itself_again_afterwards() -> None:
    norm = layer()
    with twice_differentiable(norm):
        norm(images(4, 4, 2, 2))
    assert int(norm.num_batches_tracked) == 0
    assert "forward" not in vars(norm)
    with pytest.raises(RuntimeError, match="stop"), twice_differentiable(norm):
        raise RuntimeError("stop")
    norm(images(4, 4, 2, 2))
    assert int(norm.num_batches_tracked) == 1


def test_layers_in_eval_mode_and_other_kinds_are_left_alone() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    with twice_differentiable(network):
        assert ["forward" in vars(part) for part in network] == [False, True, False]
