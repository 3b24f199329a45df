"""mithridate's own folder: a sealed manifest, the tensors, and PNG files where they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mithridate import __version__
from mithridate.core.balls import to_bytes, to_floats
from mithridate.core.copies import encoded
from mithridate.core.safe_images import LIMITS, check_header, read_limited, refusing
from mithridate.poisoning.exchange.checks import known_patch, known_rows, patch_between
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference, new_folder
from mithridate.poisoning.poison import MANIFEST, TENSORS, Poison, load_tensors, read_manifest
from mithridate.poisoning.triggers import Trigger

PICTURES = "images"
TRIED = 64
"""Images that show whether a trigger is a patch at one place."""


@dataclass(frozen=True, kw_only=True)
class Artefact(Format):
    """What `mithridate craft` and every study keep of a poison, and what `mithridate import` makes of other formats.

    A changed byte or entry is noticed, and the entry named. The manifest says what the poison was made with and of
    which data (their fingerprint), so that others can tell whether theirs are the same.

    >>> "intended" in Artefact().carries
    True
    """

    carries: ClassVar[frozenset[str]] = frozenset(
        {"images", "labels", "rows", "base", "target_images", "target_rows", "target_labels", "intended"}
        | {"trigger", "patch", "place"}
    )

    pictures: bool = False
    """Whether each image is written as a PNG file as well, for people to look at; nothing reads them."""

    def recognises(self, path: Path) -> bool:
        return (path / MANIFEST).is_file() and (path / TENSORS).is_file()

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        poison, order = parcel.poison(), parcel.order()
        new_folder(path)
        meta: dict[str, Any] = {
            "data": data.train.fingerprint(),
            "test": data.test.fingerprint(),
            "case": _case(parcel, data.train.classes),
            "origin": {name: value for name, value in parcel.notes.items() if name != "work"},
            "versions": {"mithridate": __version__, "torch": torch.__version__},
        }
        if "work" in parcel.notes:  # what it was made with, threat model included
            meta["work"] = parcel.notes["work"]
        base = None if parcel.base is None else parcel.base[order]  # the sender's, never ours: verify compares them
        patch = None if parcel.trigger is not None or parcel.patch is None else parcel.patch.float()
        poison.save(path, base=base, target=parcel.target_images, patch=patch, **meta)
        files = [path / TENSORS, path / MANIFEST]
        if self.pictures:
            (path / PICTURES).mkdir()
            for row, image in zip(poison.rows.tolist(), poison.images, strict=True):
                files.append(path / PICTURES / f"{row}.png")
                files[-1].write_bytes(encoded(image.permute(1, 2, 0).contiguous().numpy()))
        return files

    def read(self, path: Path, data: Reference) -> Parcel:
        if not path.exists():
            raise FileNotFoundError(f"nothing at {path}; expected a folder with {MANIFEST} and {TENSORS}")
        for name in (MANIFEST, TENSORS):
            if not (path / name).is_file():
                inside = sorted(one.name for one in path.glob("poisons/*") if (one / MANIFEST).is_file())
                hint = f"name one of those in it: {path / 'poisons' / inside[0]}" if inside else "copy it as a whole"
                raise ValueError(f"{path} has no {name}, so it is no poison of mithridate; {hint}")
        with refusing(path):
            manifest, tensors, poison = read_manifest(path), load_tensors(path), Poison.load(path)
            _same_data(path, manifest, data)
            return _parcel(manifest, tensors, poison, data, path)


def _parcel(
    manifest: dict[str, Any], tensors: dict[str, Tensor], poison: Poison, data: Reference, path: Path
) -> Parcel:
    case = manifest.get("case") or {}
    rows = case.get("target_rows") or None
    shown = tensors.get("target")
    patch, place = _patch(poison.trigger, data) or (tensors.get("patch"), case.get("place"))
    if patch is not None:
        known_patch(patch, place or (0, 0), data.test.shape, path / TENSORS)
    return Parcel(
        poison.images,
        labels=data.train.labels_of(poison.rows.to(data.train.device)).cpu()
        if poison.labels is None
        else poison.labels,
        rows=poison.rows,
        base=tensors.get("base"),
        target_images=shown if rows is None or shown is None or len(shown) == len(rows) else None,
        target_rows=None if rows is None else known_rows(rows, data.test, path / MANIFEST, "test"),
        target_labels=_numbers(case.get("target_classes"), data),
        intended=_numbers(case.get("intended"), data),
        trigger=poison.trigger,
        patch=patch,
        place=None if patch is None or place is None else (place[0], place[1]),
        notes={name: manifest[name] for name in ("work", "origin", "notes", "versions") if name in manifest},
    )


def _patch(trigger: Trigger | None, data: Reference) -> tuple[Tensor, tuple[int, int]] | None:
    """The patch that the trigger is, and its place, if it is one, at the same place on every image."""
    if trigger is None or len(data.test) == 0:
        return None
    for value in vars(trigger).values():
        if isinstance(value, Path):  # whoever wrote the manifest named this file
            check_header(str(value), read_limited(value, LIMITS.file_bytes))
    clean = data.test.pixels(data.test.ids[:TRIED]).cpu()
    return patch_between(clean, to_bytes(trigger(to_floats(clean))))


def _case(parcel: Parcel, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says of the targets, as a study does: rows, and classes by name."""
    found: dict[str, Any] = {}
    if parcel.target_rows is not None:
        found["target_rows"] = parcel.target_rows.tolist()
    if parcel.place is not None:
        found["place"] = list(parcel.place)
    for name, numbers in (("target_classes", parcel.target_labels), ("intended", parcel.intended)):
        if numbers is not None:
            found[name] = [classes[number] for number in numbers.tolist()]
    return found


def _numbers(names: list[str] | None, data: Reference) -> Tensor | None:
    if not names:
        return None
    classes = data.train.classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} of the case is none of the data's: {', '.join(classes[:20])}")
    return torch.tensor([classes.index(name) for name in names])


def _same_data(path: Path, manifest: dict[str, Any], data: Reference) -> None:
    """Raises if a manifest says that the poison is of other data."""
    known = manifest.get("data")
    if known is not None and known != data.train.fingerprint():
        raise ValueError(
            f"the poison in {path} is of data with the fingerprint {known}, but the training set has "
            f"{data.train.fingerprint()}: other images, another order, or a compressed copy; name the data that it was "
            "made of"
        )
