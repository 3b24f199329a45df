"""Folders of PNG files by class, and the table of cloud AutoML services."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from mithridate.core.data import ImageData
from mithridate.core.safe_images import (
    files_below,
    folder_name,
    inside,
    new_place,
    png,
    read_image,
    read_limited,
)
from mithridate.poisoning.exchange.checks import Row, known_rows, needed, parcel_of, poisoned_set, rows_of
from mithridate.poisoning.exchange.parcel import Parcel, Reference

TABLE = "data.csv"
_NAME = re.compile(r"(\d{1,12})\.png", re.IGNORECASE | re.ASCII)
_LINE = 2**12
"""Bytes of a line of a table at most."""
_SETS = ("TRAIN", "VALIDATION", "TEST", "UNASSIGNED")

# --- trees -----------------------------------------------------------------------------------------------------------


def write_poison(parcel: Parcel, path: Path, data: Reference) -> list[Path]:
    """Writes the poison as `train/<class>/<row>.png` and targets as `targets/<intended class>/<test row>.png`."""
    whole = poisoned_set(parcel, data.train)
    assert parcel.rows is not None
    poison = whole.select(parcel.rows.sort().values)
    return _write_tree(path, data, {"train": poison}) + _write_targets(parcel, path, data)


def write_whole(parcel: Parcel, path: Path, data: Reference) -> list[Path]:
    """Writes the whole poisoned training set, the test set and the targets."""
    sets = {"train": poisoned_set(parcel, data.train), "test": data.test}
    return _write_tree(path, data, sets) + _write_targets(parcel, path, data)


def read_poison(path: Path, data: Reference) -> Parcel:
    """Reads a tree of the poison alone."""
    return _read_tree(path, data, whole=False)


def read_whole(path: Path, data: Reference) -> Parcel:
    """Reads a tree of the whole training set."""
    return _read_tree(path, data, whole=True)


def _write_tree(path: Path, data: Reference, sets: dict[str, ImageData]) -> list[Path]:
    names, files = [folder_name(name) for name in data.train.classes], []
    new_place(path)
    for part, images in sets.items():
        for name in names:
            (path / part / name).mkdir(parents=True)
        for item in rows_of(images):
            assert item.label is not None
            files.append(path / part / names[item.label] / f"{item.row}.png")
            files[-1].write_bytes(png(item.image))
    return files


def _write_targets(parcel: Parcel, path: Path, data: Reference) -> list[Path]:
    names, files = data.train.classes, []
    for name in names:
        (path / "targets" / name).mkdir(parents=True)
    if not parcel.targets:
        return []
    needed(parcel, "target_rows", "intended")
    assert parcel.target_rows is not None
    assert parcel.intended is not None
    rows = known_rows(parcel.target_rows, data.test, "the poison", "test")
    images = data.test.pixels(rows) if parcel.target_images is None else parcel.target_images
    for row, label, image in zip(rows.tolist(), parcel.intended.tolist(), images, strict=True):
        files.append(path / "targets" / names[label] / f"{row}.png")
        files[-1].write_bytes(png(image))
    return files


def _read_tree(path: Path, data: Reference, *, whole: bool) -> Parcel:
    """Reads `train/` and `targets/`; `test/`, which is not poison, is not looked at."""
    shape = data.train.shape
    train = list(_named(path / "train", data.train.classes))
    if whole:
        complete(len(train), data.train, path / "train")
    targets = sorted(_named(path / "targets", data.train.classes)) if (path / "targets").is_dir() else []
    rows = known_rows([row for row, _, _ in targets], data.test, path / "targets", "test")
    more = {}
    if targets:
        more = {
            "target_rows": rows,
            "intended": torch.tensor([label for _, label, _ in targets]),
            "target_images": torch.stack([read_image(file, shape) for _, _, file in targets]),
        }
    items = (Row(row, read_image(file, shape), label, where=str(file)) for row, label, file in train)
    return parcel_of(items, data.train, path / "train", whole=whole, **more)


def _named(folder: Path, classes: tuple[str, ...]) -> Iterator[tuple[int, int, Path]]:
    """(row, label, file) of `<class>/<row>.png` in a folder, in the order of the names."""
    labels = {name: label for label, name in enumerate(classes)}
    for file in files_below(folder):
        name = file.relative_to(folder).as_posix()
        home, _, image = name.rpartition("/")
        found = _NAME.fullmatch(image)
        if home not in labels or found is None:
            raise ValueError(
                f"{folder} holds {name[:200]!r}; expected <class>/<row>.png with the classes "
                f"{', '.join(classes[:10])}{', ...' * (len(classes) > 10)}"
            )
        yield int(found[1]), labels[home], file


def complete(found: int, train: ImageData, where: Path) -> None:
    """Checks that there are as many images as in the training set.

    Raises:
        ValueError: There are not.
    """
    if found != len(train):
        raise ValueError(
            f"{where} holds {found:,} images, the training set {len(train):,}; a whole training set was expected (for "
            "the poison alone, choose the mode or layout that says so)"
        )


# --- tables ----------------------------------------------------------------------------------------------------------


def write_table(parcel: Parcel, path: Path, data: Reference) -> list[Path]:
    """Writes `data.csv` and all images: the poisoned training set, and the test set as it is."""
    whole, names = poisoned_set(parcel, data.train), data.train.classes
    new_place(path).mkdir(parents=True, exist_ok=True)
    files = [path / TABLE]
    with files[0].open("w", newline="", encoding="utf-8") as table:
        lines = csv.writer(table, lineterminator="\n")
        for part, images in (("train", whole), ("test", data.test)):
            (path / part).mkdir()
            for item in rows_of(images):
                assert item.label is not None
                files.append(path / part / f"{item.row}.png")
                files[-1].write_bytes(png(item.image))
                lines.writerow([part.upper(), f"{part}/{item.row}.png", names[item.label]])
    return files


def read_table(path: Path, data: Reference) -> Parcel:
    """Reads the training images that `data.csv` names; their files are called after their rows."""
    table, train = path / TABLE, data.train
    labels = {name: label for label, name in enumerate(train.classes)}
    found: list[tuple[int, int, Path]] = []
    for number, (part, name, label) in enumerate(_lines(table, len(train) + len(data.test)), 1):
        where = f"{table} line {number}"
        if part.upper() not in _SETS:
            raise ValueError(f"{where} begins with {part[:40]!r}; expected one of {', '.join(_SETS)}")
        if "://" in name:
            raise ValueError(f"{where} names {name[:200]!r}, which is not on this disk; expected train/<row>.png")
        file = inside(path, name)
        if part.upper() != "TRAIN":
            continue
        row = _NAME.fullmatch(file.name)
        if row is None or label not in labels:
            raise ValueError(f"{where} has {name[:100]!r} of class {label[:40]!r}; expected <row>.png and a class name")
        found.append((int(row[1]), labels[label], file))
    complete(len(found), train, table)
    items = (_of_table(row, label, file, train, table) for row, label, file in found)
    return parcel_of(items, train, table, whole=True)


def _of_table(row: int, label: int, file: Path, train: ImageData, table: Path) -> Row:
    if not file.exists():
        raise FileNotFoundError(f"{table} names {file}, which is not there")
    return Row(row, read_image(file, train.shape), label, where=str(file))


def _lines(table: Path, most: int) -> Iterator[list[str]]:
    text = read_limited(table, (most + 1) * _LINE)
    try:
        for number, line in enumerate(csv.reader(io.StringIO(text.decode("utf-8"), newline=""), strict=True), 1):
            if len(line) != 3:
                raise ValueError(f"{table} has a line of {len(line)} values; expected set,path,label")
            if number > most:
                raise ValueError(f"{table} has more than {most:,} lines, as many as there are images")
            yield line
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is no table of set,path,label ({error})") from error
