"""mithridate's own folder: a sealed manifest, the tensors, and PNG files where they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from mithridate import __version__
from mithridate.core.copies import encoded
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference, new_folder
from mithridate.poisoning.poison import MANIFEST, TENSORS, Poison, load_tensors, read_manifest

PICTURES = "images"


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
    )

    pictures: bool = False
    """Whether each image is written as a PNG file as well, for people to look at; nothing reads them."""

    def recognises(self, path: Path) -> bool:
        return (path / MANIFEST).is_file() and (path / TENSORS).is_file()

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        poison, order = parcel.poison(), parcel.order()
        new_folder(path)
        base = data.train.pixels(poison.rows.to(data.train.device)).cpu()
        meta: dict[str, Any] = {
            "data": data.train.fingerprint(),
            "test": data.test.fingerprint(),
            "case": _case(parcel, data.train.classes),
            "origin": {name: value for name, value in parcel.notes.items() if name != "work"},
            "versions": {"mithridate": __version__, "torch": torch.__version__},
        }
        if "work" in parcel.notes:  # what it was made with, threat model included
            meta["work"] = parcel.notes["work"]
        poison.save(path, base=base if parcel.base is None else parcel.base[order], target=parcel.target_images, **meta)
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
                raise ValueError(f"{path} has no {name}; it is no poison of mithridate, or was not copied as a whole")
        manifest = read_manifest(path)
        try:
            tensors = load_tensors(path)
        except SafetensorError as error:
            raise ValueError(f"{path / TENSORS} is damaged ({error}); copy it again") from error
        _same_data(path, manifest, data)
        poison = Poison.load(path)
        case = manifest.get("case") or {}
        rows = case.get("target_rows") or None
        shown = tensors.get("target")
        return Parcel(
            poison.images,
            labels=data.train.labels_of(poison.rows.to(data.train.device)).cpu()
            if poison.labels is None
            else poison.labels,
            rows=poison.rows,
            base=tensors.get("base"),
            target_images=shown if rows is None or shown is None or len(shown) == len(rows) else None,
            target_rows=None if rows is None else torch.tensor(rows),
            target_labels=_numbers(case.get("target_classes"), data),
            intended=_numbers(case.get("intended"), data),
            notes={
                name: manifest[name] for name in ("work", "origin", "notes", "trigger", "versions") if name in manifest
            },
        )


def _case(parcel: Parcel, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says of the targets, as a study does: rows, and classes by name."""
    found: dict[str, Any] = {}
    if parcel.target_rows is not None:
        found["target_rows"] = parcel.target_rows.tolist()
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
