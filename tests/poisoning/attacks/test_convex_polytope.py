"""Convex polytope: its objective by hand, and coefficients of its own for every model and block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mithridate.core.activations import activations
from mithridate.poisoning.attacks.convex_polytope import ConvexPolytope
from mithridate.poisoning.polytope import _Member
from tests.poisoning.cases import two_architectures
from tests.poisoning.polytope_cases import case, residual


def test_two_poisons_by_hand() -> None:
    """The target (1, 1/2) is nearest to (0, 1/2): 3/4 of the poison (0, 0) and 1/4 of (0, 2)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # features are the two pixels
    member = _Member(ConvexPolytope(precision="fp32"), network, [torch.tensor([1.0, 0.5])])
    images = torch.tensor([[0.0, 0.0], [0.0, 2.0]]).view(2, 1, 1, 2).requires_grad_()
    for _ in range(5):  # the coefficients go on from those of the step before
        value = member.loss(images, torch.Generator())
    assert member.last is not None
    torch.testing.assert_close(member.last, torch.tensor([[0.75, 0.25]], dtype=torch.float64), atol=1e-6, rtol=0)
    assert value.item() == pytest.approx(0.5 * 1 / 1.25, abs=1e-6)  # squared distance 1, squared length 5/4
    (slope,) = torch.autograd.grad(value, images)
    expected = torch.tensor([[-0.75, 0.0], [-0.25, 0.0]]) / 1.25  # share of the poison x (combination - target) / 5/4
    torch.testing.assert_close(slope.view(2, 2), expected, atol=1e-5, rtol=0)


def test_each_model_and_each_block_has_coefficients_of_its_own() -> None:
    attack = ConvexPolytope(end_to_end=True, precision="fp32")
    task = case()
    models = two_architectures(epochs=1).fit([task.train] * 2, range(2)).models
    images = task.images(task.choose(0))
    for model, layers in zip(models, (2, 6), strict=True):
        with torch.no_grad():
            goals = [layer.mean(0) for layer in activations(model, task.targets, every_block=True)]
        member = _Member(attack, model, goals)
        for _ in range(50):
            member.loss(images, torch.Generator())
        assert member.last is not None
        assert member.last.shape == (layers, len(images))
        torch.testing.assert_close(member.last.sum(1), torch.ones(layers, dtype=torch.float64))
        points = activations(model, images, every_block=True)
        expected = [residual(a, b, convex=True) for a, b in zip(points, goals, strict=True)]
        assert member.residuals(images).tolist() == pytest.approx(expected, abs=1e-4)
