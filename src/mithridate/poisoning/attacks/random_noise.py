"""Random noise: the control that an attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.triggers import PatchTrigger, Trigger


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """Change as many rows as an attack may change, as strongly as the ball allows, but at random.

    They are the rows that an attack without a choice of its own changes, of whatever classes the threat model allows.
    Under a backdoor the trigger is put on test images only, never on training images; labels become the intended one
    where the threat model relabels. What is left of the success is not the work of an optimised poison.

    Reference: control of Schwarzschild, Goldblum, Gupta, Dickerson, Goldstein. "Just How Toxic is Data Poisoning?
    A Unified Benchmark for Backdoor and Data Poisoning Attacks". ICML 2021. arXiv 2006.12557. Deviations: none.

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> task = ThreatModel(budget=0.1).draw(train, test, seed=0)
    >>> task.check(poison := RandomNoise().craft(task, Recipe(), seed=0))
    >>> len(poison)
    10
    """

    trigger: Trigger = PatchTrigger()
    """What test images carry under a backdoor; unused otherwise."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        rows = task.choose(seed)
        base = task.images(rows)
        images = task.ball.rounded(base, task.ball.sample(base, stream(seed, "craft")))
        labels = task.taught(rows) if task.relabel else None
        return Poison(rows, images, labels, self.trigger if task.goal.triggered else None)
