"""BadNets: put the trigger on training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mithridate.core.balls import Patch
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger, Trigger


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Put a trigger on some training images and, unless `clean_label`, give them the intended label.

    The dirty-label form needs a threat model with `relabel=True` and rows of other classes than the intended one; the
    clean-label form leaves labels alone and marks rows of the intended class. No model is trained: only the trigger
    teaches the victim.

    Reference: Gu, Dolan-Gavitt, Garg. "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
    Chain". 2017. arXiv 1708.06733, section 4 (single target attack); clean-label patches as the baseline of Turner,
    Tsipras, Madry. "Label-Consistent Backdoor Attacks". 2019. arXiv 1912.02771. Deviations: rows of the intended class
    are not marked in the dirty-label form, and poisoned rows replace their clean versions instead of being added.
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.05, goal=Backdoor(), ball=Patch(area=0.1), poison_class="any", relabel=True
    )

    trigger: Trigger = PatchTrigger()
    """What is put on the images."""
    clean_label: bool = False
    """Whether only images of the intended class are marked, so that no label changes."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Marks `task.limit` rows; in the clean-label form fewer where fewer have the intended class.

        Raises:
            TypeError: another goal than a backdoor, or labels and rows that do not suit the form.
        """
        expect_goal(self, task, Backdoor)
        if self.clean_label and task.relabel:
            raise TypeError(
                "badnets with clean_label=True changes no label, but the threat model has relabel=True; use a threat "
                "model with relabel=False and poison_class='intended' (or 'any')"
            )
        if not self.clean_label and not task.relabel:
            raise TypeError(
                "badnets changes the labels of the images it marks, but the threat model has relabel=False; "
                "use relabel=True with poison_class='any', or clean_label=True with poison_class='intended'"
            )
        rows = rows_of_intended_class(self, task, seed) if self.clean_label else task.choose(seed)
        labels = task.intended[0].to(rows.device).expand(len(rows)).clone()
        if not self.clean_label and bool((task.train.labels_of(rows) == labels).all()):
            raise TypeError(
                "badnets relabels the images it marks as the intended class, but all that may change have that label; "
                "use poison_class='any', 'target' or 'third', or clean_label=True with relabel=False"
            )
        base = task.images(rows)
        images = task.ball.rounded(base, self.trigger(base))
        return Poison(rows, images, None if self.clean_label else labels.to(torch.int64), trigger=self.trigger)
