"""npz: everything a parcel says in one file of plain arrays, for scripts that have numpy and nothing else."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mithridate.core.safe_images import LIMITS, archive, check_file, new_place, refusing
from mithridate.poisoning.exchange.arrays import npy_header
from mithridate.poisoning.exchange.checks import known_labels, known_patch, known_rows
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference

_PIXELS = ("images", "base", "target_images")
_NUMBERS = ("labels", "rows", "target_rows", "target_labels", "intended")
_KINDS = dict.fromkeys(_PIXELS, "u") | dict.fromkeys(_NUMBERS, "ui") | {"patch": "f", "place": "ui", "notes": "U"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Npz(Format):
    """One file that `numpy.load(file)` reads with `allow_pickle=False`, which is its default.

    Arrays `images` [P, C, H, W] uint8 and, where they are known, `labels` and `rows` [P] int64, `base` [P, C, H, W]
    uint8, `target_images` [T, C, H, W] uint8, `target_rows`, `target_labels` and `intended` [T] int64, `patch`
    [C, h, w] in [0, 1], `place` (row, column) and `notes`, JSON as text.

    Trap: the channel comes first here; most plotting wants `images.transpose(0, 2, 3, 1)`.
    """

    carries: ClassVar[frozenset[str]] = frozenset(_KINDS)
    compress: bool = True
    """Whether arrays are packed; noise hardly shrinks, clean images do."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        arrays: dict[str, np.ndarray] = {}
        for name in (*_PIXELS, *_NUMBERS, "patch"):
            if (value := getattr(parcel, name)) is not None:
                arrays[name] = np.ascontiguousarray(value.detach().cpu().numpy())
        if parcel.place is not None:
            arrays["place"] = np.array(parcel.place, np.int64)
        if parcel.notes:
            arrays["notes"] = np.array(json.dumps(parcel.notes))
        if new_place(path).is_dir():
            raise FileExistsError(f"{path} is a folder; this format is one file, so name a new one")
        path.parent.mkdir(parents=True, exist_ok=True)
        how = zipfile.ZIP_DEFLATED if self.compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "x", how) as packed:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(
                    f"{name}.npy", _EPOCH
                )  # the same poison is the same file, whenever it is written
                entry.compress_type = how
                with packed.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)  # type: ignore[arg-type]
        return [path]

    def read(self, path: Path, data: Reference) -> Parcel:
        check_file(path, LIMITS.table_bytes)
        with refusing(path), path.open("rb") as file, archive(file, len(_KINDS)) as packed:
            arrays = {entry.filename[:-4]: _array(packed, entry, path, data) for entry in _entries(packed, path)}
            return _parcel(arrays, path, data)

    def recognises(self, path: Path) -> bool:
        return path.suffix.lower() == ".npz"


def _entries(packed: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    entries = packed.infolist()
    names = [entry.filename for entry in entries]
    known = {f"{name}.npy" for name in _KINDS}
    if foreign := [name for name in names if name not in known]:
        raise ValueError(f"{path} holds {foreign[0][:100]!r}; expected some of {', '.join(sorted(known))}")
    if "images.npy" not in names:
        raise ValueError(f"{path} holds no images.npy")
    return entries


def _array(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, data: Reference) -> np.ndarray:
    """Reads one array; its header says how many bytes there are, and what follows it must be as many."""
    name = entry.filename[:-4]
    where = f"{path}: {entry.filename}"
    with packed.open(entry) as file:
        header = npy_header(io.BytesIO(file.read(16384)), where, _KINDS[name])
    sizes, count = header.shape, max(len(data.train), len(data.test))
    expected = {
        "patch": sizes[:1] == data.train.shape[:1] and len(sizes) == 3,
        "place": sizes == (2,),
        "notes": not sizes,
    }
    expected |= dict.fromkeys(_PIXELS, sizes[1:] == data.train.shape)
    expected |= {numbers: len(sizes) == 1 for numbers in _NUMBERS}
    if not expected[name]:
        raise ValueError(f"{where} has the shape {list(sizes)}; images of the data are {list(data.train.shape)}")
    if name in (*_PIXELS, *_NUMBERS) and sizes[0] > count:
        raise ValueError(f"{where} has {sizes[0]:,} rows; the data at hand have {count:,}")
    most = LIMITS.file_bytes if name in ("patch", "place", "notes") else LIMITS.table_bytes
    if header.size > most or header.begin + header.size != entry.file_size:
        raise ValueError(f"{where} says it is {header.size:,} bytes of values in {entry.file_size:,} bytes")
    if name in _PIXELS and header.dtype != np.uint8:
        raise ValueError(f"{where} is {header.dtype}; expected uint8")
    with packed.open(entry) as file:
        content = file.read()  # at most file_size, and compared with its checksum
    values = np.frombuffer(content, header.dtype, offset=header.begin)
    return values.reshape(sizes, order="F" if header.fortran else "C")


def _parcel(arrays: dict[str, np.ndarray], path: Path, data: Reference) -> Parcel:
    fields: dict[str, Any] = {name: torch.tensor(arrays[name]) for name in _PIXELS if name in arrays}
    for name in _NUMBERS:
        if name in arrays:
            if arrays[name].size and int(arrays[name].max()) >= 2**62:
                raise ValueError(f"{path}: {name} hold {int(arrays[name].max())}")
            fields[name] = torch.tensor(arrays[name].astype(np.int64))
    for name in ("labels", "target_labels", "intended"):
        if name in fields:
            known_labels(fields[name], data.train, path, name)
    for name, known, what in (("rows", data.train, "training"), ("target_rows", data.test, "test")):
        if name in fields:
            known_rows(fields[name], known, path, what)
    if "place" in arrays:
        fields["place"] = tuple(arrays["place"].tolist())
    if "patch" in arrays:
        fields["patch"] = torch.tensor(arrays["patch"])
        known_patch(fields["patch"], fields.get("place", (0, 0)), data.train.shape, path)
    if "notes" in arrays:
        fields["notes"] = json.loads(str(arrays["notes"]))
        if not isinstance(fields["notes"], dict):
            raise ValueError(f"{path}: notes are no JSON object")
    return Parcel(**fields)
