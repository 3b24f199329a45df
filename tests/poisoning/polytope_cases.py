"""What the tests of the polytope attacks share: a case, short searches, and what is left of a target by scipy."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from mithridate.core.balls import Linf
from mithridate.poisoning.polytope import Polytope
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import quick, three_classes

LEARNER = quick(epochs=1)


def pixels_are_features(classes: int) -> nn.Module:
    """A network whose features are the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


PIXELS = quick(model=pixels_are_features, normalize="none", epochs=0)


def case(**threat: object) -> Task:
    """Four poisons within 0.1 of their bases, and one target, unless told."""
    train, test = three_classes()
    return ThreatModel(**({"ball": Linf(eps=0.1), "budget": 0.08} | threat)).draw(train, test, seed=0)  # type: ignore[arg-type]


def short(kind: type[Polytope], **settings: object) -> Polytope:
    """An attack with little work."""
    return kind(**({"steps": 30, "precision": "fp32", "surrogates": 1} | settings))  # type: ignore[arg-type]


def residual(points: Tensor, goal: Tensor, *, convex: bool) -> float:
    """The relative distance of the nearest combination (by scipy) or of the mean."""
    points, goal = points.detach().double(), goal.detach().double()
    share = torch.full((len(points),), 1 / len(points), dtype=torch.float64)
    if convex:
        heavy = torch.full((1, len(points)), 1e3, dtype=torch.float64)
        right = torch.cat([goal, heavy[0, :1]])
        share = torch.from_numpy(nnls(torch.cat([points.T, heavy]).numpy(), right.numpy())[0])
    return float((share @ points - goal).norm() / goal.norm())
