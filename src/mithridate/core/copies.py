"""A copy of a data set with other pixels: the same names, labels and columns, written chunk by chunk."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from mithridate.core.listings import (
    SUFFIXES,
    Listing,
    image_column,
    list_folder,
    list_parquet,
    parquet_files,
    parquet_images,
    training_home,
)
from mithridate.core.sources import DataSource, Folder, Hub, Parquet

BATCH = 256
"""Rows of a table that are in memory at a time while it is written."""
METADATA = ("metadata.jsonl", "metadata.csv")
"""Files of an image folder that name its images in a column `file_name`, as Hugging Face `datasets` reads them."""


def encoded(pixels: np.ndarray, quality: int | None = None) -> bytes:
    """Encodes an image, uint8 [H, W, 1] or [H, W, 3], as PNG, or as JPEG of that quality.

    >>> encoded(np.zeros((2, 2, 3), np.uint8))[1:4]
    b'PNG'
    """
    out = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if quality is None:
        image.save(out, "png")
    else:
        image.save(out, "jpeg", quality=quality, subsampling=0)
    return out.getvalue()


class Copy(ABC):
    """Where a copy goes. Images come in any order; `finish` is called once all are there."""

    listing: Listing
    """What is copied."""
    out: Path
    """Folder of the copy."""

    @abstractmethod
    def write(self, rows: Sequence[int], images: Sequence[bytes]) -> list[str]:
        """Stores encoded images of some rows; returns a name of each, relative to the copy."""

    @abstractmethod
    def read(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[bytes]:
        """Reads back what `write` has just stored."""

    @abstractmethod
    def finish(self, written: Callable[[], Iterator[tuple[int, int]]]) -> list[Path]:
        """Completes the copy.

        Args:
            written: Gives the row and the bytes of each image, in the order in which they were written.

        Returns:
            The files that hold several images, complete; none where each image is a file.
        """

    def cut(self, size: int) -> None:  # noqa: B027
        """Forgets what was written beyond the first `size` bytes of images: the rest was not recorded."""


def copy_of(source: DataSource, out: Path, spool: Path, suffix: str) -> Copy:
    """Returns a copy of the training images of a source, in the layout that it has.

    Args:
        source: An image folder, parquet files or a data set of the hub.
        out: The folder of the copy.
        spool: A file for what cannot be written yet.
        suffix: Of encoded images, for example ".png".

    Raises:
        TypeError: A source without image files.
        ValueError: As the source's own `load`.
        FileNotFoundError: Nothing there.
    """
    if isinstance(source, Folder):
        home = training_home(Path(source.path).expanduser())
        return FolderCopy(list_folder(home), home, out, suffix)
    if isinstance(source, Parquet):
        files = parquet_files(Path(source.path).expanduser(), ("train",))
        return TableCopy(list_parquet(files), [_parquet_table(file) for file in files], out, spool, suffix)
    if isinstance(source, Hub):
        from mithridate.core.hub import list_hub, open_split

        listing, _ = list_hub(
            source.name,
            config=source.config,
            revision=source.revision,
            train=source.train,
            test=source.test,
            image=source.image,
            label=source.label,
        )
        return TableCopy(listing, [_hub_table(source, open_split)], out, spool, suffix)
    raise TypeError(
        f"{type(source).__name__.lower()} has no image files; name an image folder, parquet files or hub:OWNER/NAME"
    )


# --- folders ---------------------------------------------------------------------------------------------------------


class FolderCopy(Copy):
    """One file per image, where it was in the original folder; other files are copied, metadata with the new names."""

    def __init__(self, listing: Listing, home: Path, out: Path, suffix: str) -> None:
        self.listing, self.home, self.out, self.suffix = listing, home, out, suffix

    def write(self, rows: Sequence[int], images: Sequence[bytes]) -> list[str]:
        names = [str(self._name(Path(self.listing.place(row)[0]))) for row in rows]
        for name, image in zip(names, images, strict=True):
            to = self.out / name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(image)
        return names

    def read(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[bytes]:
        return ((self.out / name).read_bytes() for name in names)

    def finish(self, written: Callable[[], Iterator[tuple[int, int]]]) -> list[Path]:
        for file in sorted(self.home.rglob("*")):
            relative = file.relative_to(self.home)
            hidden = any(part.startswith(".") for part in relative.parts)
            if file.is_file() and not hidden and file.suffix.lower() not in SUFFIXES:
                to = self.out / relative
                to.parent.mkdir(parents=True, exist_ok=True)
                (self._metadata if file.name in METADATA else shutil.copy2)(file, to)
        return []

    def _name(self, file: Path) -> Path:
        """The name of an image in the copy; one that would be taken by another image keeps its old ending before."""
        relative = file.relative_to(self.home)
        if file.suffix.lower() == self.suffix:
            return relative
        endings = {ending for low in SUFFIXES for ending in (low, low.upper())} - {file.suffix}
        taken = any(file.with_suffix(ending).exists() for ending in endings)
        return relative.with_name(file.name + self.suffix) if taken else relative.with_suffix(self.suffix)

    def _renamed(self, folder: Path, name: Any) -> Any:
        file = folder / str(name)
        known = file.suffix.lower() in SUFFIXES and file.is_file()
        return os.path.relpath(self.home / self._name(file), folder) if known else name

    def _metadata(self, file: Path, to: Path) -> None:
        """Copies `metadata.jsonl` or `metadata.csv` with the names that the images have now, line by line."""
        with file.open(newline="", encoding="utf-8") as old, to.open("w", newline="", encoding="utf-8") as new:
            if file.suffix == ".csv":
                lines = csv.DictReader(old)
                writer = csv.DictWriter(new, lines.fieldnames or (), lineterminator="\n")
                writer.writeheader()
                for line in lines:
                    writer.writerow(line | {"file_name": self._renamed(file.parent, line.get("file_name"))})
                return
            for text in old:
                line = json.loads(text) if text.strip() else {}
                if "file_name" in line:
                    line["file_name"] = self._renamed(file.parent, line["file_name"])
                new.write(json.dumps(line, ensure_ascii=False) + "\n" if line else "")


# --- tables ----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table with a column of encoded images."""

    name: str
    """File name of its copy."""
    column: str
    """Its column of images: struct<bytes, path> or binary."""
    schema: Any
    """pyarrow schema, with metadata."""
    batches: Callable[[], Iterable[Any]]
    """Its rows as pyarrow record batches of at most `BATCH` rows."""


def _parquet_table(file: Path) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow

    def batches() -> Iterator[Any]:
        with pq.ParquetFile(file, memory_map=True) as opened:
            yield from opened.iter_batches(BATCH)

    return Table(file.name, image_column(file, schema), schema, batches)


def _hub_table(source: Hub, open_split: Callable[..., tuple[Any, str]]) -> Table:
    split, column = open_split(
        source.name, config=source.config, revision=source.revision, split=source.train, image=source.image
    )
    schema = split.features.arrow_schema

    def batches() -> Iterator[Any]:
        for table in split.with_format("arrow").iter(BATCH):
            yield from table.to_batches()

    return Table(f"{source.train}.parquet", column, schema, batches)


class TableCopy(Copy):
    """Parquet with all columns of the original. Images wait in a spool until the last one is there."""

    def __init__(self, listing: Listing, tables: Sequence[Table], out: Path, spool: Path, suffix: str) -> None:
        self.listing, self.tables, self.out, self.spool, self.suffix = listing, tables, out, spool, suffix

    def write(self, rows: Sequence[int], images: Sequence[bytes]) -> list[str]:
        with self.spool.open("ab") as file:
            for image in images:
                file.write(image)
        return [self._name(row) for row in rows]

    def read(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[bytes]:
        return iter(())  # compared when the tables are complete

    def cut(self, size: int) -> None:
        if self.spool.exists():
            os.truncate(self.spool, size)

    def finish(self, written: Callable[[], Iterator[tuple[int, int]]]) -> list[Path]:
        self.out.mkdir(parents=True, exist_ok=True)
        places, end = np.zeros((len(self.listing.labels), 2), np.int64), 0
        for row, size in written():
            places[row] = end, size
            end += size
        with self.spool.open("rb") as spool:
            images = (self._spooled(spool, *place) for place in places.tolist())
            made = [self._written(table, images) for table in self.tables]
        self.spool.unlink()
        return made

    @staticmethod
    def _spooled(spool: BinaryIO, start: int, size: int) -> bytes:
        spool.seek(start)
        return spool.read(size)

    def _name(self, row: int) -> str:
        file, place = self.listing.place(row)
        return f"{Path(file).name if len(self.tables) > 1 else self.tables[0].name} row {place}"

    def _written(self, table: Table, images: Iterator[bytes]) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.out / table.name
        draft = file.with_name(f"{file.name}.tmp")
        position = table.schema.get_field_index(table.column)
        with pq.ParquetWriter(draft, table.schema) as writer:
            for batch in table.batches():
                old = batch.column(position)
                new: Any = pa.array([next(images) for _ in range(len(batch))], pa.binary())
                if pa.types.is_struct(old.type):
                    new = self._struct(old, new)
                columns = [new.cast(old.type) if i == position else batch.column(i) for i in range(batch.num_columns)]
                writer.write_batch(pa.record_batch(columns, schema=batch.schema))
        draft.replace(file)
        return file

    def _struct(self, old: Any, new: Any) -> Any:
        """struct<bytes, path> with other bytes; the path keeps its name and gets the ending of what is stored now."""
        import pyarrow as pa

        fields = []
        for field in old.type:
            values = new if field.name == "bytes" else old.field(field.name)
            if field.name == "path":
                paths = [path and str(Path(path).with_suffix(self.suffix)) for path in values.to_pylist()]
                values = pa.array(paths, field.type)
            fields.append(values.cast(field.type))
        return pa.StructArray.from_arrays(fields, fields=list(old.type))


def images_in(file: Path) -> Iterator[bytes]:
    """Yields the encoded images of a parquet file in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        count = opened.metadata.num_rows
    return (data for _, data in parquet_images([file], np.arange(count)))
