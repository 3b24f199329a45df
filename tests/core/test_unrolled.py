"""Steps of SGD in one graph, against steps taken in place; and the margin loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mithridate.core.losses import carlini_wagner
from mithridate.core.unrolled import sgd_step, weights_of


def test_steps_are_those_of_the_optimizer() -> None:
    module, twin = (nn.Linear(3, 2).double() for _ in range(2))
    twin.load_state_dict(module.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.2)
    given = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights_of(module)
    for _ in range(3):
        weights = sgd_step(weights, functional_call(module, weights, (given,)).square().mean(), rate=0.2)
        optimizer.zero_grad()
        twin(given).square().mean().backward()
        optimizer.step()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=1e-12, atol=1e-12)


def test_what_a_step_saw_can_be_differentiated() -> None:
    given = torch.tensor([2.0], requires_grad=True)
    weights = {"w": torch.tensor([1.0], requires_grad=True)}
    stepped = sgd_step(weights, (weights["w"] * given).square().sum(), rate=0.25)
    # w' = w - r 2 w x^2, so dw'/dx = -4 r w x
    assert torch.autograd.grad(stepped["w"], given)[0].item() == pytest.approx(-2.0)


def test_frozen_parameters_are_no_weights() -> None:
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    assert sorted(weights_of(module)) == ["1.bias", "1.weight"]


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, [0.0, 2.0]), (100.0, [-2.0, 2.0]), (1.0, [-1.0, 2.0])])
def test_the_margin_is_the_best_other_minus_the_wanted(kappa: float, expected: list[float]) -> None:
    logits = torch.tensor([[-4.0, -2.0, -9.0], [-3.0, -5.0, -4.0]])  # all negative: a masked class must not count as 0
    found = carlini_wagner(logits, torch.tensor([1, 1]), kappa)
    assert found.tolist() == expected
