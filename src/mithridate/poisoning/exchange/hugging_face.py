"""Hugging Face layouts: the whole poisoned training set as parquet, or as an image folder with metadata."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mithridate.core.data import ImageData
from mithridate.core.listings import LABEL_COLUMNS, image_column, parquet_files
from mithridate.core.parquet_pages import column_chunks, largest_page
from mithridate.core.safe_images import (
    LIMITS,
    check_file,
    folder_name,
    inside,
    new_place,
    png,
    read_image,
    read_limited,
    refusing,
    safe_image,
)
from mithridate.poisoning.exchange.checks import PIECE, Row, parcel_of, poisoned_set, rows_of
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.trees import complete

_PARQUET, _METADATA = "train.parquet", "metadata.jsonl"
_BATCH = 64
_PAGE = 2**26
"""Bytes of a page that are in order whatever the images."""
_LINE = 2**12
"""Bytes of a line of metadata at most."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Format):
    """The whole poisoned training set, as `datasets.load_dataset(FOLDER)` reads it.

    - `parquet`: `train.parquet` with the columns `image` (struct of bytes and path, PNG), `label` (ClassLabel, names in
      the schema metadata), `row` and `poisoned`.
    - `imagefolder`: `train/<class>/<row>.png` and `train/metadata.jsonl` with `file_name`, `label`, `row`, `poisoned`.

    Rows and marks make it exact what is poison; where they are missing, in others' files, images count from row 0 on,
    and poison are those that differ from the clean set.

    Traps: with metadata, `datasets` takes `label` from there as a plain number, and does not look at folder names;
    torchvision's ImageFolder does, and numbers classes by the order of their names. The column `poisoned` is for who
    judges: drop it before a defence sees the set (`remove_columns(["row", "poisoned"])`).
    """

    carries: ClassVar[frozenset[str]] = frozenset({"images", "labels", "rows"})
    layout: Literal["parquet", "imagefolder"] = "parquet"
    """How the set is written; how it was is told by the names of the files, and by this where they say nothing."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        whole = poisoned_set(parcel, data.train)
        assert parcel.rows is not None
        marked = set(parcel.rows.tolist())
        new_place(path)
        return (_write_parquet if self.layout == "parquet" else _write_folder)(whole, marked, path)

    def read(self, path: Path, data: Reference) -> Parcel:
        with refusing(path):
            table, folder = _has_tables(path), _has_metadata(path)
            if table if table != folder else self.layout == "parquet":
                return parcel_of(_parquet_rows(path, data.train), data.train, path, whole=True)
            return parcel_of(_folder_rows(path, data.train), data.train, path, whole=True)

    def recognises(self, path: Path) -> bool:
        return _has_tables(path) or _has_metadata(path)


def _has_tables(path: Path) -> bool:
    try:
        return path.suffix == ".parquet" or any(path.glob("train*.parquet")) or any(path.glob("train/*.parquet"))
    except OSError:
        return False


def _has_metadata(path: Path) -> bool:
    try:
        return any((home / _METADATA).is_file() for home in (path, path / "train"))
    except OSError:
        return False


# --- parquet ---------------------------------------------------------------------------------------------------------


def _write_parquet(whole: ImageData, marked: set[int], path: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = {"dtype": "int64", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(whole.classes), "_type": "ClassLabel"},
        "row": number,
        "poisoned": {"dtype": "bool", "_type": "Value"},
    }
    kinds = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "row": pa.int64(),
        "poisoned": pa.bool_(),
    }
    schema = pa.schema(kinds.items()).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path / _PARQUET, schema, write_page_checksum=True) as writer:
        batch: list[dict[str, Any]] = []
        for item in rows_of(whole):
            image = {"bytes": png(item.image), "path": f"{item.row}.png"}
            batch.append({"image": image, "label": item.label, "row": item.row, "poisoned": item.row in marked})
            if len(batch) == PIECE:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema))
    return [path / _PARQUET]


def _parquet_rows(path: Path, train: ImageData) -> Iterator[Row]:
    import pyarrow.parquet as pq

    files = parquet_files(path, ("train",))
    tables, largest = [], 0
    for file in files:
        if path.is_dir():
            inside(path, file.relative_to(path).as_posix())
        check_file(file, LIMITS.table_bytes)
        with refusing(file), file.open("rb") as stream:
            chunks = column_chunks(stream)
            with pq.ParquetFile(file) as opened:
                tables.append(opened.metadata)
            largest = max(largest, largest_page(stream, chunks, _PAGE + PIECE * math.prod(train.shape)))
    complete(sum(table.num_rows for table in tables), train, path)
    batch = max(1, min(_BATCH, _PAGE // max(1, largest)))  # a value of a page can be named again and again
    ids, start = train.ids.tolist(), 0
    for file in files:
        with refusing(file):
            for item in _table_rows(file, ids[start:], train, batch):
                yield item
                start += 1


def _table_rows(file: Path, ids: Sequence[int], train: ImageData, size: int) -> Iterator[Row]:
    """The images of one file; `ids` are their rows where the file does not say them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, page_checksum_verification=True) as opened:
        schema, number = opened.schema_arrow, 0
        _check_classes(file, schema, train.classes)
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        if label is None:
            raise ValueError(f"{file} has no column {' or '.join(LABEL_COLUMNS)}, only {', '.join(schema.names[:20])}")
        image = image_column(file, schema)
        nested = pa.types.is_struct(schema.field(image).type)
        leaf = f"{image}.bytes" if nested else image
        _check_types(file, schema, label)
        if nested and not pa.types.is_binary(kind := schema.field(image).type.field("bytes").type):
            raise ValueError(f"{file}: column {leaf} holds {str(kind)[:100]}; expected image files as bytes")
        columns = [leaf, *(name for name in (label, "row", "poisoned") if name in schema.names)]
        for batch in opened.iter_batches(size, columns=columns):
            for line in batch.to_pylist():
                where = f"{file} row {number}"
                data = line[image]["bytes"] if isinstance(line[image], dict) else line[image]
                if not isinstance(data, bytes):
                    raise ValueError(f"{where} has no image bytes")
                row = _whole(line.get("row", ids[number] if number < len(ids) else None), "row", where)
                mark = _mark(line.get("poisoned"), where)
                yield Row(row, safe_image(where, data, train.shape), _whole(line[label], "label", where), mark, where)
                number += 1


def _check_types(file: Path, schema: Any, label: str) -> None:
    """Columns of one value per row: lists of any length fit into a few bytes."""
    import pyarrow as pa

    for name, fits, expected in (
        (label, pa.types.is_integer, "a whole number"),
        ("row", pa.types.is_integer, "a whole number"),
        ("poisoned", pa.types.is_boolean, "true or false"),
    ):
        if name in schema.names and not fits(schema.field(name).type):
            found = str(schema.field(name).type)[:100]
            raise ValueError(f"{file}: column {name} holds {found}; expected {expected} in each row")


def _check_classes(file: Path, schema: Any, classes: tuple[str, ...]) -> None:
    said = (schema.metadata or {}).get(b"huggingface")
    if said is None:
        return
    features = json.loads(said)["info"]["features"]
    for name in LABEL_COLUMNS:
        names = features.get(name, {}).get("names")
        if names is not None and tuple(names) != classes:
            raise ValueError(f"{file} has the classes {str(names)[:300]}, the data at hand {str(list(classes))[:300]}")


# --- image folder ----------------------------------------------------------------------------------------------------


def _write_folder(whole: ImageData, marked: set[int], path: Path) -> list[Path]:
    folder, names = path / "train", [folder_name(name) for name in whole.classes]
    for name in names:
        (folder / name).mkdir(parents=True)
    files = [folder / _METADATA]
    with files[0].open("w", encoding="utf-8") as metadata:
        for item in rows_of(whole):
            assert item.label is not None
            name = f"{names[item.label]}/{item.row}.png"
            files.append(folder / name)
            files[-1].write_bytes(png(item.image))
            line = {"file_name": name, "label": item.label, "row": item.row, "poisoned": item.row in marked}
            metadata.write(json.dumps(line, ensure_ascii=False) + "\n")
    return files


def _folder_rows(path: Path, train: ImageData) -> Iterator[Row]:
    folder = path / "train" if (path / "train").is_dir() else path
    file = folder / _METADATA
    content = read_limited(file, (len(train) + 1) * _LINE)
    complete(sum(bool(line.strip()) for line in io.BytesIO(content)), train, file)
    lines = (line for line in io.BytesIO(content) if line.strip())
    for number, (text, position) in enumerate(zip(lines, train.ids.tolist(), strict=True), 1):
        where = f"{file} line {number}"
        if len(text) > _LINE:
            raise ValueError(f"{where} has {len(text):,} bytes; at most {_LINE:,} are read")
        line = json.loads(text)
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            raise ValueError(f"{where} has no file_name")
        image, label = inside(folder, line["file_name"]), _whole(line.get("label"), "label", where)
        home = image.parent.relative_to(folder).as_posix()
        if home in train.classes and train.classes.index(home) != label:
            raise ValueError(f"{where} has label {label}, but its image lies in the folder of class {home!r}")
        row, mark = _whole(line.get("row", position), "row", where), _mark(line.get("poisoned"), where)
        yield Row(row, read_image(image, train.shape), label, mark, where)


def _whole(value: Any, what: str, where: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{where} has the {what} {str(value)[:40]!r}; expected a whole number")
    return value


def _mark(value: Any, where: str) -> bool | None:
    if value is not None and type(value) is not bool:
        raise ValueError(f"{where} has poisoned {str(value)[:40]!r}; expected true or false")
    return value
