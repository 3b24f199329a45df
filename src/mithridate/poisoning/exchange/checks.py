"""What formats share: a whole poisoned training set to write, and the poison in one that was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.pixels import to_bytes, to_floats
from mithridate.poisoning.exchange.parcel import Parcel

PIECE = 1024
"""Images that are compared at a time."""


class Row(NamedTuple):
    """One training image."""

    row: int
    image: Tensor
    """[C, H, W] uint8."""
    label: int | None = None
    """None: the format has none."""
    poisoned: bool | None = None
    """Whether it is said to be poison; None: the format does not say."""
    where: str = ""
    """Its file, for messages."""


def needed(parcel: Parcel, *names: str) -> None:
    """Checks that the parcel says what a format needs.

    >>> needed(Parcel(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "images")

    Raises:
        ValueError: Names what is missing.
    """
    if missing := [name for name in names if getattr(parcel, name) is None]:
        raise ValueError(f"this format needs {', '.join(missing)}, which the poison at hand does not say")


def poisoned_set(parcel: Parcel, train: ImageData, *, relabel: bool = True) -> ImageData:
    """Returns the training set with the poison in it.

    Args:
        parcel: With rows.
        train: Clean.
        relabel: Whether the format has labels.

    Raises:
        ValueError: No rows, rows or labels that are not those of the set, or labels that the format does not have.
    """
    needed(parcel, "rows")
    poison = parcel.poison()
    known_rows(poison.rows, train, "the poison")
    whole = poison.apply(train)
    if not relabel and not torch.equal(whole.labels_of(train.ids), train.labels_of(train.ids)):
        raise ValueError("the poison has other labels than its rows, and this format has no labels; choose another one")
    return whole


def rows_of(data: ImageData) -> Iterator[Row]:
    """Yields the visible images of a set."""
    for rows in data.ids.split(PIECE):
        pixels, labels = data.pixels(rows).cpu(), data.labels_of(rows).tolist()
        for row, image, label in zip(rows.tolist(), pixels, labels, strict=True):
            yield Row(row, image, label)


def known_rows(rows: Tensor | Sequence[int], data: ImageData, where: Path | str, what: str = "training") -> Tensor:
    """Returns rows [P] as int64 after checking that each is in the set, once.

    >>> data = ImageData(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0]), ("a", "b"))
    >>> known_rows([2, 2], data, "a.csv")
    Traceback (most recent call last):
        ...
    ValueError: a.csv: training row 2 is named more than once

    Raises:
        ValueError: One is not.
    """
    if not isinstance(rows, Tensor):
        outside = [row for row in rows if not 0 <= row < 2**62]
        if outside:
            raise ValueError(f"{where}: {what} row {str(outside[0])[:40]} is not in the {what} set of {len(data):,}")
        rows = torch.tensor(rows, dtype=torch.int64)
    rows = rows.cpu().to(torch.int64)
    outside = rows[~torch.isin(rows, data.ids.cpu())]
    if len(outside):
        raise ValueError(f"{where}: {what} row {int(outside[0])} is not in the {what} set of {len(data):,}")
    values, counts = rows.unique(return_counts=True)
    if len(values) < len(rows):
        raise ValueError(f"{where}: {what} row {int(values[counts > 1][0])} is named more than once")
    return rows


def known_labels(labels: Tensor, data: ImageData, where: Path | str, what: str = "label") -> Tensor:
    """Returns labels [P] after checking that each is a class.

    >>> data = ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    >>> known_labels(torch.tensor([2]), data, "a.csv")
    Traceback (most recent call last):
        ...
    ValueError: a.csv: label 2 is none of the 2 classes

    Raises:
        ValueError: One is not.
    """
    outside = labels[(labels < 0) | (labels >= len(data.classes))]
    if len(outside):
        raise ValueError(f"{where}: {what} {int(outside[0])} is none of the {len(data.classes)} classes")
    return labels


def known_patch(patch: Tensor, place: tuple[int, int], shape: tuple[int, ...], where: Path | str) -> None:
    """Checks that a patch [C, h, w] at (row, column) lies inside images (C, H, W), with values in [0, 1].

    >>> known_patch(torch.ones(3, 2, 2), (7, 0), (3, 8, 8), "a.npz")
    Traceback (most recent call last):
        ...
    ValueError: a.npz: a patch [3, 2, 2] at row 7, column 0 leaves images [3, 8, 8]

    Raises:
        ValueError: It does not.
    """
    (row, column), (depth, high, wide), (channels, height, width) = place, patch.shape, shape
    if depth != channels or not (0 <= row <= height - high and 0 <= column <= width - wide and high and wide):
        raise ValueError(
            f"{where}: a patch {list(patch.shape)} at row {row}, column {column} leaves images {list(shape)}"
        )
    if not bool(((patch >= 0) & (patch <= 1)).all()):  # not a number is not inside either
        raise ValueError(f"{where}: values of the patch are not in [0, 1]")


def pasted(images: Tensor, parcel: Parcel) -> Tensor:
    """Returns images [T, C, H, W] uint8 with the parcel's trigger or patch on them, if it has one.

    >>> parcel = Parcel(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), patch=torch.ones(1, 1, 1), place=(1, 0))
    >>> pasted(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), parcel).tolist()
    [[[[0, 0], [255, 0]]]]

    Raises:
        ValueError: It does not say where, or not inside.
    """
    if parcel.trigger is not None:
        return to_bytes(parcel.trigger(to_floats(images)))
    if parcel.patch is None:
        return images
    needed(parcel, "place")
    assert parcel.place is not None
    known_patch(parcel.patch, parcel.place, tuple(images.shape[1:]), "the poison")
    (row, column), (_, height, width) = parcel.place, parcel.patch.shape
    images = images.clone()
    images[:, :, row : row + height, column : column + width] = to_bytes(parcel.patch.detach().cpu())
    return images


def patch_between(clean: Tensor, shown: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
    """Returns the patch [C, h, w] in [0, 1], and row and column of it, that makes `shown` of `clean` images.

    Args:
        clean: [T, C, H, W] uint8.
        shown: The same images with the patch on them.

    Returns:
        None where nothing is changed, or not by one patch at one place.

    >>> clean = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    >>> shown = clean.clone()
    >>> shown[:, :, 1:, 2] = 255
    >>> patch_between(clean, shown)[1]
    (1, 2)
    """
    changed = (shown != clean).any(0).any(0)
    if not bool(changed.any()):
        return None
    down, across = (changed.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    cut = shown[:, :, down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    return None if bool((cut != cut[:1]).any()) else (cut[0].float() / 255, (down[0], across[0]))


def parcel_of(items: Iterable[Row], train: ImageData, where: Path | str, *, whole: bool, **more: object) -> Parcel:
    """Returns the poison among training images.

    Rows that are said to be poison are; where nothing is said and the images are a whole training set, those are that
    differ from the clean set in a pixel or in the label: a poison that changes nothing cannot be told.

    Args:
        items: In any order; one at a time, so that clean ones need no memory.
        train: The clean set.
        where: For messages.
        whole: Whether the images are the whole training set, not the poison alone.
        more: Further fields of the parcel.

    Raises:
        ValueError: A row that is not in the set or comes twice, a label that is no class, a row that is said to be
            clean and is not.
    """
    seen, rows, images, labels = set(), [], [], []
    left = iter(items)
    clean = set(train.ids.tolist())
    while piece := list(_checked(islice(left, PIECE), clean, seen, train, where)):
        ids = torch.tensor([item.row for item in piece])
        found = torch.stack([item.image for item in piece])
        own = train.labels_of(ids).cpu()
        given = torch.tensor([own[i] if item.label is None else item.label for i, item in enumerate(piece)])
        differs = (train.pixels(ids).cpu() != found).flatten(1).any(1) | (own != given)
        for i, item in enumerate(piece):
            if item.poisoned is False and differs[i]:
                raise ValueError(
                    f"{item.where or where}: row {item.row} is said to be clean, but differs from the training set; "
                    "the file was changed, or the data at hand are another copy of the data set"
                )
        kept = [
            i for i, item in enumerate(piece) if item.poisoned or not whole or (item.poisoned is None and differs[i])
        ]
        rows.append(ids[kept])
        images.append(found[kept])
        if piece[0].label is not None:
            labels.append(given[kept])
    if not rows:
        rows, images = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, *train.shape, dtype=torch.uint8)]
    return Parcel(torch.cat(images), torch.cat(labels) if labels else None, torch.cat(rows), **more)  # type: ignore[arg-type]


def _checked(
    items: Iterable[Row], clean: set[int], seen: set[int], train: ImageData, where: Path | str
) -> Iterator[Row]:
    for item in items:
        place = item.where or where
        if item.row not in clean:
            raise ValueError(f"{place}: training row {str(item.row)[:40]} is not in the training set of {len(train):,}")
        if item.row in seen:
            raise ValueError(f"{place}: training row {item.row} is named more than once")
        seen.add(item.row)
        if item.label is not None and not 0 <= item.label < len(train.classes):
            raise ValueError(f"{place}: label {str(item.label)[:40]} is none of the {len(train.classes)} classes")
        yield item
