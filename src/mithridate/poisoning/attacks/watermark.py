"""Watermark: the target shines through images of the intended class, and nothing is searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core.balls import AnyImage
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.dealing import deal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel


@dataclass(frozen=True, kw_only=True)
class Watermark(Attack):
    """Blend the target into images of the intended class: the baseline that every search must beat.

    Needs no model. A ball smaller than the change takes most of the watermark away.

    Reference: Shafahi, Huang, Najibi, Suciu, Studer, Dumitras, Goldstein. "Poison Frogs! Targeted Clean-Label Poisoning
    Attacks on Neural Networks". NeurIPS 2018. arXiv 1804.00792, section 4: opacity 0.2 to 0.3 and some 50 poisons.
    Deviations: there the search begins at it, here it is all; several targets are dealt to the poisons in turn.

    Raises:
        ValueError: the opacity is none.

    >>> Watermark().opacity
    0.3
    """

    threat: ClassVar[ThreatModel] = ThreatModel(budget=0.01, ball=AnyImage(), goal=Misclassify())

    opacity: float = 0.3
    """Share of the target in each poison, 0..1."""

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity}; it is a share of the image, so use 0.3 for 30 %")

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the surrogate is not trained.

        Raises:
            TypeError: the goal is not to misclassify given targets, or no image of the intended class may change.
        """
        expect_goal(self, task, Misclassify)
        rows = rows_of_intended_class(self, task, seed)
        base = task.images(rows)
        blended = (1 - self.opacity) * base + self.opacity * task.targets[deal(task, len(rows))]
        images = task.ball.images(base, task.ball.params_of(base, blended))
        return Poison(rows, task.ball.rounded(base, images))
