"""Small poison, what is damaged in files of it, and what has to come back, for the tests of this folder."""

from __future__ import annotations

import dataclasses
import functools
import random
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from tests.poisoning.cases import three_classes

BY_ROW = ("images", "labels", "rows", "base")
BY_TARGET = ("target_images", "target_rows", "target_labels", "intended")


@functools.cache
def reference(channels: int = 3, side: int = 8) -> Reference:
    """24 training and 9 test images of 3 classes."""
    return Reference(*three_classes(24, 9, channels=channels, side=side))


def poison_of(rows: list[int], seed: int, data: Reference, *, relabel: bool = False, targets: int = 0) -> Parcel:
    """Poison of these rows, in this order; every image differs from the clean one in at least one value."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.tensor(rows, dtype=torch.int64)
    base = data.train.pixels(ids).contiguous()
    change = torch.randint(0, 256, base.shape, generator=rng).to(torch.uint8)
    change[:, 0, 0, 0] |= 1
    labels = torch.randint(0, 3, ids.shape, generator=rng) if relabel else data.train.labels_of(ids)
    aimed: dict[str, Any] = {}
    if targets:
        chosen = torch.randperm(len(data.test), generator=rng)[:targets]
        true = data.test.labels_of(chosen)
        images = data.test.pixels(chosen).contiguous()
        aimed = {"target_rows": chosen, "target_images": images, "target_labels": true, "intended": (true + 1) % 3}
    return Parcel(base ^ change, labels, ids, base, **aimed)


@st.composite
def parcels(draw: st.DrawFn, *, relabel: bool = True, targets: int = 3, smallest: int = 0) -> tuple[Parcel, Reference]:
    """Any poison of any small data, rows in any order."""
    data = reference(draw(st.sampled_from([1, 3])), draw(st.sampled_from([4, 8])))
    rows = draw(st.lists(st.integers(0, len(data.train) - 1), unique=True, max_size=24, min_size=smallest))
    changed = relabel and draw(st.booleans())
    parcel = poison_of(rows, draw(st.integers(0, 999)), data, relabel=changed, targets=draw(st.integers(0, targets)))
    return parcel, data


def of_one_class(data: Reference, *, count: int = 3, label: int = 1, targets: int = 1, seed: int = 0) -> Parcel:
    """Poison of the last rows of a class, not in their order, aimed at test images of the next class."""
    rows = data.train.ids[data.train.labels_of(data.train.ids) == label][-count:].flip(0).tolist() if count else []
    true = (label + 1) % 3
    chosen = data.test.ids[data.test.labels == true][:targets]
    return dataclasses.replace(
        poison_of(rows, seed, data),
        target_rows=chosen,
        target_images=data.test.pixels(chosen),
        target_labels=torch.full((targets,), true),
        intended=torch.full((targets,), label),
    )


@st.composite
def parcels_of_one_class(draw: st.DrawFn, *, targets: int = 1) -> tuple[Parcel, Reference]:
    """As formats want it that take the class of the poison for the one intended; at least one image and one target."""
    data = reference(draw(st.sampled_from([1, 3])), draw(st.sampled_from([4, 8])))
    count, label = draw(st.integers(1, 8)), draw(st.integers(0, 2))
    aimed = draw(st.integers(1, targets))
    return of_one_class(data, count=count, label=label, targets=aimed, seed=draw(st.integers(0, 999))), data


def equal(parcel: Parcel, back: Parcel, names: Collection[str]) -> bool:
    """Whether these fields are equal, whatever the order of rows and of targets."""

    def ordered(one: Parcel, name: str) -> Tensor | None:
        by = one.rows if name in BY_ROW else one.target_rows if name in BY_TARGET else None
        value = getattr(one, name)
        return value if value is None or by is None else value[by.argsort()]

    for name in names:
        ours, theirs = ordered(parcel, name), ordered(back, name)
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and (ours.dtype != theirs.dtype or not torch.equal(ours, theirs)):  # type: ignore[union-attr]
            return False
    return True


def returned(form: Format, parcel: Parcel, data: Reference, name: str = "out") -> Parcel:
    """What is read of what was written; checks that all files are told, and that names alone say the format."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / name
        files = form.write(parcel, path, data)
        assert sorted(files) == sorted(file for file in Path(home).rglob("*") if file.is_file())
        assert form.recognises(path)
        return form.read(path, data)


def damaged(content: bytes, seed: int) -> bytes:
    """The same with a few bytes changed, cut off, cut out, repeated or put in."""
    rng = random.Random(seed)
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 20)]
        else:
            out[at : at + rng.choice([0, 4, 8])] = rng.choice([b"\xff" * 8, b"\0" * 8, rng.randbytes(8)])
    return bytes(out)


def refused(read: Callable[[], object]) -> bool:
    """Whether reading ends as readers may end: with an answer, or with one of the two errors. Others go through."""
    try:
        read()
    except (ValueError, FileNotFoundError):
        return True
    return False


def survives_damage(form: Format, name: str, seed: int, garbage: bytes | None = None, *, single: bool = False) -> bool:
    """Damages one file of a small poison; whether it was refused. Anything but the two errors fails the test.

    Args:
        single: Whether the poison has to be of one class.
    """
    data = reference(3, 4)
    parcel = of_one_class(data) if single else poison_of([3, 1, 7], 1, data, targets=1)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / name
        files = form.write(parcel, path, data)
        file = random.Random(seed).choice([min(files), max(files), random.Random(seed).choice(files)])
        file.write_bytes(damaged(file.read_bytes(), seed) if garbage is None else garbage)
        return refused(lambda: form.read(path, data))
