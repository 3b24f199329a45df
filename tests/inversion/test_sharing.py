"""What a client computes: the same as ordinary training code would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mithridate.inversion.sharing import Gradient, Update
from tests.inversion.cases import CLASSES, images, labels, normed, smooth


def one_hot(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.one_hot(labels(count), CLASSES).to(dtype)


def by_backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batches: list[list[int]], rate: float) -> list:
    """Weights before minus weights after, with the framework's own optimiser."""
    local = copy.deepcopy(model)
    optimizer = torch.optim.SGD(local.parameters(), lr=rate)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(local(x[rows]), y[rows]).backward()
        optimizer.step()
    return [a.detach() - b.detach() for a, b in zip(model.parameters(), local.parameters(), strict=True)]


def close(a: list[torch.Tensor], b: list[torch.Tensor], atol: float = 1e-6) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, atol=atol, rtol=1e-4) for x, y in zip(a, b, strict=True))


def test_a_gradient_is_that_of_the_mean_loss() -> None:
    model, x = smooth(), images(3)
    assert close(Gradient().compute(model, x, one_hot(3), graph=False), by_backward(model, x, labels(3)))


@pytest.mark.parametrize(
    ("sharing", "batches"),
    [
        (Update(steps=3, rate=0.3), [[0, 1, 2, 3]] * 3),
        (Update(steps=3, rate=0.3, batch_size=2), [[0, 1], [2, 3], [0, 1]]),
        (Update(steps=4, rate=0.1, batch_size=3), [[0, 1, 2], [3], [0, 1, 2], [3]]),
        (Update(steps=2, rate=0.1, batches=((3, 1), (0, 2))), [[3, 1], [0, 2]]),
    ],
)
def test_an_update_is_that_of_local_sgd(sharing: Update, batches: list[list[int]]) -> None:
    model, x = smooth(), images(4)
    expected = trained(model, x, labels(4), batches, sharing.rate)
    for graph in (False, True):
        assert close(sharing.compute(model, x, one_hot(4), graph=graph), expected)


def test_one_local_step_is_the_gradient_times_its_rate() -> None:
    model, x = smooth(), images(2)
    sharing = Update(steps=1, rate=0.25)
    update = sharing.compute(model, x, one_hot(2), graph=False)
    gradient = Gradient().compute(model, x, one_hot(2), graph=False)
    assert close([part * sharing.as_gradient() for part in update], gradient)


def test_batch_statistics_are_those_of_train_mode_without_dropout() -> None:
    model, x = normed(), images(4)
    sharing = Gradient(batch_statistics=True)
    before = copy.deepcopy(model.state_dict())
    with sharing.mode(model):
        found = sharing.compute(model, x, one_hot(4), graph=False)
    reference = copy.deepcopy(model).eval()
    reference[1].train()
    assert close(found, by_backward(reference, x, labels(4)), atol=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_batch_statistics_the_running_ones_are_used() -> None:
    model, x = normed(), images(4)
    with Gradient().mode(model):
        found = Gradient().compute(model, x, one_hot(4), graph=False)
    assert close(found, by_backward(copy.deepcopy(model).eval(), x, labels(4)), atol=1e-5)


def test_each_image_is_clipped_alone() -> None:
    model, x, y = smooth(), images(3), labels(3)
    singles = [by_backward(model, x[i : i + 1], y[i : i + 1]) for i in range(3)]
    lengths = [float(torch.cat([part.flatten() for part in one]).norm()) for one in singles]
    clip = sorted(lengths)[1]  # one image is cut, one is not, one is at the edge
    factors = [min(1.0, clip / length) / 3 for length in lengths]
    expected = [sum(f * one[i] for f, one in zip(factors, singles, strict=True)) for i in range(len(singles[0]))]
    assert close(Gradient(clip=clip).compute(model, x, one_hot(3), graph=False), expected)


@pytest.mark.parametrize("sharing", [Gradient(), Gradient(clip=0.01), Update(steps=3, rate=0.5, batch_size=2)])
def test_it_is_differentiable_in_the_images(sharing: Gradient | Update) -> None:
    model, x, targets = smooth(torch.float64), images(3, dtype=torch.float64), one_hot(3, torch.float64)
    weights = [
        torch.rand(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for p in model.parameters()
    ]

    def value(pixels: torch.Tensor) -> torch.Tensor:
        shared = sharing.compute(model, pixels, targets, graph=True)
        return sum((w * part).sum() for w, part in zip(weights, shared, strict=True))

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    direction = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5
    step = 1e-5
    numeric = (value(x + step * direction) - value(x - step * direction)).detach() / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Update(steps=0, rate=0.1), "at least one local step"),
        (lambda: Update(steps=1, rate=0), "is positive"),
        (lambda: Update(steps=1, rate=0.1, batch_size=0), "at least one image"),
        (lambda: Update(steps=3, rate=0.1, batches=((0,), (1,))), "names 2 steps, but steps is 3"),
        (lambda: list(Update(steps=1, rate=0.1, batches=((0, 4),)).rows(4)), "names image 4"),
        (lambda: Gradient(clip=0.0), "more than 0"),
        (lambda: Gradient(clip=1.0, batch_statistics=True), "batch_statistics=False"),
    ],
)
def test_impossible_clients_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
