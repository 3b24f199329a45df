"""ThreatModel: what an attacker may do and wants, as a setting; `draw` makes a concrete `Task` of it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mithridate.core.balls import Ball, Linf
from mithridate.core.data import ImageData
from mithridate.core.image_files import image_files, read_images
from mithridate.core.schema import name_of
from mithridate.core.seeds import stream
from mithridate.poisoning.goals import Availability, Backdoor, Case, Goal, Misclassify, class_index, class_text
from mithridate.poisoning.task import Task, ThreatModelViolation

__all__ = [
    "Availability",
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


class Given(NamedTuple):
    """A case with the test set that its rows are of."""

    test: ImageData
    """The test set; the case's own images, if it has some, come after its rows."""
    case: Case
    files: tuple[str, ...] = ()
    """[T] the file of each target; empty where targets are rows of the test set."""


@dataclass(frozen=True, kw_only=True)
class FixedCase:
    """A case given by hand instead of drawn: a benchmark's setup, or a user's own target.

    Targets are rows of the test set, or image files of one's own: these are fitted to the shape of the data and join
    the test set as targets only, so that accuracy is measured without them.

    >>> FixedCase(target_rows=(7,), intended="cat").describe()
    "1 test image that the case names to be classified as 'cat'"
    >>> FixedCase.of("my_dog.png", intended="cat", true="dog").describe()
    "the image in my_dog.png (truly 'dog') to be classified as 'cat'"

    Raises:
        ValueError: no target, rows as well as files, a row named twice, files without their true class, or rows with.
    """

    target_rows: tuple[int, ...] = ()
    """Row ids of the test set: the images aimed at."""
    target_files: tuple[Path, ...] = ()
    """Image files, or folders of image files, in place of rows."""
    true: str | None = None
    """Class (name, or index as text) that the images in the files truly have; rows have their label."""
    intended: str
    """Class (name, or index as text) that the model should give them."""
    poison_rows: tuple[int, ...] | None = None
    """Row ids of the training set that are changed; None: chosen from the threat model's candidates."""

    def __post_init__(self) -> None:
        files = (self.target_files,) if isinstance(self.target_files, (str, os.PathLike)) else self.target_files
        object.__setattr__(self, "target_files", tuple(Path(file).expanduser() for file in files))
        object.__setattr__(self, "target_rows", tuple(self.target_rows))
        for name in ("true", "intended"):
            object.__setattr__(self, name, class_text(getattr(self, name)))
        if not self.target_rows and not self.target_files:
            raise ValueError("target_rows is empty; name at least one row of the test set, or files in target_files")
        if self.target_rows and self.target_files:
            raise ValueError("target_rows and target_files are both given; a case has the one or the other")
        if self.target_files and self.true is None:
            raise ValueError(
                f"true is not given; say which class {self._where()} truly shows (success and accuracy depend on it)"
            )
        if self.target_rows and self.true is not None:
            raise ValueError(f"true is {self.true!r}, but rows of the test set have their label; leave it out")
        if self.poison_rows is not None and not self.poison_rows:
            raise ValueError("poison_rows is empty; name the training rows that are changed, or leave the choice open")
        for name, rows in (("target_rows", self.target_rows), ("poison_rows", self.poison_rows or ())):
            if len(set(rows)) < len(rows):
                raise ValueError(f"{name} names row {max(rows, key=rows.count)} more than once; name every row once")

    @classmethod
    def of(cls, target: str, intended: str, true: str | None = None) -> FixedCase:
        """Makes a case of what people type: row numbers, or image files and folders, with commas between.

        A number is a row; a file with a number for its name is written ./17.

        >>> FixedCase.of("17,18", intended="cat").target_rows
        (17, 18)
        """
        parts = [part.strip() for part in target.split(",") if part.strip()]
        if parts and all(part.isdecimal() for part in parts):
            return cls(target_rows=tuple(map(int, parts)), intended=intended, true=true)
        whole = len(parts) > 1 and Path(target).expanduser().exists()  # a comma may be part of a name
        files = [target] if whole else parts
        return cls(target_files=tuple(map(Path, files)), intended=intended, true=true)

    def given(self, test: ImageData) -> Given:
        """Returns the case after comparing it with the test set, and reads the files it names.

        Raises:
            FileNotFoundError: A file that is not there.
            ValueError: A row that is not in the test set, a class that the data do not have, a file or folder without
                images, or targets that truly are of the intended class.
        """
        intended = class_index(self.intended, test.classes)
        if self.target_files:
            return self._from_files(test, intended)
        rows = _visible(self.target_rows, test, "target_rows", "test")
        labels = test.labels_of(rows)
        already = rows[labels == intended]
        if len(already):
            raise ValueError(
                f"target row {int(already[0])} truly is of the intended class {test.classes[intended]!r}; "
                "intend another class"
            )
        return Given(test, Case(rows, intended, tuple(labels.unique().tolist())))

    def describe(self) -> str:
        """Returns the case in words, to follow "The attacker wants"."""
        count = len(self.target_rows)
        rows = f"{count} test image{'s' * (count > 1)} that the case names"
        single = len(self.target_files) == 1 and self.target_files[0].suffix  # else a folder, or several files
        files = f"the image{'' if single else 's'} in {self._where()} (truly {self.true!r})"
        return f"{files if self.target_files else rows} to be classified as {self.intended!r}"

    def _where(self) -> str:
        return ", ".join(map(str, self.target_files))

    def _from_files(self, test: ImageData, intended: int) -> Given:
        true = class_index(str(self.true), test.classes)
        if true == intended:
            raise ValueError(
                f"{self._where()} truly is of the intended class {test.classes[intended]!r}; intend another class"
            )
        files = [file for path in self.target_files for file in image_files(path)]
        images = read_images(files, test.shape).to(test.device)
        if not test.images.is_contiguous():  # one layout for all
            images = images.contiguous(memory_format=torch.channels_last)
        rows = len(test.images) + torch.arange(len(files), device=test.device)
        larger = replace(
            test,
            images=torch.cat([test.images, images]),
            labels=torch.cat([test.labels, torch.full_like(rows, true)]),
            rows=None if test.rows is None else torch.cat([test.rows, rows]),
        )
        return Given(larger, Case(rows, intended, (true,)), tuple(map(str, files)))


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
        if not self.goal.single and (self.poison_class != "any" or self.case is not None):
            seen = f"poison_class is {self.poison_class!r}" if self.case is None else "a case with one is given"
            raise ValueError(
                f"the goal {name_of(self.goal)} intends no single class here, but {seen}; use poison_class='any' and "
                "no case"
            )

    def draw(self, train: ImageData, test: ImageData, seed: int) -> Task:
        """Draws a concrete case, from named streams of `seed` and before any training.

        Raises:
            FileNotFoundError: If the case names a file that is not there.
            ValueError: If the two sets do not fit together, or the case needs images that are not there.
        """
        _comparable(train, test)
        drawn = Given(test, self.goal.draw(test, self.targets, seed)) if self.case is None else self.case.given(test)
        test, case, files = drawn
        if self.goal.aimed and len(case.target_rows) == len(test):
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
            intended=self.goal.taught(test.labels_of(case.target_rows), case.intended, len(test.classes)),
            relabel=self.relabel,
            poison_class=name,
            target_files=files,
        )

    def describe(self) -> str:
        """Says in words what the attacker may do and wants."""
        fixed = self.case is not None and self.case.poison_rows is not None
        whose = "the rows that the case names" if fixed else _WHOSE[self.poison_class]
        labels = "labels of changed images may change too" if self.relabel else "labels stay as they are"
        case = self.case if self.goal.aimed else None
        wants = self.goal.describe(self.targets) if case is None else case.describe()
        return (
            f"The attacker may change {self.budget * 100:.4g} % of the training images, {whose}; "
            f"{self.ball.describe()}; {labels}. The attacker wants {wants}."
        )

    def _candidates(self, train: ImageData, case: Case, seed: int) -> tuple[Tensor, str]:
        """Row ids [n] that may be changed, sorted, and what their classes are called."""
        rows = train.ids.sort().values
        labels = train.labels_of(rows)
        present = labels.unique().tolist()
        if self.case is not None and self.case.poison_rows is not None:
            rows = _visible(self.case.poison_rows, train, "poison_rows", "training").sort().values
        else:
            rows = rows[torch.isin(labels, labels.new_tensor(self._classes(present, case, seed)))]
        found = train.labels_of(rows).unique().tolist()
        if not found:
            names = ", ".join(repr(train.classes[c]) for c in self._classes(present, case, seed))
            raise ValueError(
                f"poison_class is {self.poison_class!r}, but the training set has no image of class {names}; "
                "use another poison_class"
            )
        return rows, _named(found, present, train.classes)

    def _classes(self, present: list[int], case: Case, seed: int) -> list[int]:
        """Classes whose rows may be changed, of those that the training set has."""
        third = [c for c in present if c != case.intended and c not in case.sources]
        if self.poison_class == "third" and not third:
            raise ValueError("poison_class is 'third', but every class is a target's or the intended one; use 'any'")
        drawn = int(torch.randint(max(1, len(third)), (1,), generator=stream(seed, "threat", "third")))
        whose = {
            "intended": [] if case.intended is None else [case.intended],
            "target": list(case.sources),
            "third": third[drawn : drawn + 1],
            "any": present,
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


def _named(found: list[int], present: list[int], classes: tuple[str, ...]) -> str:
    """What some of the classes that are present are called: one by its name, all "any"."""
    missing = [c for c in present if c not in found]
    if len(found) == 1:
        return classes[found[0]]
    if not missing:
        return "any"
    return f"any but {classes[missing[0]]}" if len(missing) == 1 else f"{len(found)} of {len(present)} classes"


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
