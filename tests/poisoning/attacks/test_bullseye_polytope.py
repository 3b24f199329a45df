"""Bullseye polytope: its objective by hand, and several passes through dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.activations import activations
from mithridate.core.ensemble import features
from mithridate.core.seeds import stream
from mithridate.poisoning.attacks.bullseye_polytope import BullseyePolytope
from mithridate.poisoning.polytope import _Member
from tests.poisoning.polytope_cases import LEARNER, case, residual


def test_two_poisons_by_hand() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    member = _Member(BullseyePolytope(precision="fp32"), network, [torch.tensor([3.0, 4.0])])
    images = torch.tensor([[0.0, 0.0], [6.0, 2.0]]).view(2, 1, 1, 2).requires_grad_()
    value = member.loss(images, torch.Generator())
    assert value.item() == pytest.approx(3 / 5)  # the mean (3, 1) is 3 away from a target of length 5: not squared
    (slope,) = torch.autograd.grad(value, images)
    torch.testing.assert_close(slope.view(2, 2), torch.tensor([[0.0, -0.1], [0.0, -0.1]]))


def test_repeats_average_the_passes() -> None:
    model = LEARNER.fit([case().train], [0]).models[0]
    images, rng = case().images(case().choose(0)), stream(0, "drop")
    goal = features(model, case().targets)[0]
    member = _Member(BullseyePolytope(dropout=0.3, repeats=2, precision="fp32"), model, [goal])
    value = member.loss(images, stream(0, "drop"))
    points = sum(activations(model, images, dropout=0.3, rng=rng)[0] for _ in range(2)) / 2
    assert isinstance(points, Tensor)
    assert value.item() == pytest.approx(residual(points, goal, convex=False), rel=1e-5)
