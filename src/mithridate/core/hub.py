"""Data sets of the Hugging Face hub, read by its `datasets` library and decoded by the decoder of all other sources."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mithridate.core.cache import digest
from mithridate.core.extras import extra
from mithridate.core.listings import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    TEST_NAMES,
    Listing,
    class_numbers,
    file_state,
    listed,
)
from mithridate.core.spelling import nearest

_AT_ONCE = 256
"""Rows that are read in one go."""


def list_hub(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    train: str = "train",
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> tuple[Listing, Listing | None]:
    """Lists the training and the test split of a data set, by its name on the hub or by a local folder.

    Without `test`, it is the first of "test", "validation", "valid" and "val" that is there and has labels; None: none
    is. Without `image` and `label`, columns are found by their usual names, else by their kind where only one has it.

    Raises:
        MissingExtra: `datasets` cannot be imported.
        ConnectionError: no network, and no earlier download.
        ValueError: no such data set, split or column, labels that are no classes, or no right to read it.
    """
    splits = _load_splits(name, config, revision)
    for split in (train, *([test] if test else [])):
        if split not in splits:
            raise ValueError(f"hub:{name} has no split {split!r}; {nearest(split, splits)}")
    if test is None:
        there = (split for split in TEST_NAMES if split in splits and split != train)
        test = next((split for split in there if _has_labels(splits[split], label)), None)
    listing = list_dataset(splits[train], f"hub:{name} {train}", image, label, None)
    if test is None:
        return listing, None
    return listing, list_dataset(splits[test], f"hub:{name} {test}", image, label, listing.classes)


def open_split(
    name: str, *, config: str | None, revision: str | None, split: str, image: str | None
) -> tuple[Any, str]:
    """Returns one split as a `datasets.Dataset`, and the name of its column of images.

    Raises:
        MissingExtra, ConnectionError, ValueError: As `list_hub`.
    """
    splits = _load_splits(name, config, revision)
    if split not in splits:
        raise ValueError(f"hub:{name} has no split {split!r}; {nearest(split, splits)}")
    dataset = splits[split]
    return dataset, _column(dataset, f"hub:{name} {split}", "image", image, IMAGE_COLUMNS, "Image")


def _load_splits(name: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    datasets = extra("datasets", "hub", f"hub:{name}")
    try:
        with _bars_on_terminals_only(datasets):
            return datasets.load_dataset(str(Path(name).expanduser()), config, revision=revision, keep_in_memory=False)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the Hugging Face hub, and {name} was not downloaded here before ({error}); connect, or copy "
            "the data set here and name its folder"
        ) from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        which = [f"configuration {config}"] * bool(config) + [f"revision {revision}"] * bool(revision)
        raise ValueError(
            f"cannot load {', '.join([name, *which])} from the Hugging Face hub: {error} (look at its page there; what "
            "needs permission needs `hf auth login` too)"
        ) from error


@contextlib.contextmanager
def _bars_on_terminals_only(datasets: Any) -> Iterator[None]:
    if sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.enable_progress_bars()


# --- one split -------------------------------------------------------------------------------------------------------


def _find_column(dataset: Any, given: str | None, names: Sequence[str], kind: str) -> str | None:
    """The column asked for, else one of a usual name, else the only one whose feature is of this kind."""
    for name in names if given is None else [given]:
        if name in dataset.column_names:
            return name
    found = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    return found[0] if given is None and len(found) == 1 else None


def _column(dataset: Any, where: str, setting: str, given: str | None, names: Sequence[str], kind: str) -> str:
    found = _find_column(dataset, given, names, kind)
    if found is None:
        sought = f"{given!r}" if given else f"{', '.join(names)} and for one of kind {kind}"
        raise ValueError(
            f"{where} has no {setting} column: looked for {sought}; its columns are {', '.join(dataset.column_names)} "
            f"({setting}= names one)"
        )
    return found


def _has_labels(dataset: Any, label: str | None) -> bool:
    """Whether a split is of use for testing: hidden labels are a column of -1, or none."""
    name = _find_column(dataset, label, LABEL_COLUMNS, "ClassLabel")
    if name is None or not len(dataset):
        return False
    return bool(set(_arrow(dataset, name).unique().to_pylist()) - {-1, None})


def _arrow(dataset: Any, column: str) -> Any:
    """A column as a pyarrow ChunkedArray, in the memory map that `datasets` keeps."""
    return dataset.select_columns([column]).with_format("arrow")[:].column(column)


def list_dataset(
    dataset: Any, where: str, image: str | None, label: str | None, classes: tuple[str, ...] | None = None
) -> Listing:
    """Lists one split, a `datasets.Dataset`; columns are found as in `list_hub`.

    Raises:
        ValueError: No such column, labels that are no classes, or other classes than the ones given.
    """
    image = _column(dataset, where, "image", image, IMAGE_COLUMNS, "Image")
    label = _column(dataset, where, "label", label, LABEL_COLUMNS, "ClassLabel")
    labels = class_numbers(where, label, _arrow(dataset, label).combine_chunks())
    names = getattr(dataset.features[label], "names", None)
    if classes is not None and names is not None and tuple(names) != classes:
        raise ValueError(
            f"{where} has the classes {', '.join(names)}, but the training set has {', '.join(classes)}; both need the "
            "same classes in the same order"
        )
    encoded = _encoded(dataset, where, image)
    known = classes or tuple(names or (str(k) for k in range(int(labels.max(initial=0)) + 1)))
    return listed(
        where,
        labels,
        known,
        lambda rows: _images(encoded, where, image, rows),
        lambda _: _state(encoded, image),
        lambda row: (where, row),
    )


def _encoded(dataset: Any, where: str, image: str) -> Any:
    """The image column alone, as encoded bytes and paths: it is not `datasets` that decodes."""
    datasets = extra("datasets", "hub", where)
    try:
        return dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors or TypeErrors
        raise ValueError(f"{where}: column {image} holds {dataset.features[image]}; expected images") from error


def _images(encoded: Any, where: str, image: str, rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE].tolist()
        for row, value in zip(some, encoded[some][image], strict=True):
            yield f"{where} row {row}", _bytes(value or {}, f"{where} row {row}")


def _bytes(value: dict[str, Any], name: str) -> bytes:
    """The encoded image: stored in the data set itself, or in a file that it names."""
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return data
    if path is None:
        raise ValueError(f"{name} has no image; remove the row, or choose another column with image=")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{name} has no image bytes, and its file cannot be read ({error}); bring the file back"
        ) from error


def _state(encoded: Any, image: str) -> str:
    """A digest of the files that `datasets` made of this revision, and of the image files that they name."""
    named = [
        Path(path)
        for chunk in _arrow(encoded, image).chunks
        for path in chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist()
        if path is not None
    ]
    files = [Path(file["filename"]) for file in encoded.cache_files]
    return digest([image, file_state([*files, *(path for path in named if path.is_file())])])
