"""No attack: the clean control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.triggers import PatchTrigger, Trigger


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Change nothing: how often clean models already do what an attacker would want.

    Reference: evaluation protocol of Geiping, Fowl et al. "Witches' Brew: Industrial Scale Data Poisoning via Gradient
    Matching". ICLR 2021. arXiv 2009.02276. Deviations: none.

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> task = ThreatModel(budget=0.1).draw(train, test, seed=0)
    >>> len(NoAttack().craft(task, Recipe(), seed=0))
    0
    """

    deterministic: ClassVar[bool] = True

    trigger: Trigger = PatchTrigger()
    """What test images carry under a backdoor; unused otherwise."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        return Poison.empty(task, self.trigger if task.goal.triggered else None)
