"""Parcel: poison as it travels between toolkits; Format: what each toolkit makes of it on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.schema import Choice
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.triggers import Trigger


class Reference(NamedTuple):
    """The clean data that a parcel is about: rows, classes and labels are those of these sets."""

    train: ImageData
    test: ImageData


@dataclass(frozen=True, eq=False)
class Parcel:
    """Poison of one case, with as much of the case as a format says.

    What a format does not say is None; nothing here is guessed.

    Raises:
        ValueError: If the parts do not fit together in type or number.

    >>> Parcel(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 1])).rows is None
    True
    """

    images: Tensor
    """[P, C, H, W] uint8, as they are published."""
    labels: Tensor | None = None
    """[P] int64, the labels that they are published with."""
    rows: Tensor | None = None
    """[P] int64, the training rows that they replace."""
    base: Tensor | None = None
    """[P, C, H, W] uint8, the clean images of these rows as the sender had them."""
    target_images: Tensor | None = None
    """[T, C, H, W] uint8, the test images aimed at."""
    target_rows: Tensor | None = None
    """[T] int64, their rows in the test set."""
    target_labels: Tensor | None = None
    """[T] int64, the classes that they truly have."""
    intended: Tensor | None = None
    """[T] int64, the classes that a model should give them."""
    trigger: Trigger | None = None
    """What marks test images, where it is known; only of a backdoor."""
    patch: Tensor | None = None
    """[C, h, w] float in [0, 1]: what is pasted on test images; only of a backdoor, and only where that is all."""
    place: tuple[int, int] | None = None
    """Row and column where the patch begins."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else the format said, in JSON: settings, the name of the attack."""

    def __post_init__(self) -> None:
        for name in ("images", "base", "target_images"):
            given = getattr(self, name)
            if given is not None and (given.dtype != torch.uint8 or given.ndim != 4):
                raise ValueError(f"{name} are {_described(given)}; expected uint8 [n, C, H, W]")
        for names, count in (
            (("labels", "rows", "base"), len(self.images)),
            (("target_images", "target_rows", "target_labels", "intended"), self.targets),
        ):
            for name in names:
                given = getattr(self, name)
                if given is not None and len(given) != count:
                    raise ValueError(f"{name} are {len(given)}, but there are {count} images they belong to")
                if given is not None and given.ndim == 1 and given.dtype != torch.int64:
                    raise ValueError(f"{name} are {_described(given)}; expected int64")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> int:
        """How many test images are aimed at, as far as the format says."""
        parts = (self.target_images, self.target_rows, self.target_labels, self.intended)
        return next((len(part) for part in parts if part is not None), 0)

    def poison(self) -> Poison:
        """Returns what replaces which rows; rows ascend.

        Raises:
            ValueError: If the format does not say which rows, or names one twice.
        """
        if self.rows is None:
            raise ValueError(
                "this format does not say which training rows the poisons replace; find them with placed()"
            )
        order = self.order()
        rows = self.rows[order]
        if (rows[1:] == rows[:-1]).any():
            raise ValueError(f"row {int(rows[1:][rows[1:] == rows[:-1]][0])} is named more than once")
        return Poison(rows, self.images[order], None if self.labels is None else self.labels[order], self.trigger)

    def order(self) -> Tensor:
        """Returns in what order the images have ascending rows, [P] int64; their own where rows are not known."""
        return torch.arange(len(self)) if self.rows is None else self.rows.argsort(stable=True)

    def with_rows(self, rows: Tensor) -> Parcel:
        """Returns the parcel with these training rows."""
        return replace(self, rows=rows)


class Format(Choice, ABC):
    """How one toolkit keeps poison on disk. Adding a file with a subclass to `poisoning/exchange/` adds the format.

    Files of others are hostile until shown otherwise: a reader never unpickles freely, bounds what it reads, and ends
    in ValueError, whatever it is given.
    """

    home: ClassVar[str] = "mithridate.poisoning.exchange"
    carries: ClassVar[frozenset[str]]
    """Fields of a parcel that come back from what was written."""

    @abstractmethod
    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        """Writes a parcel as the other toolkit expects it.

        Args:
            parcel: What is written.
            path: Folder (or file, where the format is one file) that does not exist yet, or is empty.
            data: The clean data, for formats that hold more than the poison.

        Returns:
            The files.

        Raises:
            ValueError: If the format needs what the parcel lacks; says what.
            FileExistsError: If there is something at the path.
        """

    @abstractmethod
    def read(self, path: Path, data: Reference) -> Parcel:
        """Reads what the other toolkit wrote.

        Raises:
            FileNotFoundError: Nothing there.
            ValueError: Not this format, damaged, hostile, or of other data; says which file and why.
        """

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Says by names alone whether this is likely to be of this format; opens nothing that is not JSON."""


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def new_folder(path: Path) -> None:
    """Makes a folder, for a format to write into.

    Raises:
        FileExistsError: If there is a file, or a folder that is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; name a new folder")
    path.mkdir(parents=True, exist_ok=True)
