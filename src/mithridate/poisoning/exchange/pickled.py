"""What formats of pickles share: lists of (image, label), row numbers, and how they are written."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.safe_images import new_place
from mithridate.core.stand_ins import EVERYTHING, Picture
from mithridate.core.unpickling import Limits, load_pickle
from mithridate.poisoning.exchange.checks import known_labels, known_rows, needed
from mithridate.poisoning.exchange.parcel import Parcel, Reference

POISONS, ROWS = "poisons.pickle", "base_indices.pickle"
_PROTOCOL = 4
"""What Python 3.4 and later reads: the peers are old."""

# --- writing ---------------------------------------------------------------------------------------------------------


class Pickler(pickle.Pickler):
    """Writes arrays as calls of `numpy.ndarray`: numpy 1 and 2 keep what they call otherwise in different modules."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, obj.dtype, bytearray(np.ascontiguousarray(obj).data))
        return NotImplemented


def write_pickles(path: Path, content: dict[str, Any]) -> list[Path]:
    """Writes one pickle for each name into a new folder.

    Raises:
        FileExistsError: Something is there.
    """
    new_place(path).mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        with (path / name).open("xb") as file:
            Pickler(file, _PROTOCOL).dump(value)
    return [path / name for name in content]


def picture(image: Tensor) -> Image.Image:
    """Returns uint8 [C, H, W] as a Pillow image, RGB or L.

    >>> picture(torch.zeros(3, 2, 5, dtype=torch.uint8)).size
    (5, 2)

    Raises:
        ValueError: Neither 1 nor 3 channels.
    """
    if len(image) not in (1, 3):
        raise ValueError(f"the images have {len(image)} channels; Pillow images have 1 or 3")
    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels)


def poison_pickles(parcel: Parcel, data: Reference) -> tuple[dict[str, Any], int]:
    """Returns the two pickles that say what replaces which rows, and the one class that all of it has.

    Raises:
        ValueError: No rows, none at all, rows or labels that are not those of the data, or poisons of several classes.
    """
    needed(parcel, "rows")
    assert parcel.rows is not None
    rows = known_rows(parcel.rows, data.train, "the poison")
    labels = data.train.labels_of(rows.to(data.train.device)).cpu() if parcel.labels is None else parcel.labels.cpu()
    classes = known_labels(labels, data.train, "the poison").unique().tolist()
    if len(classes) != 1:
        seen = f"of the classes {', '.join(map(str, classes[:5]))}" if classes else "empty"
        raise ValueError(f"the poison is {seen}; this format takes the class of the first image for the class intended")
    if parcel.intended is not None and parcel.targets and parcel.intended.unique().tolist() != classes:
        raise ValueError(
            f"targets should get class {', '.join(map(str, parcel.intended.unique().tolist()[:5]))}, but the poison is "
            f"of class {classes[0]}; in this format they are the same"
        )
    images = [picture(image) for image in parcel.images]
    return {POISONS: list(zip(images, labels.tolist(), strict=True)), ROWS: rows.tolist()}, classes[0]


def target_images(parcel: Parcel, data: Reference) -> tuple[Tensor, list[int]]:
    """Returns the test images aimed at [T, C, H, W] as the parcel has them, or by their rows, and their true classes.

    Raises:
        ValueError: The parcel does not say.
    """
    rows = None
    if parcel.target_rows is not None:
        rows = known_rows(parcel.target_rows, data.test, "the poison", "test").to(data.test.device)
    if parcel.target_images is None and rows is None:
        raise ValueError("this format needs target_images or target_rows, which the poison at hand does not say")
    images = data.test.pixels(rows).cpu() if parcel.target_images is None else parcel.target_images.cpu()  # type: ignore[arg-type]
    if parcel.target_labels is None and rows is None:
        raise ValueError("this format needs target_labels, which the poison at hand does not say")
    labels = data.test.labels_of(rows).cpu() if parcel.target_labels is None else parcel.target_labels.cpu()  # type: ignore[arg-type]
    return images, known_labels(labels, data.test, "the poison", "true class of a target").tolist()


# --- reading ---------------------------------------------------------------------------------------------------------


def limits_for(data: Reference) -> Limits:
    """Returns how much a file about these data can hold: every image once, in float64, with what is said of it.

    >>> from mithridate import Digits
    >>> limits_for(Reference(*Digits().load())).file_bytes
    19537408
    """
    count = len(data.train.images) + len(data.test.images)
    each = 8 * math.prod(data.train.shape) + 2**10
    return Limits(file_bytes=2**24 + count * each, operations=2**20 + 64 * count)


def read_pickle(file: Path, data: Reference) -> Any:
    """Reads a pickle of numbers, arrays, tensors and images."""
    return load_pickle(file, EVERYTHING, limits=limits_for(data))


def whole_number(value: Any, where: str) -> int:
    """Returns a number that may be a tensor or an array of one.

    >>> whole_number(torch.tensor(3), "a.pickle")
    3

    Raises:
        ValueError: It is no whole number.
    """
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if type(value) is not int:
        raise ValueError(f"{where} is a {type(value).__name__}; expected a whole number")
    return value


def whole_numbers(value: Any, where: str, most: int) -> list[int]:
    """Returns whole numbers of a list, an array or a tensor.

    Raises:
        ValueError: Something else, or more than `most`.
    """
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1 and len(value) <= most:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: holds a {type(value).__name__}; expected up to {most:,} whole numbers")
    if len(value) > most:
        raise ValueError(f"{where}: holds {len(value):,} numbers; expected at most {most:,}")
    return [whole_number(one, f"{where}: entry {place}") for place, one in enumerate(value)]


def labelled(entry: Any, where: str, data: ImageData) -> tuple[Tensor, int]:
    """Returns image uint8 [C, H, W] and class of a pair.

    Raises:
        ValueError: No pair of an image and a class, or an image of another size.
    """
    if not isinstance(entry, (tuple, list)) or len(entry) < 2 or not isinstance(entry[0], Picture):
        seen = f"of {len(entry)} parts" if isinstance(entry, (tuple, list)) else ""
        raise ValueError(f"{where} is a {type(entry).__name__} {seen}; expected an image and its class")
    label = known_labels(torch.tensor([whole_number(entry[1], f"{where}: its class")]), data, where)
    try:
        return entry[0].tensor(data.shape), int(label)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_poisons(path: Path, data: Reference) -> Parcel:
    """Returns images, labels and rows of the two pickles.

    Raises:
        FileNotFoundError: Not there.
        ValueError: Hostile, damaged, or of other data.
    """
    entries = read_pickle(path / POISONS, data)
    if not isinstance(entries, (list, tuple)) or not 0 < len(entries) <= len(data.train):
        seen = f"{len(entries):,} entries" if isinstance(entries, (list, tuple)) else type(entries).__name__
        raise ValueError(f"{path / POISONS} holds {seen}; expected images of a training set of {len(data.train):,}")
    pairs = [labelled(one, f"{path / POISONS}: entry {i}", data.train) for i, one in enumerate(entries)]
    rows = whole_numbers(read_pickle(path / ROWS, data), str(path / ROWS), len(data.train))
    if len(rows) != len(pairs):
        raise ValueError(f"{path / ROWS} names {len(rows):,} rows, but there are {len(pairs):,} poisons")
    return Parcel(
        torch.stack([image for image, _ in pairs]),
        torch.tensor([label for _, label in pairs]),
        known_rows(rows, data.train, path / ROWS),
    )


def one_class(parcel: Parcel) -> int | None:
    """The class of all poisons, None where they have several.

    >>> one_class(Parcel(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([1, 1])))
    1
    """
    classes: Sequence[int] = [] if parcel.labels is None else parcel.labels.unique().tolist()
    return classes[0] if len(classes) == 1 else None
