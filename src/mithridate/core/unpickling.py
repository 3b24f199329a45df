"""Pickles and torch files of strangers: plain data come out, or a ValueError, and nothing that they name is called."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from mithridate.core.pickle_machine import LIMITS, Limits, Machine, Source, check_end, finished
from mithridate.core.safe_images import archive, check_file, refusing
from mithridate.core.stand_ins import STORAGES, TENSORS, Allowed, Storage

__all__ = ["LIMITS", "Limits", "load_pickle", "load_torch"]

_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
"""What torch files began with before torch 1.6, and still do inside plain pickles."""


def load_pickle(file: Path, allowed: Allowed, *, limits: Limits = LIMITS) -> Any:
    """Reads a pickle of plain data.

    Numbers, text, bytes, lists, tuples and dictionaries are themselves. What else it names must be in `allowed`, and
    is made by the stand-in there; nothing is imported, and no method of anything is looked up.

    Args:
        file: The pickle, of protocol 0 to 5.
        allowed: From `stand_ins`: NUMPY, PICTURES, TENSORS, or several of them.
        limits: How much is read at most.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: anything else in it, damaged, too large, too deep, or containing itself; names what it asks for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.pickle")
    ...     _ = file.write_bytes(pickle.dumps([(1, "a")]))
    ...     load_pickle(file, {})
    [(1, 'a')]
    """
    check_file(file, limits.file_bytes)
    with refusing(file), file.open("rb") as stream:
        source = Source(stream, file.stat().st_size)
        steps = iter(range(limits.operations))
        if allowed.keys() >= TENSORS.keys():  # tensors of plain pickles are torch files inside them
            allowed = {**allowed, ("torch.storage", "_load_from_bytes"): partial(_inner, limits, steps)}
        found = finished(Machine(source, allowed, limits, steps=steps).run(), limits)
        check_end(source)
        return found


def load_torch(file: Path, allowed: Allowed, *, limits: Limits = LIMITS) -> Any:
    """Reads a file of `torch.save`, old or new, as `load_pickle` does; tensors are on the CPU.

    Args:
        file: The file.
        allowed: As for `load_pickle`, TENSORS among them.
        limits: How much is read at most.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: as for `load_pickle`, and parts that are packed, named twice, too many, or lead out of the file.

    >>> import tempfile, torch
    >>> from mithridate.core.stand_ins import TENSORS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save([torch.arange(3)], Path(folder, "a.pt"))
    ...     load_torch(Path(folder, "a.pt"), TENSORS)
    [tensor([0, 1, 2])]
    """
    check_file(file, limits.file_bytes)
    with refusing(file), file.open("rb") as stream:
        begin = stream.read(4)
        stream.seek(0)
        if begin != b"PK\x03\x04":
            source, steps = Source(stream, file.stat().st_size), iter(range(limits.operations))
            return finished(_legacy(source, allowed, limits, steps), limits)
        with archive(stream, limits.parts) as packed:
            home = _home(packed)
            source = Source(BytesIO(content := packed.read(f"{home}data.pkl")), len(content))
            machine = Machine(source, allowed, limits, lambda key: packed.read(f"{home}data/{key}"))
            found = finished(machine.run(), limits)
            check_end(source)
            return found


# --- torch files -----------------------------------------------------------------------------------------------------


def _home(packed: zipfile.ZipFile) -> str:
    """The folder of a torch file in which its parts are."""
    names = packed.namelist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in packed.infolist()):
        raise ValueError("has packed parts; torch.save packs nothing")
    homes = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(homes) != 1:
        raise ValueError("holds no data.pkl, so torch.save did not write it")
    order = f"{homes[0]}byteorder"
    if order in names and packed.read(order) != b"little":
        raise ValueError("holds numbers whose highest byte comes first; save it on another machine")
    return homes[0]


def _inner(limits: Limits, steps: Iterator[int], content: Any) -> Storage:
    """The values of a tensor in a plain pickle, as `torch.storage._load_from_bytes` takes them."""
    if not isinstance(content, bytes):
        raise ValueError("holds the values of a tensor as something else than bytes")
    made = _legacy(Source(BytesIO(content), len(content)), STORAGES, limits, steps)
    if not isinstance(made, Storage):
        raise ValueError("holds something else than the values of a tensor")
    return made


def _legacy(source: Source, allowed: Allowed, limits: Limits, steps: Iterator[int]) -> Any:
    """What an old torch file makes: a head, the pickle, the names of the storages, and these; stand-ins still in it."""
    if source.left < len(_LEGACY) or source.read(len(_LEGACY)) != _LEGACY:
        raise ValueError("is no file of torch.save")
    system = finished(Machine(source, {}, limits, steps=steps).run(), limits)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("holds numbers whose highest byte comes first, or does not say so")
    read: dict[str, bytes] = {}
    machine = Machine(source, allowed, limits, lambda key: read[key], steps)
    made = machine.run()
    keys = finished(Machine(source, {}, limits, steps=steps).run(), limits)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or set(machine.storages) != set(keys):
        raise ValueError("holds other storages than it names")
    for key in keys:
        (count,) = struct.unpack("<q", source.read(8))
        read[key] = source.read(count * machine.storages[key].dtype.itemsize)
    check_end(source)
    return made
