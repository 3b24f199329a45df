"""Several targets for attacks whose poisons aim at one target each."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mithridate.poisoning.task import Task


def deal(task: Task, poisons: int) -> Tensor:
    """Deals the targets to so many poisons in turn: which target each one aims at, [P] int64.

    Warns where there are more targets than poisons.

    >>> from mithridate.core.sources import Digits
    >>> from mithridate.poisoning.threat import ThreatModel
    >>> deal(ThreatModel(targets=2).draw(*Digits().load(), seed=0), 5)
    tensor([0, 1, 0, 1, 0])
    """
    targets = len(task.targets)
    if poisons < targets:
        warnings.warn(
            f"{poisons} poisons for {targets} targets: each poison aims at one target, so some "
            "targets get none; use a larger budget or fewer targets",
            stacklevel=3,
        )
    return torch.arange(poisons, device=task.targets.device) % targets
