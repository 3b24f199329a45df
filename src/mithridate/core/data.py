"""A labelled image set as tensors, with an overlay of replaced rows: poison is assignment, never a copy of the set."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIECE = 2**24
"""Bytes of pixels per step of a pass over a whole set: a memory map is never read as a whole."""


def check_labels(labels: Tensor, classes: int, where: str = "labels") -> None:
    """Checks that labels are classes and that there are at least two different ones.

    >>> check_labels(torch.tensor([0, 3]), classes=3)
    Traceback (most recent call last):
        ...
    ValueError: labels: row 1 has label 3, but 3 classes allow 0..2; correct the label or name every class

    Raises:
        ValueError: a label is outside 0..classes-1 (the message names the first one), or all labels are equal.
    """
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{where}: row {row} has label {int(labels[row])}, but {classes} classes allow 0..{classes - 1}; "
            "correct the label or name every class"
        )
    if (labels == labels[0]).all():
        raise ValueError(
            f"{where}: all {len(labels)} rows have label {int(labels[0])}; classification needs images of at least two "
            "classes"
        )


def _row_ids(rows: Tensor | Sequence[int] | np.ndarray, size: int, device: torch.device) -> Tensor:
    """Returns row ids as a checked int64 tensor [n]: in 0..size-1, none twice."""
    if not isinstance(rows, Tensor):
        rows = torch.as_tensor(np.asarray(rows))
    if rows.shape == (0,):
        return torch.empty(0, dtype=torch.int64, device=device)
    if rows.dtype == torch.bool:
        raise ValueError("rows are a mask; row ids were expected: data.ids[mask] selects by mask")
    if rows.ndim != 1 or rows.is_floating_point():
        raise ValueError(f"rows are {rows.dtype} of shape {list(rows.shape)}; expected whole numbers [n]: row ids")
    rows = rows.to(device, torch.int64)
    outside = (rows < 0) | (rows >= size)
    if outside.any():
        raise ValueError(f"row {int(rows[outside][0])} does not exist; the set has rows 0..{size - 1}")
    counts = torch.bincount(rows, minlength=size)
    if (counts > 1).any():
        raise ValueError(f"row {int(counts.argmax())} is named {int(counts.max())} times; name every row once")
    return rows


def _gather(images: Tensor, rows: Tensor) -> Tensor:
    """Copies rows [B] of images [N, C, H, W], memory layout kept."""
    if images.is_contiguous():
        return images.index_select(0, rows)
    # Stored channels last: through the other view whole images are copied at once, ten times as fast.
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Patch:
    """Rows whose images and labels override those of a set.

    >>> patch = Patch(torch.tensor([2]), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]))
    >>> patch.lookup(4).tolist()
    [-1, -1, 0, -1]
    """

    rows: Tensor
    """[P] int64 row ids."""
    images: Tensor
    """[P, C, H, W] uint8."""
    labels: Tensor
    """[P] int64."""
    _lookups: dict[int, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def lookup(self, size: int) -> Tensor:
        """Returns where each of `size` rows lies in this patch, [size] int64, -1 where it does not; made once."""
        if size not in self._lookups:
            table = torch.full((size,), -1, dtype=torch.int64, device=self.rows.device)
            table[self.rows] = torch.arange(len(self.rows), device=self.rows.device)
            self._lookups[size] = table
        return self._lookups[size]

    def _to(self, device: str | torch.device) -> Patch:
        return Patch(self.rows.to(device), self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set; rows can be hidden (`select`, `drop`) or overridden (`replace`) without copying it.

    Row ids always index `images`, never the selection.

    >>> images = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
    >>> data = ImageData(images, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
    >>> poisoned = data.replace([2], torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).drop([0])
    >>> len(poisoned), poisoned.ids.tolist(), int(poisoned.pixels(torch.tensor([2])).max())
    (3, [1, 2, 3], 0)

    Raises:
        ValueError: wrong shapes or types, labels that are no classes, one class only, rows out of range or named twice.
    """

    images: Tensor
    """[N, C, H, W] uint8: device memory, host memory or a memory map; kept as given."""
    labels: Tensor
    """[N] int64 in 0..K-1, on the device of the images."""
    classes: tuple[str, ...]
    """Names of the K classes."""
    rows: Tensor | None = None
    """[n] int64 ids of the visible rows, in order; None: all of them."""
    patch: Patch | None = None
    """Rows that override `images` and `labels`."""
    decoder: str = ""
    """What decoded the image files ("pillow"); empty where pixels came as arrays."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        self._check_images(self.images, "images")
        if not len(self.images):
            raise ValueError("images are empty: 0 rows; expected images of at least two classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"two classes have the same name: {', '.join(self.classes)}; name every class once")
        self._check_labels(self.labels, len(self.images), "labels")
        check_labels(self.labels, len(self.classes))
        if self.rows is not None:
            object.__setattr__(self, "rows", _row_ids(self.rows, len(self.images), self.device))
        if self.patch is not None:
            object.__setattr__(self, "patch", self._checked(self.patch))

    def _check_images(self, images: Tensor, what: str) -> None:
        if images.dtype != torch.uint8:
            raise ValueError(
                f"{what} are {images.dtype}; expected uint8: (floats * 255).round().to(torch.uint8), or "
                "ImageData.from_arrays, which converts floats in [0, 1]"
            )
        if images.ndim != 4:
            raise ValueError(f"{what} have shape {list(images.shape)}; expected [N, C, H, W]")

    def _check_labels(self, labels: Tensor, count: int, what: str) -> None:
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise ValueError(
                f"{what} are {labels.dtype} of shape {list(labels.shape)}; expected int64 of shape [{count}], one for "
                "each image"
            )
        if labels.device != self.device:
            raise ValueError(f"{what} lie on {labels.device}, images on {self.device}; move one to the other")

    def _checked(self, patch: Patch) -> Patch | None:
        rows = _row_ids(patch.rows, len(self.images), self.device)
        self._check_images(patch.images, "replacing images")
        if patch.images.shape != (len(rows), *self.shape):
            raise ValueError(
                f"replacing images have shape {list(patch.images.shape)}; expected {[len(rows), *self.shape]}: one "
                "image of the set's shape for each row"
            )
        if not patch.rows.device == patch.images.device == self.device:
            raise ValueError(
                f"the patch does not lie on {self.device} with the images; `replace` moves what it is given"
            )
        self._check_labels(patch.labels, len(rows), "replacing labels")
        outside = (patch.labels < 0) | (patch.labels >= len(self.classes))
        if outside.any():
            raise ValueError(
                f"the new label of row {int(rows[outside][0])} is {int(patch.labels[outside][0])}; the "
                f"{len(self.classes)} classes allow 0..{len(self.classes) - 1}"
            )
        return patch if len(rows) else None

    def __len__(self) -> int:
        return len(self.images) if self.rows is None else len(self.rows)

    @functools.cached_property
    def ids(self) -> Tensor:
        """Visible row ids, [n] int64."""
        return torch.arange(len(self.images), device=self.device) if self.rows is None else self.rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def pixels(self, rows: Tensor) -> Tensor:
        """Returns images, patch applied, as uint8 [B, C, H, W] in the memory layout of the set.

        Visible or not, rows are taken as asked: no check and no waiting for the device, since training calls this for
        every batch.
        """
        rows = torch.as_tensor(rows, device=self.device)
        images = _gather(self.images, rows)
        if self.patch is None:
            return images
        where = self.patch.lookup(len(self.images)).index_select(0, rows)
        replaced = _gather(self.patch.images, where.clamp(min=0))
        # A choice by bit mask (255 where the row is replaced): torch.where is four times slower on bytes, and copying
        # only the replaced rows would have to ask the device how many there are.
        mask = (where >= 0).to(torch.uint8).neg_()[:, None, None, None]
        return images.bitwise_xor_(replaced.bitwise_xor_(images).bitwise_and_(mask))

    def floats(self, rows: Tensor) -> Tensor:
        """Returns images, patch applied, as float32 [B, C, H, W] in [0, 1] stored channels last."""
        pixels = self.pixels(rows).contiguous(memory_format=torch.channels_last)  # as bytes: a quarter of the traffic
        return pixels.to(torch.float32).div_(255)

    def labels_of(self, rows: Tensor) -> Tensor:
        """Returns the labels of rows, patch applied, as int64 [B]."""
        rows = torch.as_tensor(rows, device=self.device)
        labels = self.labels.index_select(0, rows)
        if self.patch is None:
            return labels
        where = self.patch.lookup(len(self.images)).index_select(0, rows)
        return torch.where(where >= 0, self.patch.labels.index_select(0, where.clamp(min=0)), labels)

    def pieces(self) -> Iterator[Tensor]:
        """Yields the visible row ids in pieces [n] with at most 16 MB of pixels each, for one pass over the set."""
        yield from self.ids.split(max(1, _PIECE // max(1, self.images[0].numel())))

    def _visible(self) -> Tensor:
        """A mask over all rows, [N] bool."""
        visible = torch.zeros(len(self.images), dtype=torch.bool, device=self.device)
        visible[self.ids] = True
        return visible

    def select(self, rows: Tensor | Sequence[int]) -> ImageData:
        """Shows only these rows, in this order.

        Raises:
            ValueError: a row is not visible now, does not exist, or is named twice.
        """
        rows = _row_ids(rows, len(self.images), self.device)
        hidden = ~self._visible()[rows]
        if hidden.any():
            raise ValueError(
                f"row {int(rows[hidden][0])} is not visible: an earlier select or drop hid it; select from `ids`"
            )
        return dataclasses.replace(self, rows=rows)

    def drop(self, rows: Tensor | Sequence[int]) -> ImageData:
        """Hides these rows (hidden ones stay hidden); the others keep their order.

        Raises:
            ValueError: a row does not exist or is named twice.
        """
        visible = self._visible()
        visible[_row_ids(rows, len(self.images), self.device)] = False
        return dataclasses.replace(self, rows=self.ids[visible[self.ids]])

    def replace(self, rows: Tensor | Sequence[int], images: Tensor, labels: Tensor | None = None) -> ImageData:
        """Overrides images [P, C, H, W] (uint8) and labels [P] of these rows; without labels, rows keep theirs.

        Where an earlier replacement named the same row, the later one holds. The set itself is not copied.

        Raises:
            ValueError: wrong shape or type, rows that do not exist or are named twice, labels that are no classes.
        """
        rows = _row_ids(rows, len(self.images), self.device)
        labels = self.labels_of(rows) if labels is None else labels.to(self.device)
        new = self._checked(Patch(rows, images.to(self.device), labels))
        if new is None:
            return self
        images = new.images
        if not self.images.is_contiguous():  # one layout for all: `pixels` mixes the two
            images = images.contiguous(memory_format=torch.channels_last)
        old = self.patch
        if old is not None:
            kept = ~torch.isin(old.rows, rows)
            rows = torch.cat([old.rows[kept], rows])
            images = torch.cat([old.images[kept], images])
            labels = torch.cat([old.labels[kept], labels])
        return dataclasses.replace(self, patch=Patch(rows, images, labels))

    def to(self, device: str | torch.device) -> ImageData:
        """Moves everything to a device; data that are there already are returned as they are.

        A GPU takes all images, so a memory map has to fit into its memory.
        """
        images = self.images.to(device)
        if images is self.images:
            return self
        return ImageData(
            images,
            self.labels.to(device),
            self.classes,
            None if self.rows is None else self.rows.to(device),
            None if self.patch is None else self.patch._to(device),
            self.decoder,
        )

    @functools.cached_property
    def _fingerprint(self) -> str:
        header = {"classes": self.classes, "shape": self.shape, "rows": len(self)}
        if self.decoder:  # arrays have none, and keep the fingerprint they had before there was a decoder to name
            header["decoder"] = self.decoder
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        digest.update(self.ids.cpu().numpy().astype("<i8").tobytes())
        digest.update(self.labels_of(self.ids).cpu().numpy().astype("<i8").tobytes())
        for rows in self.pieces():
            digest.update(self.pixels(rows).cpu().permute(0, 2, 3, 1).contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Returns 16 hex characters that stand for what is visible and for what decoded it.

        Visible are shape, class names, row ids, labels and pixels. Equal content of one decoder has an equal
        fingerprint, whether it came from one tensor, from a memory map or from a patch, on whatever device.
        """
        return self._fingerprint

    @classmethod
    def from_arrays(
        cls,
        images: Tensor | np.ndarray,
        labels: Tensor | Sequence[int] | np.ndarray,
        classes: Sequence[str] | None = None,
    ) -> ImageData:
        """Builds a set from arrays; see `mithridate.core.readers.from_arrays`.

        >>> ImageData.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1]).shape
        (3, 8, 8)
        """
        from mithridate.core.readers import from_arrays

        return from_arrays(images, labels, classes)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], size: int | None = None) -> ImageData:
        """Reads a folder of class folders of images; see `mithridate.core.readers.read_folder`."""
        from mithridate.core.readers import read_folder

        return read_folder(path, size=size)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str], size: int | None = None) -> ImageData:
        """Reads parquet in Hugging Face layout; see `mithridate.core.readers.read_parquet`."""
        from mithridate.core.readers import read_parquet

        return read_parquet(path, size=size)

    @classmethod
    def from_dataset(cls, dataset: Any, classes: Sequence[str] | None = None, size: int | None = None) -> ImageData:
        """Reads a map-style torch `Dataset` of (image, label); see `mithridate.core.readers.read_dataset`."""
        from mithridate.core.readers import read_dataset

        return read_dataset(dataset, classes, size=size)
