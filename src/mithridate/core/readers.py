"""Files and objects to an image set: parquet in Hugging Face layout, folders, torch datasets, arrays of pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.listings import check_limits, first_rows, list_folder, list_parquet, parquet_files
from mithridate.core.torch_datasets import load_dataset

# --- files ---------------------------------------------------------------------------------------------------------


def read_parquet(path: str | os.PathLike[str], *, per_class: int | None = None, size: int | None = None) -> ImageData:
    """Reads one parquet file, or the training files of a folder, in Hugging Face layout.

    Images are in column `img` or `image` (bytes, or struct<bytes, path>), labels in `label`, `labels` or `fine_label`;
    class names come from the `huggingface` schema metadata, else they are "0", "1", ... Only `per_class` images of each
    class are decoded, the first ones. Without `size`, images must all have one size.

    >>> import io, tempfile, pyarrow, pyarrow.parquet
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (8, 8)).save(file, "png")
    >>> with tempfile.TemporaryDirectory() as home:
    ...     table = pyarrow.table({"image": [file.getvalue()] * 4, "label": [0, 1, 0, 1]})
    ...     pyarrow.parquet.write_table(table, f"{home}/train.parquet")
    ...     len(read_parquet(home, per_class=1))
    2

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no such column, a label that is no class, a damaged image, differing sizes.
    """
    check_limits(per_class, size)
    listing = list_parquet(parquet_files(Path(path).expanduser(), ("train",)))
    return listing.load(first_rows(listing.labels, np.arange(len(listing.labels)), per_class), size)


def read_folder(path: str | os.PathLike[str], *, per_class: int | None = None, size: int | None = None) -> ImageData:
    """Reads a folder with one subfolder of images per class; classes and images are in the order of their names.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as home:
    ...     for name in ("dog", "cat"):
    ...         (Path(home) / name).mkdir()
    ...         Image.new("L", (8, 8)).save(f"{home}/{name}/1.png")
    ...     read_folder(home).classes
    ('cat', 'dog')

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, one class only, a damaged image, differing sizes without `size`.
    """
    check_limits(per_class, size)
    listing = list_folder(Path(path).expanduser())
    return listing.load(first_rows(listing.labels, np.arange(len(listing.labels)), per_class), size)


# --- torch datasets --------------------------------------------------------------------------------------------------


def read_dataset(dataset: Any, classes: Sequence[str] | None = None, *, size: int | None = None) -> ImageData:
    """Reads every item of a map-style torch `Dataset` of (image, label) once, in order.

    Images are PIL images, or tensors or arrays [H, W], [C, H, W] or [H, W, C] of uint8 or of floats in [0, 1]. Without
    `classes`, their names are `dataset.classes`, else "0", "1", ... up to the largest label.

    >>> from torch.utils.data import TensorDataset
    >>> read_dataset(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))).shape
    (3, 8, 8)

    Raises:
        TypeError: a dataset without length or positions, such as one that streams.
        ValueError: items that differ each time they are read, no pairs, pixels outside [0, 1], differing sizes without
            `size`, labels that are no classes.
    """
    return load_dataset(dataset, type(dataset).__name__, classes=classes, size=size)


# --- arrays ----------------------------------------------------------------------------------------------------------


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype == object or array.dtype.kind in "USM":
        raise ValueError(f"an array of {array.dtype} is no array of numbers")
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    with warnings.catch_warnings():  # a read-only memory map: torch warns of writing to it, and nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _channelsfirst(images: Tensor) -> Tensor:
    """Views [N, H, W] and [N, H, W, C] as [N, C, H, W]; C is 1 or 3."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first and not last:
            return images
        if last and not first:
            return images.permute(0, 3, 1, 2)
    raise ValueError(
        f"images have shape {list(images.shape)}; expected [N, H, W], [N, H, W, C] or [N, C, H, W], with C 1 or 3 and "
        "no side of that length (drop an alpha channel; ImageData(...) itself takes any [N, C, H, W])"
    )


def _eight_bit(images: Tensor) -> Tensor:
    """Rounds floats in [0, 1] to uint8; uint8 is returned as given."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected uint8 in 0..255 or floats in [0, 1]; convert them first")
    bad = ~((images >= 0) & (images <= 1))  # true for NaN as well
    if bad.any():
        position = tuple(bad.nonzero()[0].tolist())
        values = images[~images.isnan()]
        advice = "remove or repair these images" if bool(images.isnan().any()) else "scale them to [0, 1]"
        if len(values) and 1 < values.max() <= 255 and values.min() >= 0:
            advice = "they look like 0..255: divide by 255"
        raise ValueError(
            f"{int(bad.sum())} of {images.numel()} pixel values are not in [0, 1], {int(images.isnan().sum())} of them "
            f"NaN; the first is images[{', '.join(map(str, position))}] = {images[position].item():g}; {advice}"
        )
    return (images.to(torch.float32) * 255).round().to(torch.uint8)


def from_arrays(
    images: Tensor | np.ndarray, labels: Tensor | Sequence[int] | np.ndarray, classes: Sequence[str] | None = None
) -> ImageData:
    """Builds a set from numpy arrays or tensors: uint8, or floats in [0, 1]; [N, H, W], [N, H, W, C] or [N, C, H, W].

    uint8 is not copied, so a memory map stays one. Without `classes`, they are called "0", "1", ... up to the largest
    label.

    >>> from_arrays(np.full((4, 8, 8), 0.5), [0, 1, 0, 1]).images[0, 0, 0, 0]
    tensor(128, dtype=torch.uint8)

    Raises:
        ValueError: another shape or type, NaN, pixels out of range, labels that are no classes, one class only.
    """
    pixels = _eight_bit(_channelsfirst(_tensor(images)))
    targets = _tensor(labels)
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise ValueError(f"labels are {targets.dtype} of shape {list(targets.shape)}; expected whole numbers [N]")
    if classes is None:
        classes = tuple(str(k) for k in range(int(targets.max()) + 1 if len(targets) else 0))
    return ImageData(pixels, targets.to(pixels.device, torch.int64), tuple(classes))
