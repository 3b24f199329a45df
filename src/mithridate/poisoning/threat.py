"""ThreatModel: what an attacker may do and wants, as a setting; `draw` makes a concrete `Task` of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mithridate.core.balls import Ball, Linf
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.poisoning.goals import Backdoor, Case, Goal, Misclassify, class_index, class_text
from mithridate.poisoning.task import Task, ThreatModelViolation

__all__ = [
    "Backdoor",
    "FixedCase",
    "Goal",
    "Misclassify",
    "PoisonClass",
    "Task",
    "ThreatModel",
    "ThreatModelViolation",
]

PoisonClass = Literal["intended", "target", "third", "any"]

_WHOSE = {
    "intended": "images of the class that the attacker intends",
    "target": "images of the class that the targets truly have",
    "third": "images of one class that is neither the targets' nor the intended one",
    "any": "images of any class",
}


@dataclass(frozen=True, kw_only=True)
class FixedCase:
    """A case given by hand instead of drawn: a benchmark's setup, or a user's own target.

    >>> FixedCase(target_rows=(7,), intended="cat")
    FixedCase(target_rows=(7,), intended='cat', poison_rows=None)
    """

    target_rows: tuple[int, ...]
    """Row ids of the test set: the images aimed at."""
    intended: str
    """Class (name, or index as text) that the model should give them."""
    poison_rows: tuple[int, ...] | None = None
    """Row ids of the training set that are changed; None: chosen from the threat model's candidates."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "intended", class_text(self.intended))
        if not self.target_rows:
            raise ValueError("target_rows is empty; name at least one row of the test set")

    def case(self, test: ImageData) -> Case:
        """Returns the case after comparing it with the test set.

        Raises:
            ValueError: If a row is not in the test set, or already has the intended class.
        """
        rows = _visible(self.target_rows, test, "target_rows", "test")
        labels, intended = test.labels_of(rows), class_index(self.intended, test.classes)
        already = rows[labels == intended]
        if len(already):
            raise ValueError(
                f"target row {int(already[0])} truly is of the intended class {test.classes[intended]!r}; "
                "intend another class"
            )
        return Case(rows, intended, tuple(labels.unique().tolist()))


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """What the attacker may change, how far, and to what end.

    >>> print(ThreatModel(budget=0.02, ball=Linf(eps=8 / 255)).describe())
    The attacker may change 2 % of the training images, images of the class that the attacker intends; every pixel
    value moves by at most 8/255 (Linf); labels stay as they are. The attacker wants one test image of one class to be
    classified as another class that the attacker intends.
    """

    budget: float = 0.01
    """Share of the training set that may be changed, a fraction in (0, 1]; rounded up to whole rows."""
    ball: Ball = Linf(eps=16 / 255)
    """How far the pixels of one row may change."""
    goal: Goal = Misclassify()
    """What the attacker wants."""
    targets: int = 1
    """Test images aimed at together (a backdoor counts its own)."""
    relabel: bool = False
    """Whether the labels of changed rows may change too."""
    poison_class: PoisonClass = "intended"
    """Whose images may change: of the intended class, the targets' class, one third class, or any."""
    case: FixedCase | None = None
    """Replaces the draw of targets (and of poison rows, where it names them)."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            hint = f"{self.budget / 100:g} for {self.budget:g} %" if self.budget > 1 else "0.01 for 1 %"
            raise ValueError(f"budget is {self.budget:g}; it is a fraction of the training set, so use {hint}")
        if self.targets < 1:
            raise ValueError(f"targets is {self.targets}; at least one test image is aimed at")
        if self.poison_class not in get_args(PoisonClass):
            known = ", ".join(get_args(PoisonClass))
            raise ValueError(f"poison_class is {self.poison_class!r}; expected one of: {known}")

    def draw(self, train: ImageData, test: ImageData, seed: int) -> Task:
        """Draws a concrete case, from named streams of `seed` and before any training.

        Raises:
            ValueError: If the two sets do not fit together, or the case needs images that are not there.
        """
        _comparable(train, test)
        case = self.goal.draw(test, self.targets, seed) if self.case is None else self.case.case(test)
        if not self.goal.triggered and len(case.target_rows) == len(test):
            raise ValueError(f"all {len(test)} test images are targets; accuracy needs test images besides them")
        candidates, name = self._candidates(train, case, seed)
        return Task(
            train=train,
            test=test,
            candidates=candidates,
            limit=self._limit(train, candidates, name),
            ball=self.ball,
            goal=self.goal,
            target_rows=case.target_rows,
            intended=torch.full_like(case.target_rows, case.intended),
            relabel=self.relabel,
            poison_class=name,
        )

    def describe(self) -> str:
        """Says in words what the attacker may do and wants."""
        fixed = self.case is not None and self.case.poison_rows is not None
        whose = "the rows that the case names" if fixed else _WHOSE[self.poison_class]
        labels = "labels of changed images may change too" if self.relabel else "labels stay as they are"
        targets = self.targets if self.case is None else len(self.case.target_rows)
        return (
            f"The attacker may change {self.budget * 100:.4g} % of the training images, {whose}; "
            f"{self.ball.describe()}; {labels}. The attacker wants {self.goal.describe(targets)}."
        )

    def _candidates(self, train: ImageData, case: Case, seed: int) -> tuple[Tensor, str]:
        """Row ids [n] that may be changed, sorted, and the name of their class."""
        if self.case is not None and self.case.poison_rows is not None:
            rows = _visible(self.case.poison_rows, train, "poison_rows", "training").unique()
        else:
            rows, classes = train.ids.sort().values, self._classes(len(train.classes), case, seed)
            if classes is not None:
                labels = train.labels_of(rows)
                rows = rows[torch.isin(labels, torch.tensor(classes, device=labels.device))]
        found = train.labels_of(rows).unique().tolist()
        return rows, train.classes[found[0]] if len(found) == 1 else "any"

    def _classes(self, count: int, case: Case, seed: int) -> tuple[int, ...] | None:
        """Classes whose rows may be changed; None for all."""
        third = [c for c in range(count) if c != case.intended and c not in case.sources]
        if self.poison_class == "third" and not third:
            raise ValueError("poison_class is 'third', but every class is a target's or the intended one; use 'any'")
        drawn = int(torch.randint(max(1, len(third)), (1,), generator=stream(seed, "threat", "third")))
        whose = {
            "intended": (case.intended,),
            "target": case.sources,
            "third": (*third[drawn : drawn + 1],),
            "any": None,
        }
        return whose[self.poison_class]

    def _limit(self, train: ImageData, candidates: Tensor, name: str) -> int:
        limit = math.ceil(round(self.budget * len(train), 6))  # 0.07 * 100 is 7.000000000000001
        if not limit:
            raise ValueError(
                f"budget {self.budget:g} of {len(train)} training images is 0 rows; use at least {1 / len(train):.2g}"
            )
        if self.case is not None and self.case.poison_rows is not None:
            if len(candidates) > limit:
                raise ValueError(
                    f"poison_rows names {len(candidates)} rows, but budget {self.budget:g} of {len(train)} training "
                    f"images is {limit}; use a budget of at least {len(candidates) / len(train):.6g}"
                )
            return len(candidates)
        if len(candidates) < limit:
            raise ValueError(
                f"budget {self.budget:g} of {len(train)} training images is {limit} poisons, but only "
                f"{len(candidates)} images (class: {name}) may be changed; use a budget of at most "
                f"{math.floor(len(candidates) / len(train) * 1e6) / 1e6:g}"
            )
        return limit


def _comparable(train: ImageData, test: ImageData) -> None:
    if train.classes != test.classes:
        raise ValueError(
            f"training classes {train.classes} and test classes {test.classes} differ; they must be the same"
        )
    if train.shape != test.shape:
        raise ValueError(
            f"training images are {train.shape} and test images {test.shape}; they must be the same (C, H, W)"
        )
    present = train.labels_of(train.ids).unique() if len(train) else ()
    if len(present) < 2:
        raise ValueError(f"the training set holds {len(present)} class; an attack needs at least two")


def _visible(rows: tuple[int, ...], data: ImageData, name: str, whose: str) -> Tensor:
    """The rows as a tensor, after making sure that `data` has them."""
    wanted = torch.tensor(rows, dtype=torch.int64, device=data.ids.device)
    absent = wanted[~torch.isin(wanted, data.ids)]
    if len(absent):
        raise ValueError(f"{name}: row {int(absent[0])} is not in the {whose} set of {len(data)} images")
    return wanted
