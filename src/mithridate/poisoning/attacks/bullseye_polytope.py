"""Bullseye polytope: the target's features are the mean of the poisons' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mithridate.poisoning.polytope import Polytope


@dataclass(frozen=True, kw_only=True)
class BullseyePolytope(Polytope):
    """Put the target into the middle of the poisons in feature space, in every model.

    In the middle, the target stays between the poisons when the victim's features are a little different, where a
    convex polytope often has it at its edge. Nothing has to be solved for.

    Reference: Aghakhani, Meng, Wang, Kruegel, Vigna. "Bullseye Polytope: A Scalable Clean-Label Poisoning Attack with
    Improved Transferability". EuroS&P 2021. arXiv 2005.00191; several targets and views are
    its multi-target mode. Deviations: the target passes without dropout; no dropout unless asked for.

    >>> BullseyePolytope(dropout=0.2, repeats=3).end_to_end
    False
    """

    def coefficients(
        self, points: Sequence[Tensor], goals: Sequence[Tensor], start: Tensor | None, *, exact: bool
    ) -> Tensor:
        """Returns equal ones, [S, P]."""
        return points[0].new_full((len(points), len(points[0])), 1 / len(points[0]))

    def loss(self, residuals: Tensor) -> Tensor:
        """Returns the mean, []: of the distances, not of their squares."""
        return residuals.mean()
