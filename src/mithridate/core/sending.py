"""Tasks for other processes: large data sets are taken out of the pickle and shared, each once for all tasks.

Pixels in memory are part of every trial on them. Pickled with each task they would be copied as often as there are
trials; so whoever runs tasks elsewhere has a place that all of them see, and a pickle holds where in it a tensor lies.
Only whole numbers are shared, which is what images, labels and row ids are: weights are floats, and training writes
into them, which must not be seen by others.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from multiprocessing import reduction
from typing import Any, BinaryIO, NamedTuple

import numpy as np

LEAST = 2**16
"""Bytes of a tensor that is shared; copying a smaller one costs nothing."""
SHARED = ("torch.uint8", "torch.int64")
"""What `ImageData` holds."""
ALIGNED = 64
"""Bytes; where arrays begin in a shelf."""
POSIX = os.name == "posix"
"""Whether an open file can be handed to a process that starts; where it cannot, a shelf stays empty."""

Share = Callable[[np.ndarray], Any]
"""Takes the bytes of a tensor, uint8 [n], to where all tasks see them; returns the place, or None: copy it."""


class Parcel(NamedTuple):
    """A task as it travels."""

    pickled: bytes
    places: list[Any]
    """Where its large tensors lie, as `Share` returned it."""


class Packer:
    """Pickles tasks; each large tensor of whole numbers is shared once, whichever tasks it is part of.

    Args:
        share: Where large tensors go.
        pickler: The pickler; another one may know how to send more.

    >>> import torch
    >>> shelf, pixels = [], torch.zeros(2**17, dtype=torch.uint8)
    >>> packer = Packer(lambda array: shelf.append(array) or len(shelf) - 1)
    >>> parcels = [packer.pack((name, pixels)) for name in "ab"]
    >>> len(shelf), max(len(parcel.pickled) for parcel in parcels) < 1000
    (1, True)
    >>> name, same = unpack(parcels[1], shelf.__getitem__)
    >>> name, torch.equal(same, pixels)
    ('b', True)
    """

    def __init__(self, share: Share, pickler: type[pickle.Pickler] = pickle.Pickler) -> None:
        self._share = share
        self._shared: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        """Place of each tensor, and the tensor: while it lives, no other has its address."""
        self._places: list[Any] = []
        stand_in = self._stand_in

        class _Pickler(pickler):
            def persistent_id(self, obj: Any) -> Any:
                return stand_in(obj)

        self._pickler = _Pickler

    def pack(self, task: Any) -> Parcel:
        """Pickles a task.

        Raises:
            pickle.PicklingError, AttributeError, TypeError: It cannot be sent.
        """
        self._places = []
        buffer = io.BytesIO()
        self._pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(task)
        return Parcel(buffer.getvalue(), self._places)

    def _stand_in(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.nbytes < LEAST or not _plain(value):
            return None
        version = 0 if value.is_inference() else value._version  # counts what was written into it since
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), version)
        if key not in self._shared:
            flat = value.detach().as_strided((value.numel(),), (1,))
            self._shared[key] = self._share(flat.view(torch.uint8).numpy()), value
        place, _ = self._shared[key]
        if place is None:
            return None
        self._places.append(place)
        return len(self._places) - 1, value.dtype, tuple(value.shape), value.stride()


def unpack(parcel: Parcel, fetch: Callable[[Any], np.ndarray]) -> Any:
    """Returns the task of a parcel.

    Args:
        parcel: Of `Packer.pack`.
        fetch: Place -> the bytes there, uint8 [n]; the tensors are views of them, so they may be read-only.
    """

    class _Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            import torch

            place, dtype, shape, stride = pid
            with warnings.catch_warnings():  # torch warns of writing to a read-only array, and nothing here writes
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                flat = torch.from_numpy(fetch(parcel.places[place]))
            return flat.view(dtype).as_strided(shape, stride)

    return _Unpickler(io.BytesIO(parcel.pickled)).load()


def check_sendable(
    function: Callable[[Any], Any], items: Iterable[Any], pickler: type[pickle.Pickler] = pickle.Pickler
) -> None:
    """Raises a ValueError that says what to do if something cannot be pickled."""
    packer = Packer(lambda array: "", pickler)
    for what, value in [("the function", function), *((f"item {i}", item) for i, item in enumerate(items))]:
        try:
            packer.pack(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{what} cannot be sent to a worker process ({error}); name your model or function as "
                "'package.module:function' instead of a lambda or a local function, or use one worker"
            ) from error


def _plain(tensor: Any) -> bool:
    """Whether a tensor is nothing but whole numbers that fill one stretch of CPU memory, in whatever order."""
    if tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided" or str(tensor.dtype) not in SHARED:
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class Shelf:
    """Arrays in a temporary file without a name, which worker processes map into their memory.

    The system frees it when the last process that has it open ends, however it ends. Who writes to what it took from
    the shelf changes a copy of its own.

    >>> with Shelf() as shelf:
    ...     place = shelf.put(np.arange(5, dtype=np.uint8))
    ...     shelf.take(place).tolist()
    [0, 1, 2, 3, 4]
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = tempfile.TemporaryFile() if file is None else file  # noqa: SIM115 (closed by close)
        self._end = 0
        self._taken: dict[tuple[int, int], np.ndarray] = {}

    def put(self, array: np.ndarray) -> tuple[int, int] | None:
        """Appends an array, uint8 [n]; returns its offset and length, None where there is no room for it."""
        if not POSIX:
            return None
        begin = at = self._end
        left = memoryview(array.data)
        with contextlib.suppress(OSError):
            while left:
                written = os.pwrite(self._file.fileno(), left, at)  # a worker shares the file position
                left, at = left[written:], at + written
            self._end = -(-at // ALIGNED) * ALIGNED
            return begin, len(array)
        return None

    def take(self, place: tuple[int, int]) -> np.ndarray:
        """Returns an array that was put, mapped into memory once per process."""
        if place not in self._taken:
            offset, length = place
            self._taken[place] = np.memmap(self._file, np.uint8, "c", offset, (length,))
        return self._taken[place]

    def close(self) -> None:
        """Closes the file here; what was taken stays."""
        self._file.close()

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Only for arguments of a process that is being started: it gets the open file."""
        return (_the_same_shelf, (reduction.DupFd(self._file.fileno()),)) if POSIX else (Shelf, ())


def _the_same_shelf(file: Any) -> Shelf:
    return Shelf(os.fdopen(file.detach(), "rb"))
