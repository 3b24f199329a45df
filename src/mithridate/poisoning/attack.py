"""Attack: one method, from a task to a poison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from mithridate.core.schema import Choice, name_of
from mithridate.core.training import Learner
from mithridate.poisoning.goals import Goal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel


class Attack(Choice, ABC):
    """Crafts poison. Adding a file with a subclass to `poisoning/attacks/` adds the attack.

    An attack never judges itself: what it returns is measured again by `Task.check` and `Task.outcome`.
    """

    home: ClassVar[str] = "mithridate.poisoning.attacks"
    threat: ClassVar[ThreatModel] = ThreatModel()
    """What its paper assumes: the default of audit, CLI and contract tests."""
    habitat: ClassVar[Literal["from-scratch", "transfer"]] = "from-scratch"
    """How the victims of its paper train; an audit puts it there unless told otherwise."""
    deterministic: ClassVar[bool] = False
    """Whether the poison does not depend on the seed."""

    @abstractmethod
    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts the poison of one task.

        Args:
            task: The case; not changed.
            surrogate: Trains models that stand in for the victim; ask it for the seeds 0, 1, ...
            seed: The trial's seed: which rows are changed, where a search starts.

        Raises:
            TypeError: For a goal, threat model or learner that this attack cannot serve.
        """


def expect_goal(attack: Attack, task: Task, goal: type[Goal]) -> None:
    """Makes sure that the task has the one goal an attack is made for.

    Raises:
        TypeError: If it has another.
    """
    if not isinstance(task.goal, goal):
        raise TypeError(
            f"{name_of(attack)} serves the goal {name_of(goal)}, but the threat model's goal is {name_of(task.goal)}; "
            f"use goal {name_of(goal)} or another attack"
        )


def rows_of_intended_class(attack: Attack, task: Task, seed: int) -> Tensor:
    """Chooses rows [P] that already have the intended label, for an attack whose poisons teach the label they carry.

    At most `task.limit`, fewer where the candidates hold fewer.

    Raises:
        TypeError: If no candidate has that label.
    """
    fitting = task.train.labels_of(task.candidates) == task.intended[0].to(task.train.device)
    if not bool(fitting.any()):
        raise TypeError(
            f"{name_of(attack)} teaches the label that its poisons carry, so it changes images of the intended class "
            f"({task.train.classes[int(task.intended[0])]}); this case allows others alone (class: "
            f"{task.poison_class}), so use a threat model with poison_class='intended' or 'any'"
        )
    rows = task.choose(seed, fitting.float())
    return rows[task.train.labels_of(rows) == task.intended[0].to(rows.device)]
