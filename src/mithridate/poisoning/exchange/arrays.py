"""Numpy arrays of strangers: the header says type and size, and both are looked at before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mithridate.core.safe_images import LIMITS, check_file, refusing
from mithridate.poisoning.exchange.checks import PIECE

_DIMENSIONS = 8


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    begin: int
    """Bytes before the first value."""

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(file: BinaryIO, where: Path | str, kinds: str) -> Header:
    """Reads the header of an array.

    Args:
        file: At its beginning.
        where: For messages.
        kinds: Letters of numpy that its type may be of: `u` and `i` whole numbers, `f` floats, `b` truth values,
            `U` text.

    >>> import io
    >>> file = io.BytesIO()
    >>> np.save(file, np.zeros((2, 3)))
    >>> _ = file.seek(0)
    >>> npy_header(file, "a.npy", "f").shape
    (2, 3)

    Raises:
        ValueError: no array, one of another type (of Python objects, for example), or of odd shape.
    """
    with refusing(where):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{where} is an array file of version {version}; versions 1.0 and 2.0 are read")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject or dtype.kind not in kinds or (dtype.kind in "fiu" and dtype.itemsize > 8):
        raise ValueError(f"{where} is an array of {str(dtype)[:100]}; that is not read here")
    if len(shape) > _DIMENSIONS or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise ValueError(f"{where} has the shape {str(shape)[:200]}")
    return Header(shape, fortran, dtype, begin)


def mapped_array(path: Path, shape: tuple[int, ...], kinds: str = "uif") -> np.ndarray:
    """Maps an array file of this shape into memory, nothing unpickled; values are read when they are asked for.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no array, another type or shape, or a file that is shorter or longer than the header says.
    """
    check_file(path, LIMITS.table_bytes)
    with refusing(path), path.open("rb") as file:
        header = npy_header(file, path, kinds)
    if header.shape != shape:
        raise ValueError(f"{path} has the shape {list(header.shape)}; the data at hand want {list(shape)}")
    if path.stat().st_size != header.begin + header.size:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, its header says {header.begin + header.size:,}; get it again"
        )
    order = "F" if header.fortran else "C"
    with refusing(path):
        return np.memmap(path, header.dtype, "r", header.begin, header.shape, order)


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array in pieces of some rows, in memory.

    >>> [len(piece) for piece in pieces(np.zeros(1500))]
    [1024, 476]
    """
    for start in range(0, len(array), PIECE):
        yield np.array(array[start : start + PIECE])


def whole_numbers(values: np.ndarray, where: Path | str, what: str, low: int, high: int) -> Tensor:
    """Returns numbers as int64 after checking that they are whole and in low..high.

    >>> whole_numbers(np.array([1.0, 2.0]), "a.npy", "labels", 0, 9)
    tensor([1, 2])

    Raises:
        ValueError: They are not; names one.
    """
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= low) & (values <= high)) | (values != np.floor(values))  # true for NaN as well
    if wrong.any():
        found = values[wrong].flat[0]
        raise ValueError(f"{where}: {what} hold {found:g}; expected whole numbers in {low}..{high}")
    return torch.from_numpy(values.astype(np.int64))
