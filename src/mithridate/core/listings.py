"""What a parquet file or a folder of images holds, listed before anything is decoded."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mithridate.core.cache import digest, mapped
from mithridate.core.data import ImageData, check_labels
from mithridate.core.decoding import DECODER, decode, decode_all
from mithridate.core.seeds import stream

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
"""Files that an image folder is searched for; capitals do not matter."""

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
TEST_NAMES = ("test", "validation", "valid", "val")
"""Names of the split or folder with test data; the first that is there is taken."""

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


class Listing(NamedTuple):
    """What a place holds, before any image is decoded: who wants only some rows pays only for those."""

    where: str
    labels: np.ndarray
    """[N] int64."""
    classes: tuple[str, ...]
    files: Callable[[np.ndarray], Iterator[tuple[str, bytes]]]
    """Row numbers [n], ascending -> name and bytes of each image file."""
    state: Callable[[np.ndarray], str]
    """Row numbers [n] -> a digest of where their files are, how large and how old: another one means other pixels."""
    place: Callable[[int], tuple[str, int | None]]
    """Row number -> file, and the row in it where it holds several."""

    def load(self, rows: np.ndarray, size: int | None, cache: str | None = None) -> ImageData:
        """Decodes these rows into memory, or into the cache unless they are there."""
        labels = self.labels[rows]
        if cache is None:
            images = decode_all(self.files(rows), len(rows), size)
            return ImageData(images, torch.from_numpy(labels), self.classes, decoder=DECODER)

        def items(start: int) -> Iterator[tuple[str, np.ndarray, int]]:
            for (name, data), label in zip(self.files(rows[start:]), labels[start:].tolist(), strict=True):
                yield name, decode(name, data, size), label

        of = {
            "files": self.state(rows),
            "rows": digest(rows),
            "labels": digest(labels),
            "size": size,
        }
        images, labels = mapped(cache, of, lambda: (len(rows), items))
        return ImageData(images, torch.from_numpy(labels), self.classes, decoder=DECODER)


def listed(
    where: str,
    labels: np.ndarray,
    classes: tuple[str, ...],
    files: Callable[[np.ndarray], Iterator[tuple[str, bytes]]],
    state: Callable[[np.ndarray], str],
    place: Callable[[int], tuple[str, int | None]],
) -> Listing:
    """Makes a listing whose labels are checked.

    Raises:
        ValueError: no images, or labels that are no classes.
    """
    if not len(labels):
        raise ValueError(f"{where} holds no images")
    check_labels(torch.from_numpy(labels), len(classes), where)  # now: decoding may take minutes
    return Listing(where, labels, classes, files, state, place)


def file_state(files: Iterable[Path]) -> str:
    """A digest of the files' paths, sizes and times of change."""
    hashed = hashlib.sha256()
    for file in files:
        stat = file.stat()
        hashed.update(f"{file.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return hashed.hexdigest()[:16]


def check_limits(per_class: int | None, size: int | None) -> None:
    for name, value in (("per_class", per_class), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1, or None for no limit")


def first_rows(labels: np.ndarray, rows: np.ndarray, per_class: int | None) -> np.ndarray:
    """The first `per_class` of these rows of every class (all of a class that has fewer), in their order.

    >>> first_rows(np.array([0, 0, 1, 0, 1]), np.array([1, 2, 3, 4]), per_class=1).tolist()
    [1, 2]
    """
    if per_class is None:
        return rows
    kept = [rows[labels[rows] == label][:per_class] for label in np.unique(labels[rows])]
    return np.sort(np.concatenate(kept))


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows: of every class a fifth, at least one of two, is test; drawn with seed 0.

    >>> train, test = stratified_split(np.repeat([0, 1], 10))
    >>> len(train), len(test), int((test < 10).sum())
    (16, 4, 2)

    Raises:
        ValueError: no class has two images.
    """
    test = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = max(1, round(_TEST_SHARE * len(rows))) if len(rows) > 1 else 0
        order = torch.randperm(len(rows), generator=stream(_SPLIT_SEED, "split", int(label))).numpy()
        test.append(rows[order[:count]])
    chosen = np.sort(np.concatenate(test))
    if not len(chosen):
        raise ValueError(f"{len(labels)} images, one of each class, leave none for a test set; give test=")
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


# --- parquet ---------------------------------------------------------------------------------------------------------


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder: `train.parquet`, else `train*.parquet`, else `train/*.parquet`.

    Raises:
        ValueError: files named "00000-of-00002" are fewer than they say.
    """
    single = folder / f"{split}.parquet"
    found = [single] if single.is_file() else sorted(folder.glob(f"{split}*.parquet"))
    found = found or sorted((folder / split).glob("*.parquet"))
    totals = {int(match[1]) for file in found if (match := re.search(r"-of-(\d+)", file.name))}
    if totals and totals != {len(found)}:
        raise ValueError(
            f"{folder} has {len(found)} {split} file(s), but {found[0].name} says that there are {max(totals)}; "
            "download the missing ones"
        )
    return found


def parquet_home(path: Path) -> Path | None:
    """The folder with the training files: this one, `data/`, or the only other subfolder that has some.

    Raises:
        ValueError: several subfolders have training files.
    """
    for folder in (path, path / "data"):
        if _shards(folder, "train"):
            return folder
    homes = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _shards(folder, "train")]
    if len(homes) > 1:
        raise ValueError(f"{path} holds several data sets: {', '.join(h.name for h in homes)}; name one of the folders")
    return homes[0] if homes else None


def parquet_files(path: Path, splits: Sequence[str]) -> list[Path]:
    """The files of the first of these splits that is there.

    Raises:
        FileNotFoundError: nothing there; says what was looked for.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        home = parquet_home(path)
        for split in splits:
            if found := _shards(home or path, split):
                return found
        named = home or any(_shards(path, name) for name in TEST_NAMES)
        if found := [] if named else sorted(path.glob("*.parquet")):  # files whose names say nothing: one split
            return found
    tried = ", ".join(f"{split}*.parquet" for split in splits)
    raise FileNotFoundError(
        f"no parquet data at {path}; looked for a file of that name, and for {tried} in that folder, in its data/ and "
        "in its other subfolders"
    )


def find_test_files(path: Path, test: str | None) -> list[Path] | None:
    """The test files given, or those beside the training files; None: there are none."""
    if test is not None:
        return parquet_files(Path(test).expanduser(), TEST_NAMES)
    if path.is_file() and not path.name.startswith("train"):
        return None
    home = path.parent if path.is_file() else parquet_home(path)
    found = (_shards(home, name) for name in TEST_NAMES) if home else iter(())
    return next((files for files in found if files), None)


@contextlib.contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            yield parquet
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file ({error}); copy or download it again") from error


def _column(file: Path, schema: Any, names: Sequence[str], holds: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise ValueError(
        f"{file} has no {holds} column: looked for {', '.join(names)}; its columns are {', '.join(schema.names)}"
    )


def _bytes_column(file: Path, schema: Any) -> str:
    """The parquet path of the encoded images: `img.bytes` of a struct, or the column itself."""
    import pyarrow as pa

    name = _column(file, schema, IMAGE_COLUMNS, "image")
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    raise ValueError(f"{file}: column {name} holds {kind}; expected image files as bytes or struct<bytes, path>")


def image_column(file: Path, schema: Any) -> str:
    """The name of the column of images in a parquet file."""
    return _bytes_column(file, schema).removesuffix(".bytes")


def class_numbers(where: str, name: str, column: Any) -> np.ndarray:
    """The labels in a pyarrow array, [N] int64.

    Raises:
        ValueError: no whole numbers, or a row without one.
    """
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ValueError(f"{where}: column {name} holds {column.type}; expected whole numbers: the number of the class")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where}: row {row} has no {name}; label it or remove it")
    return column.to_numpy(zero_copy_only=False).astype(np.int64)


def _read_labels(file: Path, parquet: Any) -> np.ndarray:
    name = _column(file, parquet.schema_arrow, LABEL_COLUMNS, "label")
    return class_numbers(str(file), name, parquet.read(columns=[name]).column(name).combine_chunks())


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """The class names that Hugging Face `datasets` keeps in the schema metadata, if it wrote any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        label = next(name for name in LABEL_COLUMNS if name in schema.names)
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):  # no such metadata, or of another writer
        return None


def _between(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    low, high = np.searchsorted(rows, (start, stop))
    return rows[low:high]


def parquet_images(files: Sequence[Path], rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Reads the encoded images of these rows, numbered through all files; row groups without one are skipped."""
    start = 0
    for file in files:
        with _open_parquet(file) as parquet:
            column, offset = _bytes_column(file, parquet.schema_arrow), start
            for group in range(parquet.num_row_groups):
                stop = start + parquet.metadata.row_group(group).num_rows
                wanted = _between(rows, start, stop)
                if len(wanted):
                    for row, data in _group_images(parquet, group, column, wanted - start):
                        name = f"{file} row {row + start - offset}"
                        if data is None:
                            raise ValueError(
                                f"{name} has no image bytes, only a path; write the images into the parquet file, or "
                                "read their folder"
                            )
                        yield name, data
                start = stop


def _group_images(parquet: Any, group: int, column: str, rows: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
    start = 0
    for batch in parquet.iter_batches(1024, row_groups=[group], columns=[column]):
        local = _between(rows, start, start + len(batch)) - start
        values = batch.column(0)
        if column.endswith(".bytes"):
            values = values.field("bytes")
        yield from zip((local + start).tolist(), values.take(local).to_pylist(), strict=True)
        start += len(batch)
        if start > rows[-1]:
            return


def list_parquet(files: Sequence[Path], classes: tuple[str, ...] | None = None) -> Listing:
    """Reads labels and class names of the files; `classes` are those of the training set."""
    labels, names = [], None
    for file in files:
        with _open_parquet(file) as parquet:
            labels.append(_read_labels(file, parquet))
            _bytes_column(file, parquet.schema_arrow)
            names = names or _class_names(parquet.schema_arrow)
    everything = np.concatenate(labels)
    if classes is not None and names is not None and names != classes:
        raise ValueError(
            f"{files[0]} has the classes {', '.join(names)}, but the training set has {', '.join(classes)}; both need "
            "the same classes in the same order"
        )
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    known = classes or names or tuple(str(k) for k in range(int(everything.max(initial=0)) + 1))
    ends = np.cumsum([len(part) for part in labels])

    def place(row: int) -> tuple[str, int | None]:
        number = int(np.searchsorted(ends, row, side="right"))
        return str(files[number]), row - int(ends[number - 1] if number else 0)

    return listed(
        where, everything, known, lambda rows: parquet_images(files, rows), lambda rows: file_state(files), place
    )


# --- folders ---------------------------------------------------------------------------------------------------------


def training_home(root: Path) -> Path:
    """The folder with the class folders of the training images: `train/` in this one, or this one."""
    return root / "train" if (root / "train").is_dir() and subfolders(root / "train") else root


def subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(file for file in found if file.is_file())


def list_folder(folder: Path, classes: tuple[str, ...] | None = None) -> Listing:
    """Lists the images of class folders; `classes` are those of the training set, which may be more than are here."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; looked for a folder with one subfolder of images per class")
    homes = {child.name: child for child in subfolders(folder)}
    known = tuple(homes) if classes is None else classes
    if unknown := sorted(set(homes) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{folder / unknown[0]} is no class of the training set; {hint}classes: {', '.join(known)}")
    images = {name: _images_in(home) for name, home in homes.items()}
    if not any(images.values()):
        loose = sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir())
        seen = f"{loose} images but no subfolder with images" if loose else "no images"
        raise ValueError(f"{folder} holds {seen}; expected one subfolder per class with {', '.join(SUFFIXES)} files")
    empty = [name for name, found in images.items() if not found]
    if empty and classes is None:
        raise ValueError(f"class folder {folder / empty[0]} holds no {', '.join(SUFFIXES)} files; fill or remove it")
    paths = [path for name in known for path in images.get(name, ())]
    labels = np.repeat(np.arange(len(known)), [len(images.get(name, ())) for name in known])
    return listed(
        str(folder),
        labels,
        known,
        lambda rows: ((str(paths[i]), paths[i].read_bytes()) for i in rows),
        lambda rows: file_state(paths[i] for i in rows),
        lambda row: (str(paths[row]), None),
    )
