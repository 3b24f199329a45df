"""The mean rule against softmax regression by hand and finite differences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.batch import Batch
from mithridate.core.gradient_rules import Mean, trainable
from mithridate.core.models import build
from mithridate.core.seeds import stream


def batch(classes: int = 3, *, channels: int = 1, dtype: torch.dtype = torch.float64) -> Batch:
    rng = stream(0, "batch")
    images = torch.rand(6, channels, 8, 8, generator=rng).to(dtype)
    targets = torch.softmax(torch.randn(6, classes, generator=rng), 1).to(dtype)
    return Batch(images, targets, torch.arange(6), 0.0)


def test_softmax_regression_in_closed_form() -> None:
    given = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double())
    gradients, loss = Mean()(model, given, stream(0))
    logits = model(given.images).detach()
    wrong = (logits.softmax(1) - given.targets) / 6
    torch.testing.assert_close(gradients["1.weight"], wrong.T @ given.images.flatten(1))
    torch.testing.assert_close(gradients["1.bias"], wrong.sum(0))
    torch.testing.assert_close(loss, -(given.targets * logits.log_softmax(1)).sum(1).mean())
    assert not loss.requires_grad


def test_a_network_against_finite_differences() -> None:
    given, model = batch(), build("convnet:width=4", 3, (1, 8, 8), seed=0).double().eval()
    gradients, _ = Mean()(model, given, stream(0))
    rng = stream(1)

    def moved(direction: dict[str, Tensor], step: float) -> float:
        weights = {name: value.detach() + step * direction[name] for name, value in model.named_parameters()}
        return F.cross_entropy(torch.func.functional_call(model, weights, given.images), given.targets).item()

    for _ in range(3):
        direction = {name: torch.randn(g.shape, generator=rng, dtype=g.dtype) for name, g in gradients.items()}
        expected = (moved(direction, 1e-6) - moved(direction, -1e-6)) / 2e-6
        found = sum((gradients[name] * direction[name]).sum().item() for name in gradients)
        assert abs(found - expected) < 1e-6 * max(1, abs(expected))


def test_frozen_parameters_get_no_gradient() -> None:
    model = build("convnet:width=4", 3, (1, 8, 8), seed=0)
    head = model.get_submodule("linear")
    model.requires_grad_(False)
    head.requires_grad_(True)
    assert set(trainable(model)) == {"linear.weight", "linear.bias"}
    gradients, _ = Mean()(model, batch(dtype=torch.float32), stream(0))
    assert set(gradients) == {"linear.weight", "linear.bias"}


def test_the_rule_leaves_no_gradient_behind() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double())
    Mean()(model, batch(), stream(0))
    assert all(parameter.grad is None for parameter in model.parameters())
