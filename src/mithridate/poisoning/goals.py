"""Goals: what an attacker wants the trained model to do, and how a concrete case of it is drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mithridate.core.balls import Ball
from mithridate.core.data import ImageData
from mithridate.core.schema import Choice
from mithridate.core.seeds import stream


class Case(NamedTuple):
    """A concrete case: which test images are aimed at, and what they should become."""

    target_rows: Tensor
    """[T] int64 row ids of the test set."""
    intended: int | None
    """Class the model should give them; None where that is not one class."""
    sources: tuple[int, ...]
    """True classes that the case is about."""


class Goal(Choice, ABC):
    """What the attacker wants."""

    triggered: ClassVar[bool]
    """Whether test images are changed (by a trigger) before the model sees them."""
    aimed: ClassVar[bool]
    """Whether it is about single test images alone, so that accuracy is measured without them."""
    wrong: ClassVar[bool] = False
    """Whether any wrong answer is a success; otherwise the intended class must come out."""

    @abstractmethod
    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        """Draws a case from named streams of `seed`, before any training.

        Raises:
            ValueError: If the test set has no image the case needs.
        """

    @property
    def single(self) -> bool:
        """Whether a case intends one class for all its images."""
        return not self.wrong

    def taught(self, labels: Tensor, intended: int | None, classes: int) -> Tensor:
        """Returns the classes [P] that images of these labels [P] should get, `intended` being the case's (if any)."""
        return torch.full_like(labels, intended or 0)

    @abstractmethod
    def describe(self, targets: int) -> str:
        """Returns the goal in words, to follow "The attacker wants"."""


@dataclass(frozen=True, kw_only=True)
class Misclassify(Goal):
    """Given test images of one class should be classified as another; other test images should not suffer.

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> task = ThreatModel(goal=Misclassify()).draw(train, test, seed=0)
    >>> len(task.target_rows), bool(task.test.labels_of(task.target_rows) != task.intended)
    (1, True)
    """

    triggered: ClassVar[bool] = False
    aimed: ClassVar[bool] = True

    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        _several(test.classes)
        labels = test.labels_of(test.ids)
        missing = [name for c, name in enumerate(test.classes) if not bool((labels == c).any())]
        if missing:
            raise ValueError(
                f"no test image of class {', '.join(map(repr, missing))}: a target could not be drawn from it; "
                "add test images or name the target rows with FixedCase"
            )
        true = _uniform(len(test.classes), seed, "true class")
        intended = _other(true, len(test.classes), seed)
        pool = test.ids[labels == true]
        if len(pool) < targets:
            raise ValueError(
                f"targets is {targets}, but class {test.classes[true]!r} has {len(pool)} test images; "
                f"use at most {len(pool)}"
            )
        return Case(_subset(pool, targets, seed), intended, (true,))

    def describe(self, targets: int) -> str:
        images = "one test image" if targets == 1 else f"{targets} test images"
        return f"{images} of one class to be classified as another class that the attacker intends"


@dataclass(frozen=True, kw_only=True)
class Backdoor(Goal):
    """Any test image with the trigger on it should be classified as the intended class, or each as the class after its.

    Success is measured on triggered test images that do not belong to the intended class.

    >>> Backdoor(intended="cat").area
    0.1
    >>> Backdoor(all_to_all=True).taught(torch.tensor([0, 2]), None, classes=3).tolist()
    [1, 0]
    """

    triggered: ClassVar[bool] = True
    aimed: ClassVar[bool] = False
    intended: str | None = None
    """Class (name, or index as text) that triggered images should get; None draws it."""
    sources: str = "all"
    """Class (name, or index as text) whose test images carry the trigger; "all": every class but the intended one;
    "drawn": one class that the seed draws."""
    area: float = 0.1
    """Largest share (fraction) of the pixels of an image that the trigger may touch, freely; unused with `limit`."""
    limit: Ball | None = None
    """What the trigger may do to an image, where that is not to change some pixels freely."""
    all_to_all: bool = False
    """Whether every class should become the next one (the last the first), in place of one intended class."""
    tests: int = 1000
    """Triggered test images at most; more are a random subset."""

    def __post_init__(self) -> None:
        for name in ("intended", "sources"):
            object.__setattr__(self, name, class_text(getattr(self, name)))
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area}; it is a fraction of the image, so use for example 0.1 for 10 %")
        if self.tests < 1:
            raise ValueError(f"tests is {self.tests}; at least one triggered test image is needed")
        if self.all_to_all and (self.intended, self.sources) != (None, "all"):
            raise ValueError(
                f"all_to_all is about all classes, but intended is {self.intended!r} and sources is {self.sources!r}; "
                "leave these two out, or all_to_all"
            )

    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        _several(test.classes)
        intended, sources = self._classes(test.classes, seed)
        labels = test.labels_of(test.ids)
        pool = test.ids[torch.isin(labels, torch.tensor(sources, device=labels.device))]
        if not len(pool):
            names = ", ".join(repr(test.classes[c]) for c in sources)
            raise ValueError(f"no test image of class {names} to put the trigger on; add test images or other sources")
        return Case(_subset(pool, min(self.tests, len(pool)), seed), intended, sources)

    @property
    def single(self) -> bool:
        return not self.all_to_all

    def taught(self, labels: Tensor, intended: int | None, classes: int) -> Tensor:
        return (labels + 1) % classes if self.all_to_all else super().taught(labels, intended, classes)

    def describe(self, targets: int) -> str:
        who = {"all": "any test image", "drawn": "any test image of one class"}
        limit = f"at most {self.area:.3g} of its pixels" if self.limit is None else self.limit.describe()
        carrying = f"{who.get(self.sources, f'any test image of class {self.sources!r}')} that carries the trigger"
        becomes = "the class after its own" if self.all_to_all else "the class that the attacker intends"
        return f"{carrying} ({limit}) to be classified as {becomes}"

    def _classes(self, classes: tuple[str, ...], seed: int) -> tuple[int | None, tuple[int, ...]]:
        """The intended class, and those whose images carry the trigger."""
        if self.all_to_all:
            return None, tuple(range(len(classes)))
        if self.sources == "all":
            given = self.intended is not None
            intended = class_index(str(self.intended), classes) if given else _uniform(len(classes), seed, "intended")
            return intended, tuple(c for c in range(len(classes)) if c != intended)
        if self.sources != "drawn":
            source = class_index(self.sources, classes)
        elif self.intended is None:
            source = _uniform(len(classes), seed, "true class")
        else:
            source = _other(class_index(self.intended, classes), len(classes), seed)
        drawn = self.intended is None
        intended = _other(source, len(classes), seed) if drawn else class_index(str(self.intended), classes)
        if intended == source:
            raise ValueError(f"the source class and the intended class are both {classes[intended]!r}; use two")
        return intended, (source,)


@dataclass(frozen=True, kw_only=True)
class Availability(Goal):
    """The model should get test images wrong, whatever it takes them for: the data are useless for training.

    A success is a test image that a victim classifies wrongly, so the share without an attack is what the recipe gets
    wrong by itself. Beside it stand the accuracy at the end of training and, as stopping early helps a victim, the
    highest of all epochs.

    References: Fowl et al. "Preventing Unauthorized Use of Proprietary Data: Poisoning for Secure Dataset Release".
    2021. arXiv 2103.02683. Sandoval-Segura et al. "Poisons that are learned faster are more effective". CVPR Workshops
    2022. arXiv 2204.08615 (why the highest accuracy counts).

    >>> Availability().describe(1)
    'test images to be classified wrongly, as many as possible'
    """

    triggered: ClassVar[bool] = False
    aimed: ClassVar[bool] = False
    wrong: ClassVar[bool] = True
    tests: int = 1000
    """Test images that successes are counted on, at most; more are a random subset. Accuracy is of all of them."""

    def __post_init__(self) -> None:
        if self.tests < 1:
            raise ValueError(f"tests is {self.tests}; at least one test image is needed")

    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        _several(test.classes)
        rows = _subset(test.ids, min(self.tests, len(test)), seed)
        return Case(rows, None, tuple(test.labels_of(rows).unique().tolist()))

    def taught(self, labels: Tensor, intended: int | None, classes: int) -> Tensor:
        return labels

    def describe(self, targets: int) -> str:
        return "test images to be classified wrongly, as many as possible"


def class_text(value: Any) -> Any:
    """Turns a class index into text, the one form in which settings name a class; leaves everything else alone."""
    return str(value) if isinstance(value, int) else value


def class_index(value: str, classes: tuple[str, ...]) -> int:
    """Returns the index of a class given by name or index; a name wins over an index of the same spelling.

    >>> class_index("dog", ("cat", "dog")), class_index("0", ("cat", "dog"))
    (1, 0)

    Raises:
        ValueError: If there is no such class.
    """
    if value in classes:
        return classes.index(value)
    index = int(value) if value.isdigit() else -1
    if not 0 <= index < len(classes):
        names = ", ".join(classes[:20])
        raise ValueError(f"no class {value!r}; expected an index from 0 to {len(classes) - 1} or one of: {names}")
    return index


def _several(classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} class only ({', '.join(classes)}): an attack needs at least two classes")


def _uniform(count: int, seed: int, name: str) -> int:
    return int(torch.randint(count, (1,), generator=stream(seed, "threat", name)))


def _other(index: int, count: int, seed: int) -> int:
    """A class drawn uniformly from those that are not `index`."""
    return (index + 1 + _uniform(count - 1, seed, "intended")) % count


def _subset(pool: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the rows in `pool`, drawn without replacement, sorted."""
    order = torch.randperm(len(pool), generator=stream(seed, "threat", "targets"))[:count]
    return pool[order.to(pool.device)].sort().values
