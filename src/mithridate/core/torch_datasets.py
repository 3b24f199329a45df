"""Map-style torch datasets of (image, label), whatever form their images have, as an image set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset

from mithridate.core.cache import Items, digest, mapped
from mithridate.core.data import ImageData, check_labels
from mithridate.core.decoding import DECODER, stacked, to_pixels
from mithridate.core.listings import check_limits, first_rows
from mithridate.core.progress import track
from mithridate.core.schema import to_json

_SAMPLE, _READS = 4, 3
"""Items read beforehand, and how often: a mirror image drawn with chance 1/2 is missed once in 256 data sets."""


# --- one item --------------------------------------------------------------------------------------------------------


def _pair(dataset: Any, index: int, name: str) -> tuple[Any, int]:
    """Reads an item; its label is a whole number."""
    item = dataset[index]
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise ValueError(f"{name} is a {type(item).__name__}; expected a pair (image, label)")
    image, label = item
    value = np.asarray(label)
    if value.shape != () or value.dtype.kind not in "iu":
        raise ValueError(f"{name} has the label {label!r}; expected a whole number: the number of the class")
    return image, int(value)


def item_pixels(name: str, image: Any, size: int | None = None) -> np.ndarray:
    """Turns an image of any form into uint8 [H, W, 1] (grey) or [H, W, 3].

    Args:
        name: Of the item, for messages.
        image: A PIL image; or a tensor or array [H, W], [C, H, W] or [H, W, C] of uint8, or of floats in [0, 1].
        size: Resizes to size x size (bicubic, antialiased).

    >>> item_pixels("item 0", torch.full((3, 4, 5), 0.5)).shape
    (4, 5, 3)

    Raises:
        ValueError: another form, or floats that are not in [0, 1], as after a transform that normalises.
    """
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image, size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if isinstance(image, torch.Tensor):  # numpy has no bfloat16
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    values = np.asarray(image)
    if values.dtype.kind not in "uifb":
        raise ValueError(f"{name} has an image of type {type(image).__name__}; expected a PIL image, tensor or array")
    pixels = np.ascontiguousarray(_channels_last(name, _eight_bit(name, values)))
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    return to_pixels(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), size)


def _channels_last(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3:
        first, last = values.shape[0] in (1, 3), values.shape[2] in (1, 3)
        if first != last:
            return values.transpose(1, 2, 0) if first else values
    raise ValueError(
        f"{name} has an image of shape {list(values.shape)}; expected [H, W], [C, H, W] or [H, W, C], with C 1 or 3 "
        "and no side of that length"
    )


def _eight_bit(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise ValueError(f"{name} has an image of {values.dtype}; expected uint8 in 0..255 or floats in [0, 1]")
    if not ((values >= 0) & (values <= 1)).all():  # false for NaN as well
        low, high = float(values.min()), float(values.max())
        advice = "remove Normalize from the transforms of the dataset: normalisation is the first layer of the model"
        if low != low:  # NaN
            advice = "remove or repair this image"
        elif low >= 0 and high <= 255 and high > 8:  # no normalisation comes that far
            advice = "they look like 0..255: divide by 255"
        raise ValueError(f"{name} has pixel values in {low:g}..{high:g}; expected [0, 1]; {advice}")
    return (values.astype(np.float32) * 255).round().astype(np.uint8)


# --- the set ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """A checked dataset."""

    dataset: Any
    where: str
    size: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{self.where} item {index}"

    def label(self, index: int) -> int:
        return _pair(self.dataset, index, self.name(index))[1]

    def item(self, index: int) -> tuple[str, np.ndarray, int]:
        """Name, pixels [H, W, C] and label."""
        name = self.name(index)
        image, label = _pair(self.dataset, index, name)
        return name, item_pixels(name, image, self.size), label

    def sample(self) -> str:
        """A digest of some items, which are read several times to see whether they stay the same."""
        found = []
        for index in np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(int)).tolist():
            reads = {digest([digest(pixels), pixels.shape, label]) for _, pixels, label in self._again(index)}
            if len(reads) > 1:
                raise ValueError(
                    f"{self.name(index)} differs each time it is read; random augmentation belongs into "
                    "Recipe.transforms, so remove it from the transforms of the dataset"
                )
            found += reads
        return digest(found)

    def _again(self, index: int) -> list[tuple[str, np.ndarray, int]]:
        return [self.item(index) for _ in range(_READS)]


def _reader(dataset: Any, where: str, size: int | None) -> _Reader:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"{where} is a {type(dataset).__name__}, which has no length or cannot be read by position; expected a "
            "map-style dataset (for one that streams: list(dataset), or write its images into files)"
        )
    if not len(dataset):
        raise ValueError(f"{where} is empty: 0 items; expected images of at least two classes")
    return _Reader(dataset, where, size)


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Returns the names in `dataset.classes` (of what a `Subset` is a part of, too); None: it has none.

    >>> class_names([]) is None
    True

    Raises:
        ValueError: two classes have the same name.
    """
    while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    given = getattr(dataset, "classes", None)
    if not given:
        return None
    names = tuple(", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in given)  # synonyms
    return _distinct(names, f"{type(dataset).__name__}.classes")


def _distinct(names: Sequence[str], where: str) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{where} names {', '.join(twice[:5])} more than once; give classes= with one name for each")
    return tuple(names)


def load_dataset(
    dataset: Any,
    where: str,
    *,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    size: int | None = None,
    cache: str | None = None,
    made_by: Any = None,
) -> ImageData:
    """Reads every item of a map-style dataset once, in order, into memory or into a pixel cache.

    Args:
        dataset: Has a length, and (image, label) at each position; see `item_pixels` for the images.
        where: What messages call it.
        classes: Names of the classes; else `dataset.classes`, else "0", "1", ... up to the largest label.
        per_class: Keep only the first so many images of every class, for which every label is read first.
        size: Resizes all images to size x size.
        cache: Folder of pixel caches.
        made_by: What made the dataset, as JSON values: part of the address of its cache, with a sample of its items.

    Raises:
        TypeError: no map-style dataset.
        ValueError: items that differ each time they are read, no pairs, wrong pixels or labels, differing sizes.
    """
    check_limits(per_class, size)
    reader = _reader(dataset, where, size)
    names = class_names(dataset) if classes is None else _distinct(classes, "classes")
    sample = reader.sample()

    def begin() -> tuple[int, Items]:
        rows = np.arange(len(reader)) if per_class is None else _first(reader, per_class)
        return len(rows), lambda start: (reader.item(row) for row in rows[start:].tolist())

    if cache is None:
        images, labels = _in_memory(begin)
    else:
        of = {"made by": made_by, "items": len(reader), "sample": sample, "per_class": per_class, "size": size}
        images, labels = mapped(Path(cache), of, begin)
    targets = torch.from_numpy(labels)
    known = names or tuple(str(k) for k in range(int(targets.max()) + 1))
    check_labels(targets, len(known), where)
    decoder = DECODER if isinstance(_pair(dataset, 0, reader.name(0))[0], Image.Image) else ""
    return ImageData(images, targets, known, decoder=decoder)


def load_pair(
    datasets: Callable[[], Any],
    *,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    size: int | None = None,
    cache: str | None = None,
) -> tuple[ImageData, ImageData]:
    """Calls a function that returns a training and a test set, and reads both; `per_class` is for the first.

    Raises:
        TypeError: it returns something else.
        ValueError: the two have different classes; and what `load_dataset` raises.
    """
    made_by, pair = to_json(datasets), datasets()
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise TypeError(
            f"{made_by['function']} returned a {type(pair).__name__}; expected a pair of datasets (train, test)"
        )
    names = classes or class_names(pair[0])
    theirs = None if classes else class_names(pair[1])
    if theirs is not None and theirs != names:
        raise ValueError(
            f"the training set has the classes {', '.join(names or ['(unnamed)'])}, the test set {', '.join(theirs)}; "
            "both need the same classes in the same order, or give classes= for both"
        )
    train = load_dataset(
        pair[0], "training set", classes=names, per_class=per_class, size=size, cache=cache, made_by=[made_by, "train"]
    )
    test = load_dataset(pair[1], "test set", classes=train.classes, size=size, cache=cache, made_by=[made_by, "test"])
    return train, test


def _first(reader: _Reader, per_class: int) -> np.ndarray:
    labels = np.array([reader.label(index) for index in track(range(len(reader)), "reading labels")])
    return first_rows(labels, np.arange(len(labels)), per_class)


def _in_memory(begin: Callable[[], tuple[int, Items]]) -> tuple[torch.Tensor, np.ndarray]:
    count, items = begin()
    labels: list[int] = []

    def images() -> Iterator[tuple[str, np.ndarray]]:
        for name, pixels, label in items(0):
            labels.append(label)
            yield name, pixels

    return stacked(images(), count), np.array(labels, np.int64)
