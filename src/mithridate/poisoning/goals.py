"""Goals: what an attacker wants the trained model to do, and how a concrete case of it is drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.schema import Choice
from mithridate.core.seeds import stream


class Case(NamedTuple):
    """A concrete case: which test images are aimed at, and what they should become."""

    target_rows: Tensor
    """[T] int64 row ids of the test set."""
    intended: int
    """Class the model should give them."""
    sources: tuple[int, ...]
    """True classes that the case is about."""


class Goal(Choice, ABC):
    """What the attacker wants."""

    triggered: ClassVar[bool]
    """Whether test images are changed (by a trigger) before the model sees them."""

    @abstractmethod
    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        """Draws a case from named streams of `seed`, before any training.

        Raises:
            ValueError: If the test set has no image the case needs.
        """

    @abstractmethod
    def trigger_area(self) -> float:
        """Returns the largest share (fraction) of the pixels of a test image that may change."""

    @abstractmethod
    def describe(self, targets: int) -> str:
        """Returns the goal in words, to follow "The attacker wants"."""


@dataclass(frozen=True, kw_only=True)
class Misclassify(Goal):
    """Given test images of one class should be classified as another; other test images should not suffer."""

    triggered: ClassVar[bool] = False

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

    def trigger_area(self) -> float:
        return 0.0

    def describe(self, targets: int) -> str:
        images = "one test image" if targets == 1 else f"{targets} test images"
        return f"{images} of one class to be classified as another class that the attacker intends"


@dataclass(frozen=True, kw_only=True)
class Backdoor(Goal):
    """Any test image with the trigger on it should be classified as the intended class.

    Success is measured on triggered test images that do not belong to the intended class.

    >>> Backdoor(intended="cat").area
    0.1
    """

    triggered: ClassVar[bool] = True
    intended: str | None = None
    """Class (name, or index as text) that triggered images should get; None draws it."""
    sources: str = "all"
    """Class (name, or index as text) whose test images carry the trigger; "all": every class but the intended one."""
    area: float = 0.1
    """Largest share (fraction) of the pixels of an image that the trigger may touch."""
    tests: int = 1000
    """Triggered test images at most; more are a random subset."""

    def __post_init__(self) -> None:
        for name in ("intended", "sources"):
            object.__setattr__(self, name, class_text(getattr(self, name)))
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area}; it is a fraction of the image, so use for example 0.1 for 10 %")
        if self.tests < 1:
            raise ValueError(f"tests is {self.tests}; at least one triggered test image is needed")

    def draw(self, test: ImageData, targets: int, seed: int) -> Case:
        _several(test.classes)
        source = None if self.sources == "all" else class_index(self.sources, test.classes)
        intended = self._intended(source, test.classes, seed)
        if intended == source:
            raise ValueError(f"the source class and the intended class are both {test.classes[intended]!r}; use two")
        sources = tuple(c for c in range(len(test.classes)) if c != intended) if source is None else (source,)
        labels = test.labels_of(test.ids)
        pool = test.ids[torch.isin(labels, torch.tensor(sources, device=labels.device))]
        if not len(pool):
            names = ", ".join(repr(test.classes[c]) for c in sources)
            raise ValueError(f"no test image of class {names} to put the trigger on; add test images or other sources")
        return Case(_subset(pool, min(self.tests, len(pool)), seed), intended, sources)

    def trigger_area(self) -> float:
        return self.area

    def describe(self, targets: int) -> str:
        who = "any test image" if self.sources == "all" else f"any test image of class {self.sources!r}"
        return (
            f"{who} that carries the trigger (at most {self.area:.3g} of its pixels) "
            "to be classified as the class that the attacker intends"
        )

    def _intended(self, source: int | None, classes: tuple[str, ...], seed: int) -> int:
        if self.intended is not None:
            return class_index(self.intended, classes)
        return _uniform(len(classes), seed, "intended") if source is None else _other(source, len(classes), seed)


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
