"""Convex polytope: the target's features are some convex combination of the poisons' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.simplex import Quadratic
from mithridate.poisoning.polytope import Polytope

INNER_STEPS = 10
"""Steps towards the best coefficients in one step of the poisons; the next one goes on from there. With 4 poisons on
digits, 10 leave the residual at most 0.00001 above the least from the second step on; 3 up to 0.0005 above it."""
LAST_STEPS = 200
"""Steps towards the best coefficients of the finished poisons."""


@dataclass(frozen=True, kw_only=True)
class ConvexPolytope(Polytope):
    """Surround the target in feature space: it is a convex combination of the poisons, another one in every model.

    A linear layer that gives all poisons the intended class gives it to everything between them. The coefficients are
    solved for in every step, each layer of each model having its own.

    Reference: Zhu, Huang, Li, Taylor, Studer, Goldstein. "Transferable Clean-Label Poisoning Attacks on Deep Neural
    Nets". ICML 2019. arXiv 1905.05897, Algorithm 1. Deviations: accelerated steps with a bound on the curvature, not
    a guess and backtracking, few in every step, going on from the step before, since the poisons move little in
    between; 1,200 steps for their 4,000; the mean over layers; the target passes without dropout; no dropout unless
    asked for: theirs helps models that were trained with it.

    >>> ConvexPolytope(steps=400).lr
    0.04
    """

    def coefficients(
        self, points: Sequence[Tensor], goals: Sequence[Tensor], start: Tensor | None, *, exact: bool
    ) -> Tensor:
        """Returns those of the nearest combination, [S, P]."""
        problems = [Quadratic.of(found, goal) for found, goal in zip(points, goals, strict=True)]
        together = Quadratic(torch.stack([one.gram for one in problems]), torch.stack([one.pull for one in problems]))
        return together.minimiser(start, iterations=LAST_STEPS if exact else INNER_STEPS)

    def loss(self, residuals: Tensor) -> Tensor:
        """Returns half the mean square, []."""
        return residuals.square().mean() / 2
