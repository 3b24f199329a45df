"""poisoning-benchmark: the three pickles of one trial, and the setups that trials are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mithridate.core.safe_images import refusing
from mithridate.core.stand_ins import NUMPY
from mithridate.core.unpickling import load_pickle
from mithridate.poisoning.exchange.checks import PIECE, known_patch, known_rows, needed, pasted
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.pickled import (
    POISONS,
    ROWS,
    labelled,
    one_class,
    picture,
    poison_pickles,
    read_pickle,
    read_poisons,
    target_images,
    whole_number,
    whole_numbers,
    write_pickles,
)
from mithridate.poisoning.threat import FixedCase

_TARGET = "target.pickle"
_LENIENT = "strict=False, typed --to poisoning-benchmark:strict=no,"
_LARGEST = 9
"""Levels of 255 that a pixel may have been moved by: 8, and one for rounding, as `poison_test.py` has it."""
_SIDES = {32: (5,), 64: (8,)}
_SETUP = ("target class", "target index", "base class", "base indices")
_MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PoisoningBenchmark(Format):
    """One trial: `poisons.pickle`, `base_indices.pickle` and `target.pickle` in a folder named by the setup's number.

    Read by `poison_test.py` of aks2203/poisoning-benchmark at 97a67ae and at da213dc, the last commit whose CIFAR-10
    evaluation runs to its end (Schwarzschild, Goldblum, Gupta, Dickerson, Goldstein, "Just How Toxic is Data
    Poisoning? A Unified Benchmark for Backdoor and Data Poisoning Attacks", ICML 2021, arXiv:2006.12557).

    - `poisons.pickle`: list of (Pillow image, class). Success is the class of the first one, so all have the same.
    - `base_indices.pickle`: list of training rows, in the same order.
    - `target.pickle`: (image, true class); of a backdoor (image, true class, patch [3, p, p] in [0, 1], [x, y]), where
      x is the column and y the row at which the patch begins, and p is 5 for CIFAR-10 and 8 for TinyImageNet.

    Traps: one target per trial, and success is one bit. Pixels that were moved by more than 9/255 end it with "Attack
    not clean label!", and a patch of another size ends it without a sign of failure, exit status 0: `strict` refuses
    both before anything is written. At 97a67ae the from-scratch evaluation of CIFAR-10 ends after its first model,
    with status 0 too. Only the intended class comes back, not the row of the target.
    """

    carries: ClassVar[frozenset[str]] = frozenset(
        {"images", "labels", "rows", "target_images", "target_labels", "intended", "patch", "place"}
    )
    strict: bool = True
    """Whether to refuse what its evaluation refuses: pixels moved too far, patches of another size, grey images."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        content, _ = poison_pickles(parcel, data)
        images, labels = target_images(parcel, data)
        if len(images) != 1:
            raise ValueError(
                f"the poison aims at {len(images)} test images; this format is of one, so write one for each"
            )
        if self.strict:
            _check_change(parcel, data)
        drawn = images if parcel.patch is not None else pasted(images, parcel)
        target: tuple[Any, ...] = (picture(drawn[0]), labels[0])
        if parcel.patch is not None:
            target += _pasted(parcel, data.test.shape, self.strict)
        return write_pickles(path, {**content, _TARGET: target})

    def read(self, path: Path, data: Reference) -> Parcel:
        with refusing(path):
            parcel = read_poisons(path, data)
            target, where = read_pickle(path / _TARGET, data), str(path / _TARGET)
            if not isinstance(target, (tuple, list)) or len(target) not in (2, 4):
                raise ValueError(f"{where} is no image with its class, alone or with patch and place")
            image, label = labelled(target, where, data.test)
            intended = one_class(parcel)
            if intended is None:
                raise ValueError(f"{path / POISONS} holds poisons of several classes; one of them is intended")
            parcel = replace(
                parcel,
                target_images=image[None],
                target_labels=torch.tensor([label]),
                intended=torch.tensor([intended]),
            )
            return parcel if len(target) == 2 else _with_patch(parcel, target[2], target[3], where, data.test.shape)

    def recognises(self, path: Path) -> bool:
        try:
            return all((path / name).is_file() for name in (POISONS, ROWS, _TARGET))
        except OSError:
            return False


def setups(file: Path, data: Reference | None = None) -> list[FixedCase]:
    """Reads `poison_setups/*.pickle` of poisoning-benchmark: each entry one target and the rows that may be changed.

    Trap: two setups for transfer to CIFAR-10, 78 and 84, name a row twice; it counts once, so they have 24 rows.

    Args:
        file: As it is in that repository. Targets are rows of the test set, bases of the training set, classes by
            number, all in the order of torchvision, which is not that of every copy of a data set.
        data: What the rows are of; they are compared with the classes that the setups say. None: they are not.

    Returns:
        The cases, in the order of the file.

    Raises:
        FileNotFoundError: Nothing there.
        ValueError: Anything else in it, or rows that are of other classes.
    """
    with refusing(file):
        entries = load_pickle(file, NUMPY)
        if not isinstance(entries, list):
            raise ValueError(f"holds a {type(entries).__name__}; expected a list of setups")
        return [_setup(entry, f"{file}: setup {place}", data) for place, entry in enumerate(entries)]


def _setup(entry: Any, where: str, data: Reference | None) -> FixedCase:
    if not isinstance(entry, dict) or sorted(entry, key=str) != sorted(_SETUP):
        raise ValueError(f"{where} does not have the entries {', '.join(_SETUP)}")
    true, target, intended = (whole_number(entry[name], f"{where}: {name}") for name in _SETUP[:3])
    rows = list(dict.fromkeys(whole_numbers(entry["base indices"], f"{where}: base indices", _MOST)))
    if min([true, target, intended, *rows]) < 0:
        raise ValueError(f"{where} has negative numbers; rows and classes begin at 0")
    if data is not None:
        for known, found, label in ((data.test, [target], true), (data.train, rows, intended)):
            ids = known_rows(found, known, where, "test" if known is data.test else "training")
            other = known.labels_of(ids.to(known.device)).cpu() != label
            if bool(other.any()):
                raise ValueError(
                    f"{where}: row {int(ids[other][0])} is not of class {label}: the data at hand are in another order "
                    "than torchvision has them"
                )
    return FixedCase(target_rows=(target,), intended=str(intended), poison_rows=tuple(rows))


def _check_change(parcel: Parcel, data: Reference) -> None:
    assert parcel.rows is not None
    if data.train.shape[0] != 3:
        raise ValueError(f"the images are grey; the models of poisoning-benchmark need colour ({_LENIENT} writes them)")
    for rows, images in zip(parcel.rows.split(PIECE), parcel.images.split(PIECE), strict=True):
        base = data.train.pixels(rows.to(data.train.device)).cpu()
        change = (images.cpu().int() - base.int()).abs().flatten(1).amax(1)
        if int(change.max()) > _LARGEST:
            raise ValueError(
                f"training row {int(rows[change.argmax()])} is moved by {int(change.max())}/255; poisoning-benchmark "
                f"refuses more than {_LARGEST}/255 ({_LENIENT} writes it all the same)"
            )


def _pasted(parcel: Parcel, shape: tuple[int, int, int], strict: bool) -> tuple[Tensor, list[int]]:
    """The patch and where it begins, as column and row."""
    needed(parcel, "place")
    assert parcel.patch is not None
    assert parcel.place is not None
    known_patch(parcel.patch, parcel.place, shape, "the poison")
    sides = _SIDES.get(shape[2], (5, 8))
    if strict and (parcel.patch.shape[1] != parcel.patch.shape[2] or parcel.patch.shape[1] not in sides):
        raise ValueError(
            f"the patch is {list(parcel.patch.shape[1:])}; poisoning-benchmark takes {' or '.join(map(str, sides))} "
            f"pixels a side on images of {shape[2]} and ends without a result on others ({_LENIENT} writes it)"
        )
    return parcel.patch.detach().cpu().clone(), [parcel.place[1], parcel.place[0]]


def _with_patch(parcel: Parcel, patch: Any, place: Any, where: str, shape: tuple[int, int, int]) -> Parcel:
    found = torch.tensor(patch) if isinstance(patch, np.ndarray) else patch
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim != 3:
        raise ValueError(f"{where}: the patch is no array [C, p, p] of numbers between 0 and 1")
    begin = whole_numbers(place, f"{where}: place of the patch", 2)
    if len(begin) != 2:
        raise ValueError(f"{where}: the place of the patch is {len(begin)} numbers; expected column and row")
    known_patch(found, (begin[1], begin[0]), shape, where)
    return replace(parcel, patch=found.contiguous(), place=(begin[1], begin[0]))
