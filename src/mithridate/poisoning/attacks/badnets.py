"""BadNets: put the trigger on training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mithridate.core.balls import Patch
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger, Trigger, carried


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Put a trigger on some training images and, unless `clean_label`, give them the label that it should call for.

    Any trigger will do: a patch, a picture of the user's own, a blended pattern (the attack "Blended") or a warp
    ("WaNet" without its noise mode, in which the attacker runs the training).

    The dirty-label form needs a threat model with `relabel=True` and rows of other classes than the intended one; the
    clean-label form leaves labels alone and marks rows of the intended class. With the goal ``all_to_all`` every row
    gets the class after its own. No model is trained: only the trigger teaches the victim.

    Reference: Gu, Dolan-Gavitt, Garg. "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
    Chain". 2017. arXiv 1708.06733, section 4 (single target and all-to-all attack); clean-label patches as the
    baseline of Turner, Tsipras, Madry. "Label-Consistent Backdoor Attacks". 2019. arXiv 1912.02771. Deviations: rows of
    the intended class are not marked in the dirty-label form, and poisoned rows replace their clean versions instead of
    being added.

    Raises:
        ValueError: `clean_label` and `all_to_all` together.

    >>> BadNets(all_to_all=True).assumed().goal.all_to_all
    True
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.05, goal=Backdoor(), ball=Patch(area=0.1), poison_class="any", relabel=True
    )

    trigger: Trigger = PatchTrigger()
    """What is put on the images."""
    clean_label: bool = False
    """Whether only images of the intended class are marked, so that no label changes."""
    all_to_all: bool = False
    """Whether every class should become the next one (the last the first), in place of one intended class."""

    def __post_init__(self) -> None:
        if self.clean_label and self.all_to_all:
            raise ValueError(
                "clean_label and all_to_all are both set, but an image with its own label cannot teach the class after "
                "it; leave one of them out"
            )

    def assumed(self) -> ThreatModel:
        goal = carried(self.trigger, Backdoor(all_to_all=self.all_to_all))
        found = replace(self.threat, ball=self.trigger.limit(), goal=goal)
        return replace(found, relabel=False, poison_class="intended") if self.clean_label else found

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
        if self.all_to_all and task.goal.single:
            raise TypeError(
                "badnets with all_to_all=True turns every class into the next one, but the goal intends one class; use "
                "the goal backdoor:all_to_all=true, or leave the setting out"
            )
        rows = rows_of_intended_class(self, task, seed) if self.clean_label else task.choose(seed)
        labels = task.taught(rows)
        if not self.clean_label and bool((task.train.labels_of(rows) == labels).all()):
            raise TypeError(
                "badnets relabels the images it marks as the intended class, but all that may change have that label; "
                "use poison_class='any', 'target' or 'third', or clean_label=True with relabel=False"
            )
        base = task.images(rows)
        images = task.ball.rounded(base, self.trigger(base))
        return Poison(rows, images, None if self.clean_label else labels, trigger=self.trigger)
