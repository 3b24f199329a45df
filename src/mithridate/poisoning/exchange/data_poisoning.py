"""Exports of the data-poisoning framework: PNG trees, arrays, packed deltas, and the table of cloud AutoML services."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mithridate.core.safe_images import new_place, refusing
from mithridate.core.stand_ins import TENSORS
from mithridate.core.unpickling import Limits, load_torch
from mithridate.poisoning.exchange import trees
from mithridate.poisoning.exchange.arrays import mapped_array, pieces, whole_numbers
from mithridate.poisoning.exchange.checks import (
    PIECE,
    Row,
    known_rows,
    parcel_of,
    poisoned_set,
)
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.pickled import limits_for

_IMAGES, _LABELS = "poisoned_training_data.npy", "poisoned_training_labels.npy"
_PACKED = "poisons_packed*.pth"

Mode = Literal["limited", "full", "numpy", "packed", "automl"]


@dataclass(frozen=True, kw_only=True)
class DataPoisoning(Format):
    """What `brew_poison.py --save MODE` writes (JonasGeiping/data-poisoning, `forest/data/kettle_base.py`, 88d929c).

    Reference: Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, "Witches' Brew: Industrial Scale Data Poisoning
    via Gradient Matching", ICLR 2021, arXiv:2009.02276.

    - `limited`: `train/<class>/<row>.png` of the poison alone, `targets/<intended class>/<test row>.png`. Also read by
      what reads ImageFolder, but that numbers classes by the order of their names and refuses empty class folders.
    - `full`: the same with all of the training set, and `test/`.
    - `numpy`: the poisoned training set as `poisoned_training_data.npy` [N, H, W, C] and
      `poisoned_training_labels.npy` [N], both of float64 with values 0, 1, ... 255: eight times as large as needed.
    - `packed`: `poisons_packed<...>.pth`, a torch file of [deltas, rows]. Deltas are those of normalised pixels, so
      they have to be multiplied by the standard deviation that the sender normalised with (the mean cancels), which the
      file does not say. Labels and targets are not kept: the sender builds them, and leaves them out.
    - `automl`: `data.csv` with lines `TRAIN,train/<row>.png,<class>` and the images, as cloud AutoML services import
      them once the paths are where the images were uploaded to; the framework itself uploads as it goes.

    What comes back beside images and rows: labels, except of `packed`; target images, their rows and intended classes
    of `limited` and `full`. In whole training sets poison are the rows that differ from the clean set.
    """

    carries: ClassVar[frozenset[str]] = frozenset({"images", "rows"})
    mode: Mode = "limited"
    """What is written; what is read is told by the names of the files, and by this where they say nothing."""
    std: str | None = None
    """Standard deviations of the channels, pixels in [0, 1], that the sender divided by, as 0.25/0.24/0.26; only for
    `packed`."""

    def __post_init__(self) -> None:
        if self.std is not None:
            _numbers(self.std)

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        if self.mode == "packed":
            return _write_packed(parcel, path, data, self.std)
        return _WRITERS[self.mode](parcel, path, data)

    def read(self, path: Path, data: Reference) -> Parcel:
        mode = next((mode for mode in get_args(Mode) if _looks_like(path, mode)), self.mode)
        with refusing(path):
            if mode == "packed":
                return _read_packed(path, data, self.std)
            return _READERS[mode](path, data)

    def recognises(self, path: Path) -> bool:
        return any(_looks_like(path, mode) for mode in get_args(Mode))


def _looks_like(path: Path, mode: Mode) -> bool:
    names = {
        "limited": ("train", "targets"),
        "full": ("train", "targets", "test"),
        "numpy": (_IMAGES, _LABELS),
        "automl": (trees.TABLE,),
    }
    try:
        if mode == "packed":
            return path.match(_PACKED) or any(path.glob(_PACKED))
        extra = mode == "limited" and (path / "test").exists()
        return not extra and all((path / name).exists() for name in names[mode])
    except OSError:
        return False


# --- arrays ----------------------------------------------------------------------------------------------------------


def _write_numpy(parcel: Parcel, path: Path, data: Reference) -> list[Path]:
    whole = poisoned_set(parcel, data.train)
    channels, height, width = whole.shape
    new_place(path).mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(path / _IMAGES, "w+", np.float64, (len(whole), height, width, channels))
    start = 0
    for rows in whole.ids.split(PIECE):
        images[start : start + len(rows)] = whole.pixels(rows).cpu().permute(0, 2, 3, 1).numpy()
        start += len(rows)
    images.flush()
    np.save(path / _LABELS, whole.labels_of(whole.ids).cpu().numpy().astype(np.float64))
    return [path / _IMAGES, path / _LABELS]


def _read_numpy(path: Path, data: Reference) -> Parcel:
    train = data.train
    channels, height, width = train.shape
    images = mapped_array(path / _IMAGES, (len(train), height, width, channels))
    given = whole_numbers(
        np.array(mapped_array(path / _LABELS, (len(train),))), path / _LABELS, "labels", 0, len(train.classes) - 1
    )

    def items() -> Iterator[Row]:
        place, rows, labels = 0, train.ids.tolist(), given.tolist()
        for piece in pieces(images):
            pixels = whole_numbers(piece, path / _IMAGES, "pixels", 0, 255).to(torch.uint8).permute(0, 3, 1, 2)
            for image in pixels:
                yield Row(rows[place], image, labels[place])
                place += 1

    return parcel_of(items(), train, path, whole=True)


# --- packed ----------------------------------------------------------------------------------------------------------


def _numbers(std: str) -> list[float]:
    try:
        found = [float(part) for part in std.split("/")]
    except ValueError:
        found = []
    if not found or not all(0 < value < 10 for value in found):
        raise ValueError(
            f"std is {std!r}; expected positive numbers with / between, one for each channel: 0.25/0.24/0.26"
        )
    return found


def _scale(std: str | None, channels: int) -> Tensor:
    """Standard deviations [C, 1, 1] in float64."""
    found = [] if std is None else _numbers(std)
    if len(found) != channels:
        raise ValueError(
            f"std is {std}; packed deltas are those of normalised pixels, so give the {channels} standard deviations "
            "that the sender normalised with (std=0.247/0.243/0.262 for CIFAR-10, for example)"
        )
    return torch.tensor(found, dtype=torch.float64)[:, None, None]


def _write_packed(parcel: Parcel, path: Path, data: Reference, std: str | None) -> list[Path]:
    poisoned_set(parcel, data.train, relabel=False)
    scale, poison = _scale(std, data.train.shape[0]), parcel.poison()
    base = data.train.pixels(poison.rows).cpu().double()
    delta = ((poison.images.cpu().double() - base) / 255 / scale).float()
    new_place(path).mkdir(parents=True, exist_ok=True)
    file = path / "poisons_packed.pth"
    torch.save([delta, poison.rows.cpu()], file)
    return [file]


def _read_packed(path: Path, data: Reference, std: str | None) -> Parcel:
    scale, train = _scale(std, data.train.shape[0]), data.train
    files = sorted(path.glob(_PACKED)) if path.is_dir() else [path]
    if len(files) != 1:
        raise FileNotFoundError(f"{path} holds {len(files)} files called {_PACKED}; name one of them")
    delta, rows = _pair(files[0], limits_for(data))
    if rows.dtype != torch.int64 or rows.ndim != 1 or len(rows) > len(train):
        raise ValueError(f"{files[0]}: rows are {rows.dtype} {list(rows.shape)}; expected int64 [P]")
    if not delta.is_floating_point() or tuple(delta.shape) != (len(rows), *train.shape):
        raise ValueError(
            f"{files[0]}: deltas are {delta.dtype} {list(delta.shape)}; expected floats {[len(rows), *train.shape]}"
        )
    rows = known_rows(rows, train, files[0])
    images = []
    for piece, ids in zip(delta.split(PIECE), rows.split(PIECE), strict=True):
        moved = train.pixels(ids).cpu().double() / 255 + piece.double() * scale
        if not bool(moved.isfinite().all()):
            raise ValueError(f"{files[0]}: deltas hold NaN or infinity")
        images.append((moved.clamp(0, 1) * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8))  # as its exporter rounds
    return Parcel(torch.cat(images) if images else torch.zeros(0, *train.shape, dtype=torch.uint8), rows=rows)


def _pair(file: Path, limits: Limits) -> list[Tensor]:
    """Deltas and rows; rows may be a list of whole numbers."""
    found = load_torch(file, TENSORS, limits=limits)
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        raise ValueError(f"{file} holds a {type(found).__name__}; expected a list of 2 tensors")
    plain = [isinstance(part, list) and all(type(value) is int for value in part) for part in found]
    tensors = [torch.tensor(part) if whole else part for part, whole in zip(found, plain, strict=True)]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(f"{file} holds something else than 2 tensors")
    return tensors


_WRITERS = {
    "limited": trees.write_poison,
    "full": trees.write_whole,
    "numpy": _write_numpy,
    "automl": trees.write_table,
}
_READERS = {"limited": trees.read_poison, "full": trees.read_whole, "numpy": _read_numpy, "automl": trees.read_table}
