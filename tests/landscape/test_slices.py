"""Slices through a bowl whose loss is known, and between models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mithridate.core.models import build
from mithridate.landscape.losses import Loss
from mithridate.landscape.slices import between, line, plane, random_direction


def pair() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    first, second = (build("convnet:width=4", 3, (1, 8, 8), seed).eval() for seed in (0, 1))
    rng = torch.Generator().manual_seed(0)
    return first, second, torch.rand(12, 1, 8, 8, generator=rng), torch.arange(12) % 3


def test_filters_of_a_direction_are_as_long_as_those_of_the_model() -> None:
    model, _, _, _ = pair()
    way = random_direction(model, seed=3)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert not way[name].any()
        else:
            assert torch.allclose(way[name].flatten(1).norm(dim=1), parameter.flatten(1).norm(dim=1), rtol=1e-5)
    assert all(torch.equal(one, way[name]) for name, one in random_direction(model, seed=3).items())
    assert any(not torch.equal(one, way[name]) for name, one in random_direction(model, seed=4).items())


def test_a_line_goes_through_both_models() -> None:
    first, second, images, labels = pair()
    before = {name: one.clone() for name, one in first.state_dict().items()}
    found = line(first, images, labels, between(first, second), [0, 0.5, 1])
    assert float(found.loss[0]) == pytest.approx(Loss(first, images, labels).score().loss, abs=1e-9)
    assert float(found.loss[2]) == pytest.approx(Loss(second, images, labels).score().loss, abs=1e-6)
    assert float(found.accuracy[0]) == Loss(first, images, labels).score().accuracy
    assert all(torch.equal(before[name], one) for name, one in first.state_dict().items())


def test_a_plane_holds_its_lines() -> None:
    first, second, images, labels = pair()
    ways = (random_direction(first), between(first, second))
    found = plane(first, images, labels, ways, [-1, 0, 1], [0, 0.5])
    assert found.loss.shape == (3, 2)
    one = line(first, images, labels, ways[0], [-1, 0, 1])
    other = line(first, images, labels, ways[1], [0, 0.5])
    assert torch.allclose(found.loss[:, 0], one.loss, atol=1e-9)
    assert torch.allclose(found.loss[1], other.loss, atol=1e-9)


def test_the_loss_of_logistic_regression_is_convex_along_any_line() -> None:
    model, rng = nn.Linear(4, 3), torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(30, 4, generator=rng), torch.randint(3, (30,), generator=rng)
    found = line(model, inputs, labels, random_direction(model), [-2, -1, 0, 1, 2])
    assert bool((found.loss.diff().diff() > -1e-9).all())


def test_bad_input_is_refused() -> None:
    first, _, images, labels = pair()
    with pytest.raises(ValueError, match="no distances"):
        line(first, images, labels, random_direction(first), [])
    with pytest.raises(ValueError, match="other names or shapes"):
        between(first, nn.Linear(2, 2))
