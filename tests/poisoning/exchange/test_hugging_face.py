from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mithridate.core.readers import read_parquet
from mithridate.core.safe_images import png
from mithridate.poisoning.exchange.hugging_face import HuggingFace
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from tests.core.test_safe_images import bomb
from tests.poisoning.exchange.exchange_cases import equal, parcels, poison_of, reference, returned, survives_damage

LAYOUTS = ("parquet", "imagefolder")
PNG = png(torch.zeros(3, 8, 8, dtype=torch.uint8))


def form(layout: Any) -> HuggingFace:
    return HuggingFace(layout=layout)


@given(parcels(), st.sampled_from(LAYOUTS))
@settings(max_examples=25)
def test_round_trip(case: tuple[Parcel, Reference], layout: str) -> None:
    parcel, data = case
    back = returned(form(layout), parcel, data)
    assert equal(parcel, back, HuggingFace.carries)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_marked_rows_come_back_even_where_nothing_was_changed(tmp_path: Path, layout: str) -> None:
    data = reference()
    rows = torch.tensor([3, 5])
    parcel = Parcel(data.train.pixels(rows).contiguous(), data.train.labels_of(rows), rows)
    form(layout).write(parcel, tmp_path, data)
    for said in LAYOUTS:  # whatever was said, the names of the files tell
        assert equal(parcel, form(said).read(tmp_path, data), HuggingFace.carries)
    with pytest.raises(FileExistsError):
        form(layout).write(parcel, tmp_path, data)


def without(path: Path, *columns: str, **new: list) -> None:
    """Writes the table again without some columns, or with other values in them."""
    table = pq.read_table(path / "train.parquet")
    for name, values in new.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table.drop_columns(list(columns)), path / "train.parquet")


def test_files_without_marks(tmp_path: Path) -> None:
    """As others publish a poisoned set: images and labels only, in the order of the clean set."""
    data = reference()
    parcel = poison_of([2, 9], 0, data, relabel=True)
    form("parquet").write(parcel, tmp_path / "table", data)
    without(tmp_path / "table", "row", "poisoned")
    assert equal(parcel, form("parquet").read(tmp_path / "table", data), HuggingFace.carries)
    assert equal(parcel, form("parquet").read(tmp_path / "table" / "train.parquet", data), HuggingFace.carries)
    form("imagefolder").write(parcel, tmp_path / "folder", data)
    file = tmp_path / "folder" / "train" / "metadata.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({"file_name": line["file_name"], "label": line["label"]}) for line in lines))
    assert equal(parcel, form("imagefolder").read(tmp_path / "folder", data), HuggingFace.carries)


def test_shards_and_plain_bytes(tmp_path: Path) -> None:
    data = reference()
    expected = poison_of([2, 9], 0, data).poison().apply(data.train)
    for shard, rows in enumerate((range(10), range(10, 24))):
        images = [png(expected.pixels(torch.tensor([row]))[0]) for row in rows]
        labels = expected.labels_of(torch.tensor(list(rows))).tolist()
        table = pa.table({"img": images, "labels": pa.array(labels, pa.int32())})
        pq.write_table(table, tmp_path / f"train-0000{shard}-of-00002.parquet")
    assert form("parquet").recognises(tmp_path)
    assert equal(poison_of([2, 9], 0, data), form("parquet").read(tmp_path, data), {"images", "rows"})


def test_our_own_reader_sees_the_poisoned_set(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([2, 9], 0, data, relabel=True)
    form("parquet").write(parcel, tmp_path, data)
    found, expected = read_parquet(tmp_path), parcel.poison().apply(data.train)
    assert found.classes == data.train.classes
    assert torch.equal(found.images, expected.pixels(expected.ids))
    assert torch.equal(found.labels, expected.labels_of(expected.ids))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_datasets_reads_it(tmp_path: Path, layout: str) -> None:
    datasets = pytest.importorskip("datasets", reason="extra hub")
    data = reference()
    parcel = poison_of([2, 9], 0, data, relabel=True)
    form(layout).write(parcel, tmp_path / "set", data)
    found = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    expected = parcel.poison().apply(data.train)
    assert len(found) == len(data.train)
    for line in found:
        row = torch.tensor([line["row"]])
        assert np.array_equal(np.asarray(line["image"]), expected.pixels(row)[0].permute(1, 2, 0).numpy())
        assert line["label"] == int(expected.labels_of(row))
        assert line["poisoned"] == (line["row"] in (2, 9))
    if layout == "parquet":
        assert tuple(found.features["label"].names) == data.train.classes


# --- planted faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"row": [0, *range(23)]}, "row 0 is named more than once"),
        ({"row": [24, *range(1, 24)]}, "row 24 is not in"),
        ({"row": [-1, *range(1, 24)]}, "row -1 is not in"),
        ({"row": [None, *range(1, 24)]}, "'None'"),
        ({"row": [0.5] * 24}, "expected a whole number"),
        ({"label": [3] * 24}, "label 3 is none of the 3"),
        ({"label": ["ant"] * 24}, "expected a whole number"),
        ({"poisoned": [1] * 24}, "expected true or false"),
        ({"poisoned": [False] * 24}, "said to be clean, but differs"),
        ({"label": [1] + [0, 1, 2] * 7 + [0, 1]}, "said to be clean, but differs"),
        ({"image": [PNG[:40]] * 24}, "without being complete"),
        ({"image": [bomb(50000, 50000)] * 24}, "50000x50000"),
        ({"image": [png(torch.zeros(3, 8, 9, dtype=torch.uint8))] * 24}, "9x8"),
        ({"image": [None, *[PNG] * 23]}, "no image bytes"),
        ({"image": [1] * 24}, "image"),
        ({"image": ["../../etc/passwd"] * 24}, "image"),
    ],
)
def test_faults_in_tables(tmp_path: Path, columns: dict[str, list], said: str) -> None:
    data = reference()
    form("parquet").write(poison_of([2], 0, data), tmp_path, data)
    without(tmp_path, **columns)
    with pytest.raises(ValueError, match=said):
        form("parquet").read(tmp_path, data)


def test_a_table_must_be_whole_and_of_these_classes(tmp_path: Path) -> None:
    data = reference()
    form("parquet").write(poison_of([2], 0, data), tmp_path, data)
    few = Reference(data.train.select(range(20)), data.test)
    with pytest.raises(ValueError, match="holds 24 images, the training set 20"):
        form("parquet").read(tmp_path, few)
    table = pq.read_table(tmp_path / "train.parquet")
    meta = table.schema.metadata[b"huggingface"].replace(b'"bee"', b'"dog"')
    pq.write_table(table.replace_schema_metadata({"huggingface": meta}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has the classes"):
        form("parquet").read(tmp_path, data)
    pq.write_table(table.replace_schema_metadata({"huggingface": b"[" * 9999}), tmp_path / "train.parquet")
    with pytest.raises(ValueError):
        form("parquet").read(tmp_path, data)
    pq.write_table(table.drop_columns(["label"]), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column label"):
        form("parquet").read(tmp_path, data)


def test_the_checksums_of_pages_are_compared(tmp_path: Path) -> None:
    data = reference()
    (file,) = form("parquet").write(poison_of([2], 0, data), tmp_path, data)
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum|CRC"):
        form("parquet").read(tmp_path, data)


def test_a_link_to_a_table_elsewhere(tmp_path: Path) -> None:
    data = reference()
    form("parquet").write(poison_of([2], 0, data), tmp_path / "a", data)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.parquet").symlink_to(tmp_path / "a" / "train.parquet")
    with pytest.raises(ValueError, match="out of its folder"):
        form("parquet").read(tmp_path / "b", data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_name": "../../secret/0.png"}, "leads out"),
        ({"file_name": "/etc/passwd"}, "leads out"),
        ({"file_name": "C:\\x.png"}, "leads out"),
        ({"file_name": None}, "no file_name"),
        ({"file_name": "bee/1.png"}, "lies in the folder"),
        ({"row": 1}, "row 1 is named more than once"),
        ({"row": 99}, "row 99 is not in"),
        ({"row": True}, "expected a whole number"),
        ({"label": 3}, "lies in the folder|none of the 3"),
        ({"label": "ant"}, "expected a whole number"),
        ({"label": 10**30}, "lies in the folder"),
        ({"poisoned": "yes"}, "expected true or false"),
    ],
)
def test_faults_in_metadata(tmp_path: Path, change: dict, said: str) -> None:
    data = reference()
    form("imagefolder").write(poison_of([2], 0, data), tmp_path, data)
    file = tmp_path / "train" / "metadata.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | change)
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=said):
        form("imagefolder").read(tmp_path, data)


def test_faults_in_folders(tmp_path: Path) -> None:
    data = reference()
    form("imagefolder").write(poison_of([2], 0, data), tmp_path / "a", data)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    image = tmp_path / "b" / "train" / "ant" / "0.png"
    image.write_bytes(PNG)
    with pytest.raises(ValueError, match="said to be clean, but differs"):
        form("imagefolder").read(tmp_path / "b", data)
    image.unlink()
    with pytest.raises(FileNotFoundError):
        form("imagefolder").read(tmp_path / "b", data)
    (tmp_path / "b" / "train" / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="a whole training set was expected"):
        form("imagefolder").read(tmp_path / "b", data)


def test_nothing_there(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        assert not form(layout).recognises(tmp_path / "none")
        with pytest.raises((FileNotFoundError, ValueError)):
            form(layout).read(tmp_path / "none", reference())


@given(st.sampled_from(LAYOUTS), st.integers(0, 10**6))
@settings(max_examples=60)
def test_damaged_files(layout: str, seed: int) -> None:
    survives_damage(form(layout), "out", seed)


@given(st.sampled_from(LAYOUTS), st.binary(max_size=300), st.sampled_from([b"", b"PAR1"]))
@settings(max_examples=40)
def test_random_bytes(layout: str, garbage: bytes, ends: bytes) -> None:
    survives_damage(form(layout), "out", 0, ends + garbage + ends)
