"""EPIC: drop rows whose gradients are isolated, while training goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mithridate.core.learners import Mixed
from mithridate.core.row_rules import IsolatedGradients
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, changed

MULTIPLIER = 1.5
"""Rows that a class may lose in one round, in units of the poison that is expected in all."""


@dataclass(frozen=True, kw_only=True)
class Epic(Defense):
    """Drop, between epochs, the rows whose gradient is like nobody else's in their class.

    Effective poisons push the model where no clean row does, so their gradients become isolated early in training. What
    goes is gone for the rest of it. A head that would be solved to convergence is trained by SGD instead, since it has
    no epochs otherwise.

    Reference: Yang, Liu, Mirzasoleiman. "Not All Poisons are Created Equal: Robust Training against Data Poisoning".
    ICML 2022. arXiv 2210.09671, Algorithm 1; times as in its setting of 40 epochs. Deviations: those of
    `mithridate.core.row_rules.IsolatedGradients`.

    >>> from mithridate import Recipe
    >>> Epic(every=0.1)(Recipe()).row_rule.every
    0.1
    """

    kind: ClassVar[Kind] = "row rule"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1): a class loses at most
    1.5 times as many rows in one round."""
    medoids: float = 0.2
    """Medoids as a share of the rows of a class: more of them leave more rows alone, and drop more."""
    start: float = 1 / 4
    """Share of training after which rows are dropped for the first time."""
    stop: float = 7 / 8
    """Share of training after which none are dropped any more."""
    every: float = 1 / 20
    """Share of training between two rounds; at least one epoch."""

    def __post_init__(self) -> None:
        if not 0 < self.contamination * MULTIPLIER < 1:
            raise ValueError(
                f"contamination is {self.contamination:g}; it is the fraction of the training set expected to be "
                "poisoned, so use for example 0.01 for 1 %"
            )
        self._rule(1)  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        if isinstance(learner, Mixed):
            return Mixed(tuple(replace(one, row_rule=self._rule(max(1, one.epochs))) for one in learner.recipes))
        epochs = 1 if learner.recipe is None else learner.recipe.epochs
        return changed(learner, self, row_rule=self._rule(max(1, epochs)))

    def _rule(self, epochs: int) -> IsolatedGradients:
        return IsolatedGradients(
            epochs=epochs,
            medoids=self.medoids,
            start=self.start,
            stop=self.stop,
            every=self.every,
            most=MULTIPLIER * self.contamination,
        )
