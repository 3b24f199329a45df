"""Where image data come from: digits (built in), parquet files in Hugging Face layout, image folders, arrays."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mithridate.core.data import ImageData
from mithridate.core.listings import (
    TEST_NAMES,
    Listing,
    check_limits,
    find_test_files,
    first_rows,
    list_folder,
    list_parquet,
    parquet_files,
    parquet_home,
    stratified_split,
    subfolders,
)
from mithridate.core.schema import Choice
from mithridate.core.seeds import stream


class DataSource(Choice, ABC):
    """Where a training and a test set come from: a setting, so that a result says what it was made with.

    >>> from mithridate.core.schema import parse
    >>> parse(DataSource, "digits:train=300")
    Digits(train=300, seed=0)
    """

    @abstractmethod
    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        """Returns training and test data, of the same classes and shape, on a device."""


@dataclass(frozen=True)
class Digits(DataSource):
    """The 1,797 handwritten digits (8 x 8, grey) that come with scikit-learn, split by a seeded permutation.

    Reference: Alpaydin, Kaynak. "Optical Recognition of Handwritten Digits". UCI Machine Learning Repository, 1998.

    >>> train, test = Digits(train=1000).load()
    >>> len(train), len(test), train.shape
    (1000, 797, (1, 8, 8))
    """

    train: int = 1000
    """Training images; the others are test images."""
    seed: int = 0
    """Draws which."""

    def __post_init__(self) -> None:
        if not 2 <= self.train <= 1795:
            raise ValueError(f"train is {self.train}; digits has 1797 images, so keep 2 to 1795 of them for training")

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        from sklearn.datasets import load_digits

        ink, digit = load_digits(return_X_y=True)
        images = torch.from_numpy(np.rint(ink * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
        labels = torch.from_numpy(digit.astype(np.int64))
        order = torch.randperm(len(labels), generator=stream(self.seed, "digits"))
        classes = tuple(str(name) for name in range(10))
        parts = (order[: self.train], order[self.train :])
        train, test = (ImageData(images[part], labels[part], classes).to(device) for part in parts)
        return train, test


@dataclass(frozen=True)
class Parquet(DataSource):
    """Parquet files in Hugging Face layout: columns `img` or `image` and `label`, as `read_parquet` reads them.

    A folder is searched for train*.parquet, also in data/ or in its only other subfolder, in several shards. Test data
    are `test`, else test*.parquet or validation*.parquet beside the training files, else a fifth of every class of the
    training files (drawn with seed 0).

    >>> Parquet("cifar10", per_class=500)
    Parquet(path='cifar10', test=None, per_class=500, size=None)
    """

    path: str
    """A folder, or the training file."""
    _: KW_ONLY
    test: str | None = None
    """A file or folder with test data."""
    per_class: int | None = None
    """Keep only the first so many training images of every class; the test set stays whole."""
    size: int | None = None
    """Resize all images to size x size."""

    def __post_init__(self) -> None:
        _plain_paths(self)
        check_limits(self.per_class, self.size)

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        path = Path(self.path).expanduser()
        train = list_parquet(parquet_files(path, ("train",)))
        files = find_test_files(path, self.test)
        test = None if files is None else list_parquet(files, train.classes)
        return _load(train, test, self.per_class, self.size, device)


@dataclass(frozen=True)
class Folder(DataSource):
    """A folder of images, one subfolder per class; or with `train/` and `test/` (or `val/`) that hold such subfolders.

    Without test images, a fifth of every class is test data (drawn with seed 0).

    >>> Folder("photos", size=32)
    Folder(path='photos', test=None, per_class=None, size=32)
    """

    path: str
    """The folder."""
    _: KW_ONLY
    test: str | None = None
    """A folder of class folders with test data."""
    per_class: int | None = None
    """Keep only the first so many training images of every class; the test set stays whole."""
    size: int | None = None
    """Resize all images to size x size."""

    def __post_init__(self) -> None:
        _plain_paths(self)
        check_limits(self.per_class, self.size)

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        root = Path(self.path).expanduser()
        home, test = root, None if self.test is None else Path(self.test).expanduser()
        if (root / "train").is_dir() and subfolders(root / "train"):
            home = root / "train"
            test = test or next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
        train = list_folder(home)
        return _load(
            train, None if test is None else list_folder(test, train.classes), self.per_class, self.size, device
        )


@dataclass(frozen=True, eq=False)
class Arrays(DataSource):
    """Data in memory. Written down as their fingerprints, so results can be resumed only where they are given again.

    >>> data = ImageData.from_arrays(np.zeros((4, 8, 8)), [0, 1, 0, 1])
    >>> Arrays(data, data).load()[1] is data
    True

    Raises:
        ValueError: training and test data of different classes or shapes.
    """

    train: ImageData
    test: ImageData

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes or self.train.shape != self.test.shape:
            seen = [
                f"{list(d.shape)} of {len(d.classes)} classes ({', '.join(d.classes)})" for d in (self.train, self.test)
            ]
            raise ValueError(
                f"training images are {seen[0]}, test images {seen[1]}; both need the same classes and shape"
            )

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        return self.train.to(device), self.test.to(device)

    def json_settings(self) -> dict[str, str]:
        """What is written down in place of the pixels; "<" marks what no other process can read back."""
        return {"train": f"<in memory {self.train.fingerprint()}>", "test": f"<in memory {self.test.fingerprint()}>"}

    @classmethod
    def from_json_settings(cls, settings: dict[str, Any]) -> Arrays:
        """Always an error: a fingerprint is not enough to bring data back."""
        raise ValueError(f"these results were made with arrays in memory ({settings}); pass the same arrays again")


def _load(
    listing: Listing, test: Listing | None, per_class: int | None, size: int | None, device: str | torch.device
) -> tuple[ImageData, ImageData]:
    if test is None:
        train_rows, test_rows = stratified_split(listing.labels)
    else:
        train_rows, test_rows = np.arange(len(listing.labels)), np.arange(len(test.labels))
    train_data = listing.load(first_rows(listing.labels, train_rows, per_class), size)
    test_data = (test or listing).load(test_rows, size)
    if train_data.shape[1:] != test_data.shape[1:]:
        sides = ["{2}x{1}".format(*data.shape) for data in (train_data, test_data)]
        raise ValueError(
            f"images differ in size: {listing.where} has {sides[0]}, {(test or listing).where} has {sides[1]} (width x "
            f"height); size={train_data.shape[1]} resizes all of them"
        )
    return _coloured(train_data, test_data).to(device), _coloured(test_data, train_data).to(device)


def _coloured(data: ImageData, other: ImageData) -> ImageData:
    """Grey data beside colour data become colour."""
    if data.shape[0] >= other.shape[0]:
        return data
    images = data.images.expand(-1, other.shape[0], -1, -1).contiguous(memory_format=torch.channels_last)
    return ImageData(images, data.labels, data.classes)


def _plain_paths(source: Parquet | Folder) -> None:
    """Makes `Path` arguments text: settings are plain values."""
    object.__setattr__(source, "path", os.fspath(source.path))
    object.__setattr__(source, "test", None if source.test is None else os.fspath(source.test))


def source(text: str | os.PathLike[str], *, per_class: int | None = None, size: int | None = None) -> DataSource:
    """Decides what a text names: "digits" (built in), a parquet file, a folder with parquet files, or an image folder.

    >>> source("digits")
    Digits(train=1000, seed=0)

    Raises:
        FileNotFoundError: no such path.
        ValueError: a file that is no parquet file, or a limit for digits.
    """
    if text == "digits":
        if per_class is not None or size is not None:
            raise ValueError("digits takes neither per_class nor size; Digits(train=300) keeps fewer training images")
        return Digits()
    path = Path(text).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {os.fspath(text)!r}; looked for 'digits', a .parquet file, a folder with train*.parquet and a "
            f"folder of class folders (from {Path.cwd()})"
        )
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{path} is a file but no .parquet file; give a .parquet file or a folder")
    if path.is_file() or parquet_home(path) or any(path.glob("*.parquet")):
        return Parquet(os.fspath(text), per_class=per_class, size=size)
    return Folder(os.fspath(text), per_class=per_class, size=size)
