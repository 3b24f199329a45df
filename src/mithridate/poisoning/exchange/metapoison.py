"""metapoison: the whole poisoned training set in one pickle, sorted by class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.safe_images import refusing
from mithridate.core.stand_ins import NUMPY
from mithridate.core.unpickling import load_pickle
from mithridate.poisoning.exchange.arrays import whole_numbers
from mithridate.poisoning.exchange.checks import PIECE, known_labels, known_rows, needed, poisoned_set
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.pickled import limits_for, target_images, write_pickles

_FILES = "poisondataset-*.pkl"
_NEEDED = ("xtrain", "ytrain", "xtarget", "ytarget", "ytargetadv")
_ENTRIES = (*_NEEDED, "xvalid", "yvalid")
_CLEARLY = 0.5
"""How much nearer, as a share, a base has to be than any other clean image where the order of rows does not say it."""


@dataclass(frozen=True, kw_only=True)
class Metapoison(Format):
    """`poisondataset-<steps>.pkl`: a dictionary of arrays, images [N, H, W, C] with values 0 to 255.

    Written by `utils.package_poisoned_dataset` of wronnyhuang/metapoison at 298f2c0 (Huang, Geiping, Fowl, Taylor,
    Goldstein, "MetaPoison: Practical General-purpose Clean-label Data Poisoning", NeurIPS 2020, arXiv:2004.00225);
    read by `KettleExternal` of data-poisoning (88d929c) and Sleeper-Agent, and by `train_poison_epic.py
    --poisons_path FILE` of EPIC (0973f95).

    Entries: `xtrain`, `ytrain` (poisoned), `xtarget`, `ytarget` (true classes), `ytargetadv` (intended ones), `xvalid`,
    `yvalid`.

    Traps: rows are sorted by class, and in each class stay in the order of the original set, of which the file may
    have the first few of each class only; a row number of the file is none of the data. Which ones are poison the file
    does not say: they are those that differ from the clean set, and their rows are found by comparing contents, in
    any order of the clean set. Readers assume where poisons are: the README says from 25000 on, which is right for
    class 5 of CIFAR-10 alone, data-poisoning takes the whole intended class, EPIC the first 500 of it; all train on
    all of it whatever they assume. Both read the first target only. The images are floats, of poisons not whole
    numbers: they are rounded here, EPIC cuts decimals off; the note `rounded_by` says by how much of 255 they moved.
    Labels are those of the clean set.
    """

    carries: ClassVar[frozenset[str]] = frozenset(
        {"images", "labels", "rows", "target_images", "target_labels", "intended"}
    )
    steps: int = 60
    """Number in the name of the file; 60 is that of the published ones."""
    dtype: Literal["float32", "uint8"] = "float32"
    """Of the images that are written. metapoison itself writes float32, and data-poisoning needs it; EPIC reads uint8
    too, a quarter of the size."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        needed(parcel, "intended")
        assert parcel.intended is not None
        train, test = poisoned_set(parcel, data.train, relabel=False), data.test
        images, labels = target_images(parcel, data)
        content = {
            "xtrain": self._pixels(train),
            "ytrain": train.labels_of(_by_class(train)).cpu().numpy(),
            "xtarget": self._channels_last(images),
            "ytarget": np.array(labels, np.int64),
            "ytargetadv": known_labels(parcel.intended.cpu(), data.train, "the poison", "intended class").numpy(),
            "xvalid": self._pixels(test),
            "yvalid": test.labels_of(_by_class(test)).cpu().numpy(),
        }
        return write_pickles(path, {f"poisondataset-{self.steps}.pkl": content})

    def read(self, path: Path, data: Reference) -> Parcel:
        file = _found(path)
        with refusing(file):
            arrays = _arrays(load_pickle(file, NUMPY, limits=limits_for(data)), data)
            labels = arrays["ytrain"]
            rows, places = _placed(arrays["xtrain"], labels, data.train)
            images, moved = _rounded(arrays["xtrain"][places.numpy()])
            targets, more = _rounded(arrays["xtarget"])
            return Parcel(
                images,
                labels[places],
                known_rows(rows, data.train, file),
                target_images=targets,
                target_labels=arrays["ytarget"],
                intended=arrays["ytargetadv"],
                notes={"rounded_by": max(moved, more)},
            )

    def recognises(self, path: Path) -> bool:
        try:
            return path.match(_FILES) or (path.is_dir() and any(path.glob(_FILES)))
        except OSError:
            return False

    def _pixels(self, data: ImageData) -> np.ndarray:
        channels, height, width = data.shape
        found = np.empty((len(data), height, width, channels), self.dtype)
        for place in torch.arange(len(data)).split(PIECE):
            found[place.numpy()] = data.pixels(_by_class(data)[place]).cpu().permute(0, 2, 3, 1).numpy()
        return found

    def _channels_last(self, images: Tensor) -> np.ndarray:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy().astype(self.dtype))


def _by_class(data: ImageData) -> Tensor:
    """Visible rows by class, in each class in their own order."""
    return data.ids[data.labels_of(data.ids).argsort(stable=True)]


def _found(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob(_FILES))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds {len(files)} files called {_FILES}; name one of them")
        return files[0]
    return path


def _arrays(found: Any, data: Reference) -> dict[str, Any]:
    """The entries that are needed: images as arrays [N, H, W, C], classes as tensors [N]."""
    if not isinstance(found, dict) or (missing := [name for name in _NEEDED if name not in found]):
        said = f"has no {', '.join(missing)}" if isinstance(found, dict) else f"is a {type(found).__name__}"
        raise ValueError(f"{said}; expected a dictionary of {', '.join(_ENTRIES)}")
    channels, height, width = data.train.shape
    arrays: dict[str, Any] = {}
    for name in _NEEDED:
        value, known = found[name], data.test if "target" in name else data.train
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "uif" or not value.ndim:
            raise ValueError(f"{name} is no array of numbers")
        if len(value) > len(known):
            raise ValueError(f"{name} has {len(value):,} entries, the set at hand {len(known):,}")
        if name[0] == "x":
            if value.shape[1:] != (height, width, channels):
                raise ValueError(f"{name} is {list(value.shape)}; expected images [n, {height}, {width}, {channels}]")
            arrays[name] = value
        else:
            if value.shape not in ((len(value),), (len(value), 1)):
                raise ValueError(f"{name} is {list(value.shape)}; expected classes [n]")
            arrays[name] = whole_numbers(value.reshape(-1), name, "classes", 0, len(known.classes) - 1)
    for first, *others in (_NEEDED[:2], _NEEDED[2:]):
        if odd := [name for name in others if len(arrays[name]) != len(arrays[first])]:
            raise ValueError(f"{first} has {len(arrays[first]):,} entries, {odd[0]} {len(arrays[odd[0]]):,}")
    return arrays


def _rounded(values: np.ndarray) -> tuple[Tensor, float]:
    """Images [P, H, W, C] as uint8 [P, C, H, W], and how far a value was from a whole number at most."""
    exact = values.astype(np.float64)
    nearest = exact.round()
    if exact.size and not bool(((nearest >= 0) & (nearest <= 255)).all()):  # not a number is not inside either
        raise ValueError("images have values outside 0 to 255")
    moved = float(np.abs(exact - nearest).max(initial=0))
    return torch.tensor(nearest.astype(np.uint8)).permute(0, 3, 1, 2).contiguous(), moved


# --- which row is which ----------------------------------------------------------------------------------------------


def _placed(images: np.ndarray, labels: Tensor, train: ImageData) -> tuple[Tensor, Tensor]:
    """Rows [P] of the poisons, and their places in the file [P].

    The file's own rule gives each place a row. Where every other image is what the rule says, so are the poisons' rows;
    else the clean data are in another order, clean images are matched by content, and each poison to the image of its
    class that is left over and by far the nearest.
    """
    rows = _by_rule(labels, train)
    odd = torch.tensor([place for place, same in enumerate(_same(images, rows, train)) if not same], dtype=torch.int64)
    by_content: dict[tuple[str, int], list[int]] = {}
    for place, (name, label) in zip(odd.tolist(), _names(images, labels, odd), strict=True):
        by_content.setdefault((name, label), []).append(place)
    left = dict.fromkeys(rows[odd].tolist())
    if len(rows) < len(train):
        left |= dict.fromkeys(train.ids[~torch.isin(train.ids.cpu(), rows)].tolist())
    moved = False
    for piece in torch.tensor(list(left), dtype=torch.int64).split(PIECE):
        known = train.labels_of(piece.to(train.device)).tolist()
        pixels = train.pixels(piece.to(train.device)).cpu().permute(0, 2, 3, 1).contiguous().numpy()
        for row, label, image in zip(piece.tolist(), known, pixels, strict=True):
            if places := by_content.get((_digest(image), label)):
                rows[places.pop()], moved = row, True
                del left[row]
    poisons = torch.tensor(sorted(place for places in by_content.values() for place in places), dtype=torch.int64)
    if moved:
        rows[poisons] = _nearest(images, labels, poisons, torch.tensor(list(left), dtype=torch.int64), train)
    return rows[poisons], poisons


def _by_rule(labels: Tensor, train: ImageData) -> Tensor:
    """The row of each place, if the clean data are in the order of the original set: its n-th of a class."""
    rows, clean = torch.empty_like(labels), train.labels_of(train.ids).cpu()
    for label in labels.unique().tolist():
        places = (labels == label).nonzero()[:, 0]
        known = train.ids.cpu()[clean == label]
        if len(places) > len(known):
            raise ValueError(
                f"holds {len(places):,} images of class {label}, the training set at hand {len(known):,}: it is other "
                "data"
            )
        rows[places] = known[: len(places)]
    return rows


def _same(images: np.ndarray, rows: Tensor, train: ImageData) -> Iterator[bool]:
    """Whether the image at each place is the clean image of its row."""
    for places in torch.arange(len(rows)).split(PIECE):
        clean = train.pixels(rows[places].to(train.device)).cpu().permute(0, 2, 3, 1).numpy()
        yield from (images[places.numpy()] == clean).all((1, 2, 3)).tolist()


def _names(images: np.ndarray, labels: Tensor, places: Tensor) -> Iterator[tuple[str, int]]:
    """Digest, empty where values are no whole numbers, and class of the images at these places."""
    for place in places.tolist():
        image = images[place]
        with np.errstate(invalid="ignore"):
            whole = image.astype(np.uint8)
        yield (_digest(whole) if bool((whole == image).all()) else ""), int(labels[place])


def _digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def _nearest(images: np.ndarray, labels: Tensor, places: Tensor, left: Tensor, train: ImageData) -> Tensor:
    """The row of each poison [P]: of the clean images that are left over, the one by far nearest, none twice."""
    known = train.labels_of(left.to(train.device)).cpu()
    found = torch.empty_like(places)
    for label in labels[places].unique().tolist():
        own, rows = (labels[places] == label).nonzero()[:, 0], left[known == label]
        clean = train.pixels(rows.to(train.device)).cpu().flatten(1).float()
        poison = torch.tensor(images[places[own].numpy()].astype(np.float32)).permute(0, 3, 1, 2).flatten(1)
        if not len(clean):
            raise ValueError(f"holds images of class {label} whose rows are not found: it is of other data")
        best = [torch.cdist(piece, clean).topk(min(2, len(clean)), largest=False) for piece in poison.split(PIECE)]
        distances, order = torch.cat([one.values for one in best]), torch.cat([one.indices for one in best])
        sure = len(clean) == 1 or bool((distances[:, 0] <= _CLEARLY * distances[:, 1]).all())
        found[own] = rows[order[:, 0]]
        if not sure or len(found[own].unique()) < len(own):
            raise ValueError(
                "which rows the poisons replace cannot be told: the training set at hand is in another order than the "
                "file, and their changes are too large; use the data set in its original order"
            )
    return found
