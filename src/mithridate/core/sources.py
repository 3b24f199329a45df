"""Where image data come from: digits (built in), parquet files, image folders, the Hugging Face hub, torch, arrays."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mithridate.core.data import ImageData
from mithridate.core.hub import list_hub
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
    training_home,
)
from mithridate.core.schema import Choice, resolve
from mithridate.core.seeds import stream
from mithridate.core.torch_datasets import load_pair


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
    Parquet(path='cifar10', test=None, per_class=500, size=None, cache=None)
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
    cache: str | None = None
    """Folder for a memory-mapped copy of the pixels; for sets larger than memory."""

    def __post_init__(self) -> None:
        _plain_paths(self, "path", "test", "cache")
        check_limits(self.per_class, self.size)

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        path = Path(self.path).expanduser()
        train = list_parquet(parquet_files(path, ("train",)))
        files = find_test_files(path, self.test)
        test = None if files is None else list_parquet(files, train.classes)
        return _load(train, test, self.per_class, self.size, self.cache, device)


@dataclass(frozen=True)
class Folder(DataSource):
    """A folder of images, one subfolder per class; or with `train/` and `test/` (or `val/`) that hold such subfolders.

    Without test images, a fifth of every class is test data (drawn with seed 0).

    >>> Folder("photos", size=32)
    Folder(path='photos', test=None, per_class=None, size=32, cache=None)
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
    cache: str | None = None
    """Folder for a memory-mapped copy of the pixels; for sets larger than memory."""

    def __post_init__(self) -> None:
        _plain_paths(self, "path", "test", "cache")
        check_limits(self.per_class, self.size)

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        root = Path(self.path).expanduser()
        home, test = training_home(root), None if self.test is None else Path(self.test).expanduser()
        if home != root:
            test = test or next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
        train = list_folder(home)
        tested = None if test is None else list_folder(test, train.classes)
        return _load(train, tested, self.per_class, self.size, self.cache, device)


@dataclass(frozen=True)
class Hub(DataSource):
    """A data set of the Hugging Face hub, by its name there (`owner/name`), or a local folder that `datasets` reads.

    Needs the extra `hub`. What was downloaded once is read without a network. Images are decoded by the same decoder as
    those of all other sources, so the same files have the same fingerprint.

    >>> Hub("owner/name", per_class=500).train
    'train'
    """

    name: str
    """Name on the hub, `owner/name`."""
    _: KW_ONLY
    config: str | None = None
    """Configuration, where there are several."""
    revision: str | None = None
    """Branch, tag or commit; a commit is the same for ever."""
    train: str = "train"
    """Split with training data."""
    test: str | None = None
    """Split with test data; else "test", "validation", ..., else a fifth of every class (drawn with seed 0)."""
    image: str | None = None
    """Column of the images; else `img` or `image`, else the only one that holds images."""
    label: str | None = None
    """Column of the labels; else `label`, `labels` or `fine_label`, else the only one that holds classes."""
    per_class: int | None = None
    """Keep only the first so many training images of every class; the test set stays whole."""
    size: int | None = None
    """Resize all images to size x size."""
    cache: str | None = None
    """Folder for a memory-mapped copy of the pixels; for sets larger than memory."""

    def __post_init__(self) -> None:
        _plain_paths(self, "name", "cache")
        if not self.name:
            raise ValueError("no name of a data set is given; write hub:owner/name")
        check_limits(self.per_class, self.size)

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        train, test = list_hub(
            self.name,
            config=self.config,
            revision=self.revision,
            train=self.train,
            test=self.test,
            image=self.image,
            label=self.label,
        )
        return _load(train, test, self.per_class, self.size, self.cache, device)


@dataclass(frozen=True)
class TorchDataset(DataSource):
    """Map-style torch datasets of (image, label): a function that returns the training and the test set.

    Images are PIL images, or tensors or arrays [H, W], [C, H, W] or [H, W, C] of uint8 or of floats in [0, 1]: without
    augmentation, which belongs into `Recipe.transforms`, and without normalisation, which is the first layer of the
    model. A cache is found again by the function, its source and a sample of the items; delete it where the files
    behind the dataset change.

    >>> from torch.utils.data import TensorDataset
    >>> def photos():
    ...     return tuple(TensorDataset(torch.rand(n, 3, 8, 8), torch.arange(n) % 2) for n in (20, 10))
    >>> train, test = TorchDataset(photos, classes=("cat", "dog")).load()
    >>> len(train), test.shape, test.classes
    (20, (3, 8, 8), ('cat', 'dog'))
    """

    datasets: Callable[[], Any]
    """Function without arguments that returns (train, test), or "package.module:function"."""
    _: KW_ONLY
    classes: tuple[str, ...] | None = None
    """Names of the classes; else those in `.classes` of the training set, else "0", "1", ..."""
    per_class: int | None = None
    """Keep only the first so many training images of every class; the test set stays whole."""
    size: int | None = None
    """Resize all images to size x size."""
    cache: str | None = None
    """Folder for a memory-mapped copy of the pixels; for sets larger than memory."""

    def __post_init__(self) -> None:
        _plain_paths(self, "cache")
        check_limits(self.per_class, self.size)
        if isinstance(self.datasets, str):
            object.__setattr__(self, "datasets", resolve(self.datasets))
        if not callable(self.datasets):
            raise TypeError(
                f"datasets is a {type(self.datasets).__name__}; expected a function that returns (train, test)"
            )
        object.__setattr__(self, "classes", None if self.classes is None else tuple(self.classes))

    def load(self, device: str | torch.device = "cpu") -> tuple[ImageData, ImageData]:
        train, test = load_pair(
            self.datasets, classes=self.classes, per_class=self.per_class, size=self.size, cache=self.cache
        )
        return _alike(train, test, ("the training set", "the test set"), self.cache, device)


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
    listing: Listing,
    test: Listing | None,
    per_class: int | None,
    size: int | None,
    cache: str | None,
    device: str | torch.device,
) -> tuple[ImageData, ImageData]:
    if test is None:
        train_rows, test_rows = stratified_split(listing.labels)
    else:
        train_rows, test_rows = np.arange(len(listing.labels)), np.arange(len(test.labels))
    train_data = listing.load(first_rows(listing.labels, train_rows, per_class), size, cache)
    test_data = (test or listing).load(test_rows, size, cache)
    return _alike(train_data, test_data, (listing.where, (test or listing).where), cache, device)


def _alike(
    train: ImageData, test: ImageData, where: tuple[str, str], cache: str | None, device: str | torch.device
) -> tuple[ImageData, ImageData]:
    """Both sets with the same shape, on the device.

    Raises:
        ValueError: their images differ in size.
    """
    if train.shape[1:] != test.shape[1:]:
        sides = ["{2}x{1}".format(*data.shape) for data in (train, test)]
        raise ValueError(
            f"images differ in size: {where[0]} has {sides[0]}, {where[1]} has {sides[1]} (width x height); "
            f"size={train.shape[1]} resizes all of them"
        )
    return _coloured(train, test, cache).to(device), _coloured(test, train, cache).to(device)


def _coloured(data: ImageData, other: ImageData, cache: str | None) -> ImageData:
    """Grey data beside colour data become colour; mapped ones stay where they are, each byte read three times."""
    if data.shape[0] >= other.shape[0]:
        return data
    images = data.images.expand(-1, other.shape[0], -1, -1)
    if cache is None:
        images = images.contiguous(memory_format=torch.channels_last)
    return ImageData(images, data.labels, data.classes, decoder=data.decoder)


def _plain_paths(source: DataSource, *names: str) -> None:
    """Makes `Path` arguments text: settings are plain values."""
    for name in names:
        value = getattr(source, name)
        object.__setattr__(source, name, None if value is None else os.fspath(value))


def source(
    text: str | os.PathLike[str],
    *,
    per_class: int | None = None,
    size: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> DataSource:
    """Decides what a text names.

    It is "digits" (built in), `hub:owner/name` or `hub:owner/name@revision`, a parquet file, a folder with parquet
    files, an image folder, or "package.module:function" for torch datasets.

    >>> source("digits")
    Digits(train=1000, seed=0)
    >>> source("hub:owner/name@v1").revision
    'v1'

    Raises:
        FileNotFoundError: no such path.
        ValueError: a file that is no parquet file, a function that cannot be imported, or a limit for digits.
    """
    text = os.fspath(text)
    limits = {"per_class": per_class, "size": size, "cache": None if cache is None else os.fspath(cache)}
    if text == "digits":
        if any(value is not None for value in limits.values()):
            raise ValueError(
                "digits takes neither per_class nor size nor cache; Digits(train=300) keeps fewer training images"
            )
        return Digits()
    if text.startswith("hub:"):
        name, _, revision = text.removeprefix("hub:").partition("@")
        return Hub(name, revision=revision or None, **limits)
    path = Path(text).expanduser()
    if not path.exists():
        if re.fullmatch(r"[\w.]+:[\w.]+", text):
            return TorchDataset(resolve(text), **limits)
        hint = f"; for the Hugging Face hub write hub:{text}" if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) else ""
        raise FileNotFoundError(
            f"no data at {text!r}; looked for 'digits', a .parquet file, a folder with train*.parquet and a folder of "
            f"class folders (from {Path.cwd()}){hint}"
        )
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{path} is a file but no .parquet file; give a .parquet file or a folder")
    if path.is_file() or parquet_home(path) or any(path.glob("*.parquet")):
        return Parquet(text, **limits)
    return Folder(text, **limits)
