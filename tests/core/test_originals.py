"""Originals: where a row came from, and copies without some rows, on small folders and parquet files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mithridate.core.originals import copy_without, originals
from mithridate.core.sources import Digits, Folder, Parquet

NAMES = ("cat", "dog")


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint8))


def folder(home: Path, *, split: bool = False, count: int = 5) -> Path:
    """Images whose grey value is 10 times their number, plus 100 for dogs."""
    base = home / "train" if split else home
    for label, name in enumerate(NAMES):
        (base / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * label + 10 * number).save(base / name / f"{number}.png")
    return home


def encoded(value: int) -> bytes:
    out = io.BytesIO()
    picture(value).save(out, "PNG")
    return out.getvalue()


def parquet(home: Path, shards: int = 2, each: int = 5) -> Path:
    """Shards with a column of notes and metadata of their own; two row groups each."""
    home.mkdir(exist_ok=True)
    for shard in range(shards):
        values = [20 * each * shard + 10 * i for i in range(each)]
        table = pa.table(
            {
                "img": [{"bytes": encoded(value), "path": f"{value}.png"} for value in values],
                "label": [i % 2 for i in range(each)],
                "note": [f"note {value}" for value in values],
            }
        ).replace_schema_metadata({"owner": "me"})
        pq.write_table(table, home / f"train-{shard:05d}-of-{shards:05d}.parquet", row_group_size=3)
    return home


def test_rows_of_a_folder_are_its_files_and_none_is_set_aside(tmp_path: Path) -> None:
    found = originals(Folder(str(folder(tmp_path / "set"))))
    assert len(found.data) == 10
    for row in range(10):
        file = Path(found.files[row])
        assert file.parent.name == NAMES[int(found.data.labels[row])]
        assert np.array_equal(np.asarray(Image.open(file)), found.data.images[row, 0].numpy())
        assert found.name(row) == str(file)


def test_rows_of_parquet_shards_count_from_0_in_each(tmp_path: Path) -> None:
    found = originals(Parquet(str(parquet(tmp_path / "set"))))
    assert len(found.data) == 10
    assert found.places == [0, 1, 2, 3, 4] * 2
    for row, (file, place) in enumerate(zip(found.files, found.places, strict=True)):
        note = pq.read_table(file)["note"][place].as_py()
        assert note == f"note {int(found.data.images[row, 0, 0, 0])}"
    assert found.name(7).endswith("train-00001-of-00002.parquet row 2")


def test_only_the_first_of_each_class_are_read_where_asked(tmp_path: Path) -> None:
    found = originals(Parquet(str(parquet(tmp_path / "set")), per_class=2))
    assert found.places == [0, 1, 2, 3]
    assert len(found.data) == 4


@pytest.mark.parametrize("split", [False, True])
def test_a_copied_folder_is_the_same_files_without_some(tmp_path: Path, split: bool) -> None:
    home = folder(tmp_path / "set", split=split)
    found = originals(Folder(str(home)))
    gone = [1, 8]
    assert copy_without(found, gone, tmp_path / "out" / "clean") == 8
    base = home / "train" if split else home
    before = {file.relative_to(base): file.read_bytes() for file in base.rglob("*.png")}
    after = {
        file.relative_to(tmp_path / "out" / "clean"): file.read_bytes()
        for file in (tmp_path / "out" / "clean").rglob("*.png")
    }
    left = {Path(found.files[row]).relative_to(base) for row in gone}
    assert after == {name: data for name, data in before.items() if name not in left}
    assert len(after) == 8


def test_a_copied_parquet_keeps_columns_types_and_metadata(tmp_path: Path) -> None:
    home = parquet(tmp_path / "set")
    found = originals(Parquet(str(home), per_class=4))  # who is not read is copied
    assert copy_without(found, [0, 6], tmp_path / "clean") == 8
    for number in range(2):
        name = f"train-{number:05d}-of-00002.parquet"
        before, after = pq.read_table(home / name), pq.read_table(tmp_path / "clean" / name)
        assert after.schema.equals(before.schema, check_metadata=True)
        left = [found.places[row] for row in (0, 6) if found.files[row].endswith(name)]
        assert after.equals(before.take([i for i in range(5) if i not in left]))
    again = originals(Parquet(str(tmp_path / "clean")))
    assert len(again.data) == 8


def test_nothing_is_left_where_a_copy_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = originals(Folder(str(folder(tmp_path / "set"))))

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("shutil.copy2", broken)
    with pytest.raises(OSError, match="disk full"):
        copy_without(found, [0], tmp_path / "clean")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set"]


def test_what_cannot_be_copied_says_so(tmp_path: Path) -> None:
    found = originals(Digits(train=20))
    assert found.name(19) == "digits row 19"
    with pytest.raises(TypeError, match="digits has no image files to copy"):
        copy_without(found, [0], tmp_path / "clean")
    there = originals(Folder(str(folder(tmp_path / "set"))))
    with pytest.raises(FileExistsError, match="exists already; name a folder that does not"):
        copy_without(there, [0], tmp_path)
