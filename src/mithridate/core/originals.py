"""The training images of a source as they lie on disk: which file a row came from, and a copy without some rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mithridate.core.data import ImageData
from mithridate.core.listings import first_rows, list_folder, list_parquet, parquet_files, training_home
from mithridate.core.sources import DataSource, Folder, Parquet


class Originals(NamedTuple):
    """All training images of a source, none set aside for a test set."""

    data: ImageData
    """The images; row i is `files[i]`."""
    files: list[str]
    """What each row came from: a file, a file of many rows, or the name of the data set."""
    places: list[int]
    """The row in that file, counted from 0; for an image file of its own 0."""
    source: DataSource

    def name(self, row: int) -> str:
        """Says where a row came from."""
        return self.files[row] if isinstance(self.source, Folder) else f"{self.files[row]} row {self.places[row]}"


def originals(source: DataSource, device: str = "cpu") -> Originals:
    """Reads all training images of a source, with the place that each came from.

    Where a folder or file has no test set of its own, `DataSource.load` sets a fifth of the images aside; here they are
    all in.

    >>> from mithridate.core.sources import Digits
    >>> originals(Digits()).name(3)
    'digits row 3'

    Raises:
        ValueError: As `source.load`.
    """
    if not isinstance(source, Folder | Parquet):
        train, _ = source.load(device)
        return Originals(train, [type(source).__name__.lower()] * len(train), list(range(len(train))), source)
    path = Path(source.path).expanduser()
    whole = list_folder(training_home(path)) if isinstance(source, Folder) else list_parquet(_files(source))
    rows = first_rows(whole.labels, np.arange(len(whole.labels)), source.per_class)
    found = [whole.place(row) for row in rows.tolist()]
    data = whole.load(rows, source.size, source.cache).to(device)
    return Originals(data, [file for file, _ in found], [place or 0 for _, place in found], source)


def _files(source: Parquet) -> list[Path]:
    return parquet_files(Path(source.path).expanduser(), ("train",))


def copy_without(given: Originals, rows: Sequence[int], out: Path) -> int:
    """Writes a copy of the training images without some rows: files as they are, or parquet with all its columns.

    Rows beyond `per_class`, which were not read, are copied too: nothing is known against them. The copy appears whole
    or not at all.

    Args:
        given: What was read.
        rows: Rows of `given.data` to leave out.
        out: A folder that does not exist yet.

    Returns:
        The number of images in the copy.

    Raises:
        TypeError: The source has no files to copy.
        FileExistsError: `out` exists.
    """
    source = given.source
    check_copy(source, out)
    assert isinstance(source, Folder | Parquet)
    gone: dict[str, set[int]] = {}
    for row in rows:
        gone.setdefault(given.files[row], set()).add(given.places[row])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as held:
        half = Path(held) / "copy"
        half.mkdir()
        count = _copy_folder(source, gone, half) if isinstance(source, Folder) else _copy_parquet(source, gone, half)
        half.replace(out)
    return count


def check_copy(source: DataSource, out: Path) -> None:
    """Makes sure that a copy of a source can be made there, before the work that it is made after.

    Raises:
        TypeError: The source has no files to copy.
        FileExistsError: `out` exists.
    """
    if not isinstance(source, Folder | Parquet):
        raise TypeError(
            f"{type(source).__name__.lower()} has no image files to copy; a copy is made of an image folder or of "
            "parquet files: take the list of rows instead"
        )
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a folder that does not")


def _copy_folder(source: Folder, gone: dict[str, set[int]], out: Path) -> int:
    home = training_home(Path(source.path).expanduser())
    whole, count = list_folder(home), 0
    for row in range(len(whole.labels)):
        file, _ = whole.place(row)
        if file not in gone:
            to = out / Path(file).relative_to(home)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)
            count += 1
    return count


def _copy_parquet(source: Parquet, gone: dict[str, set[int]], out: Path) -> int:
    """Row group by row group, with the schema and the metadata of the original."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for file in _files(source):
        left_out = np.array(sorted(gone.get(str(file), ())), dtype=np.int64)
        with pq.ParquetFile(file) as original:
            schema: Any = original.schema_arrow
            with pq.ParquetWriter(out / file.name, schema) as writer:
                start = 0
                for group in range(original.num_row_groups):
                    table = original.read_row_group(group)
                    keep = ~np.isin(np.arange(start, start + len(table)), left_out)
                    start += len(table)
                    kept = table.filter(pa.array(keep))
                    writer.write_table(kept)
                    count += len(kept)
    return count
