"""Attack: one method, from a task to a poison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
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

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> class Darken(Attack):
    ...     def craft(self, task, surrogate, seed):
    ...         rows = rows_of_intended_class(self, task, seed)
    ...         return Poison(rows, (0.95 * task.train.pixels(rows).float()).byte())
    >>> task = ThreatModel(budget=0.05).draw(train, test, seed=0)
    >>> task.check(poison := Darken().craft(task, Recipe(), seed=0))
    """

    home: ClassVar[str] = "mithridate.poisoning.attacks"
    threat: ClassVar[ThreatModel] = ThreatModel()
    """What its paper assumes: the default of audit, CLI and contract tests."""
    habitat: ClassVar[Literal["from-scratch", "transfer"]] = "from-scratch"
    """How the victims of its paper train; an audit puts it there unless told otherwise."""
    deterministic: ClassVar[bool] = False
    """Whether the poison does not depend on the seed."""

    def assumed(self) -> ThreatModel:
        """Returns what the attack assumes in these settings: `threat`, unless a setting asks for something else."""
        return self.threat

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


def rows_of_intended_class(
    attack: Attack, task: Task, seed: int, scores: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Chooses rows [P] that already have the intended label, for an attack whose poisons teach the label they carry.

    At most `task.limit`, fewer where the candidates hold fewer.

    Args:
        attack: For messages.
        task: The case.
        seed: The trial's seed.
        scores: Rows [n] of the intended class -> a number at least 0 for each, highest first; None: all are alike.

    Raises:
        TypeError: If no candidate has that label.
    """
    if not task.goal.single:
        raise TypeError(
            f"{name_of(attack)} changes images of the intended class, but the goal {name_of(task.goal)} intends no "
            "single one here; use another attack, or a goal with one"
        )
    fitting = task.train.labels_of(task.candidates) == task.intended[0].to(task.train.device)
    if not bool(fitting.any()):
        raise TypeError(
            f"{name_of(attack)} teaches the label that its poisons carry, so it changes images of the intended class "
            f"({task.train.classes[int(task.intended[0])]}); this case allows others alone (class: "
            f"{task.poison_class}), so use a threat model with poison_class='intended' or 'any'"
        )
    ranks = fitting.float()
    if scores is not None:
        ranks = torch.full(fitting.shape, -1.0, device=fitting.device)
        ranks[fitting] = scores(task.candidates[fitting]).to(ranks)
    rows = task.choose(seed, ranks)
    return rows[task.train.labels_of(rows) == task.intended[0].to(rows.device)]
