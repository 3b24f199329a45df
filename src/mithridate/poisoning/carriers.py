"""Training images of the classes that a backdoor is about: what its trigger is tried on while poisons are crafted."""

from __future__ import annotations

import torch
from torch import Tensor

from mithridate.core.schema import name_of
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.task import Task


def source_rows(attack: Attack, task: Task) -> Tensor:
    """Returns the training rows [S] of the classes whose test images will carry the trigger.

    Args:
        attack: For messages.
        task: The case.

    Raises:
        ValueError: If the training set has none.
    """
    train, sources = task.train, task.true_labels.unique()
    rows = train.ids[torch.isin(train.labels_of(train.ids), sources.to(train.device))]
    if not len(rows):
        names = ", ".join(repr(train.classes[c]) for c in sources.tolist())
        raise ValueError(
            f"{name_of(attack)} puts its trigger on training images of the source class, but the training set has no "
            f"image of class {names}; use other sources, or add training images of it"
        )
    return rows
