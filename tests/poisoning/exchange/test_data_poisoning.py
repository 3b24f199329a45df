from __future__ import annotations

import csv
import dataclasses
import io
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mithridate.core.safe_images import png
from mithridate.core.schema import parse
from mithridate.poisoning.exchange.data_poisoning import DataPoisoning, _looks_like
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from tests.core.test_safe_images import bomb
from tests.poisoning.exchange.exchange_cases import (
    damaged,
    equal,
    parcels,
    poison_of,
    reference,
    refused,
    returned,
    survives_damage,
)

MODES = ("limited", "full", "numpy", "packed", "automl")
STD = (0.247, 0.243, 0.262)

KEPT = {
    "limited": {"images", "labels", "rows", "target_rows", "target_images", "intended"},
    "full": {"images", "labels", "rows", "target_rows", "target_images", "intended"},
    "numpy": {"images", "labels", "rows"},
    "packed": {"images", "rows"},
    "automl": {"images", "labels", "rows"},
}


def form(mode: Any, channels: int = 3) -> DataPoisoning:
    return DataPoisoning(mode=mode, std="/".join(map(str, STD[:channels])))


@pytest.mark.parametrize("mode", MODES)
def test_round_trip(mode: str) -> None:
    @given(parcels(relabel=mode != "packed", smallest=1))
    @settings(max_examples=10)
    def holds(case: tuple[Parcel, Reference]) -> None:
        parcel, data = case
        back = returned(form(mode, data.train.shape[0]), parcel, data)
        assert DataPoisoning.carries <= KEPT[mode]
        if not parcel.targets:
            assert back.target_rows is None
        kept = {name for name in KEPT[mode] if parcel.targets or ("target" not in name and name != "intended")}
        assert equal(parcel, back, kept)

    holds()


def test_modes_are_told_apart(tmp_path: Path) -> None:
    data = reference()
    for mode in MODES:
        form(mode).write(poison_of([1], 0, data, targets=1), tmp_path / mode, data)
        assert [other for other in MODES if _looks_like(tmp_path / mode, other)] == [mode]
        for other in MODES:  # whatever mode was said, the names of the files tell
            assert form(other).recognises(tmp_path / mode)
            assert form(other).read(tmp_path / mode, data).rows == torch.tensor([1])
        assert not form(mode).recognises(tmp_path / "none")
        with pytest.raises(FileExistsError):
            form(mode).write(poison_of([1], 0, data), tmp_path / mode, data)
        with pytest.raises(FileNotFoundError):
            form(mode).read(tmp_path / "none", data)


# --- as others read and write it -------------------------------------------------------------------------------------


def as_image_folder(root: Path) -> list[tuple[str, int]]:
    """Names and labels as torchvision's ImageFolder gives them: classes numbered by the order of their names."""
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    return [(str(file), label) for label, name in enumerate(classes) for file in sorted((root / name).rglob("*.png"))]


def test_an_image_folder_is_the_poisoned_set(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([1, 4, 6], 3, data, relabel=True, targets=2)
    form("full").write(parcel, tmp_path, data)
    expected = parcel.poison().apply(data.train)
    found = as_image_folder(tmp_path / "train")
    assert len(found) == len(data.train)
    for name, label in found:
        row = torch.tensor([int(Path(name).stem)])
        assert label == int(expected.labels_of(row))
        assert np.array_equal(np.asarray(Image.open(name)), expected.pixels(row)[0].permute(1, 2, 0).numpy())
    assert len(as_image_folder(tmp_path / "test")) == len(data.test)
    assert parcel.intended is not None
    assert sorted(label for _, label in as_image_folder(tmp_path / "targets")) == sorted(parcel.intended.tolist())


def test_arrays_are_those_of_the_peer(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([1, 4], 3, data, relabel=True)
    form("numpy").write(parcel, tmp_path, data)
    images, labels = (np.load(tmp_path / f"poisoned_training_{name}.npy") for name in ("data", "labels"))
    assert images.dtype == labels.dtype == np.float64
    expected = parcel.poison().apply(data.train)
    assert np.array_equal(images, expected.pixels(expected.ids).permute(0, 2, 3, 1).numpy())
    assert labels.tolist() == expected.labels_of(expected.ids).tolist()


def test_packed_deltas_are_of_normalised_pixels(tmp_path: Path) -> None:
    """A poison made as the framework makes it: a bounded float delta, added after normalisation, rounded by PIL."""
    data, mean = reference(), torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    std, ids = torch.tensor(STD)[:, None, None], torch.tensor([7, 2, 11])
    delta = (torch.rand(3, 3, 8, 8) - 0.5) * 2 * 16 / 255 / std
    torch.save([delta, ids], tmp_path / "poisons_packed_2021-03-01.pth")
    normalised = (data.train.floats(ids) - mean) / std + delta
    expected = (normalised * std + mean).clamp(0, 1).mul(255).add(0.5).clamp(0, 255).to(torch.uint8)
    back = form("packed").read(tmp_path, data)
    assert back.rows is not None
    assert back.rows.tolist() == [7, 2, 11]
    away = (back.images.int() - expected.int()).abs()
    assert int(away.max()) <= 1  # their float32 may fall on the other side of a half
    assert float((away > 0).float().mean()) < 0.01
    parcel = poison_of([5, 3], 0, data)
    form("packed").write(parcel, tmp_path / "own", data)
    written, rows = torch.load(tmp_path / "own" / "poisons_packed.pth", weights_only=True)
    change = (parcel.poison().images.float() - data.train.pixels(rows).float()) / 255
    assert torch.allclose(written * std, change, atol=1e-6)


def test_packed_needs_to_know_the_scale(tmp_path: Path) -> None:
    data = reference()
    form("packed").write(poison_of([1], 0, data), tmp_path, data)
    for std in (None, "0.25"):
        with pytest.raises(ValueError, match="3 standard deviations"):
            DataPoisoning(mode="packed", std=std).read(tmp_path, data)
    for std in ("0/1/1", "a/b/c", "", "nan/1/1", "-1"):
        with pytest.raises(ValueError, match="positive"):
            DataPoisoning(mode="packed", std=std)
    assert parse(Format, "data-poisoning:mode=packed,std=0.2/0.3/0.4") == DataPoisoning(
        mode="packed", std="0.2/0.3/0.4"
    )
    with pytest.raises(ValueError, match="no labels"):
        form("packed").write(poison_of([1, 2, 3], 1, data, relabel=True), tmp_path / "new", data)


def test_the_table_names_every_image(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([1, 4], 3, data, relabel=True)
    form("automl").write(parcel, tmp_path, data)
    with (tmp_path / "data.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == len(data.train) + len(data.test)
    assert {line[0] for line in lines} == {"TRAIN", "TEST"}
    assert all((tmp_path / line[1]).is_file() for line in lines)
    expected = parcel.poison().apply(data.train)
    names = [data.train.classes[label] for label in expected.labels_of(expected.ids).tolist()]
    assert [line[2] for line in lines if line[0] == "TRAIN"] == names


# --- planted faults --------------------------------------------------------------------------------------------------

PNG = png(torch.zeros(3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("mode", ["limited", "full"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train/dog/5.png", PNG, "expected <class>/<row>.png"),
        ("train/5.png", PNG, "expected <class>/<row>.png"),
        ("train/ant/five.png", PNG, "expected <class>/<row>.png"),
        ("targets/dog/5.png", PNG, "expected <class>/<row>.png"),
        ("targets/ant/9.png", PNG, "test row 9 is not in"),
        ("targets/ant/5.png", PNG[:50], "without being complete"),
        ("targets/ant/5.png", bomb(50000, 50000), "50000x50000"),
    ],
)
def test_faults_in_trees(tmp_path: Path, mode: str, name: str, content: bytes, said: str) -> None:
    data = reference()
    form(mode).write(poison_of([3], 0, data), tmp_path / "out", data)
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        form(mode).read(tmp_path / "out", data)


def test_faults_in_rows_of_trees(tmp_path: Path) -> None:
    data = reference()
    for name, said in (("bee/3.png", "row 3 is named more than once"), ("bee/24.png", "row 24 is not in")):
        form("limited").write(poison_of([3], 0, data, targets=0), tmp_path / name, data)
        (tmp_path / name / "train" / name).write_bytes(PNG)
        with pytest.raises(ValueError, match=said):
            form("limited").read(tmp_path / name, data)
    files = form("full").write(poison_of([3], 0, data), tmp_path / "full", data)
    files[0].unlink()
    with pytest.raises(ValueError, match="holds 23 images, the training set 24"):
        form("full").read(tmp_path / "full", data)


def test_class_names_must_be_folders(tmp_path: Path) -> None:
    data = reference()
    bad = [dataclasses.replace(one, classes=("ant", "../bee", "cat")) for one in (data.train, data.test)]
    with pytest.raises(ValueError, match="name of a folder"):
        form("limited").write(poison_of([3], 0, reference()), tmp_path / "a", Reference(*bad))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("TRAIN,../../secret/1.png,ant", "leads out"),
        ("TRAIN,/etc/1.png,ant", "leads out"),
        ("TEST,../1.png,ant", "leads out"),
        ("TRAIN,gs://bucket/1.png,ant", "not on this disk"),
        ("TRAIN,train/1.png,dog", "expected <row>.png and a class"),
        ("TRAIN,train/one.png,ant", "expected <row>.png and a class"),
        ("LEARN,train/1.png,ant", "begins with 'LEARN'"),
        ("TRAIN,train/1.png", "2 values"),
        ("TRAIN,train/2.png,ant", "row 2 is named more than once"),
        ('"TRAIN,train/1.png,ant', "no table"),
    ],
)
def test_faults_in_tables(tmp_path: Path, line: str, said: str) -> None:
    data = reference()
    form("automl").write(poison_of([3], 0, data), tmp_path / "out", data)
    table = tmp_path / "out" / "data.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:1], line, *lines[2:]]))
    with pytest.raises(ValueError, match=said):
        form("automl").read(tmp_path / "out", data)
    table.write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match="holds 23 images"):
        form("automl").read(tmp_path / "out", data)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("data", lambda a: a + 0.25, "expected whole numbers"),
        ("data", lambda a: a / 255, "expected whole numbers"),
        ("data", lambda a: a * np.nan, "pixels hold nan"),
        ("data", lambda a: a + 200, "in 0..255"),
        ("data", lambda a: a[1:], "shape"),
        ("data", lambda a: a.transpose(0, 3, 1, 2), "shape"),
        ("data", lambda a: a.astype(complex), "complex128"),
        ("data", lambda a: a.astype(object), "object"),
        ("labels", lambda a: a + 1, "labels hold 3"),
        ("labels", lambda a: a - 1, "labels hold -1"),
        ("labels", lambda a: a + 0.5, "labels hold 0.5"),
        ("labels", lambda a: a[:, None], "shape"),
    ],
)
def test_faults_in_arrays(tmp_path: Path, name: str, change: Any, said: str) -> None:
    data = reference()
    form("numpy").write(poison_of([3], 0, data), tmp_path, data)
    file = tmp_path / f"poisoned_training_{name}.npy"
    np.save(file, change(np.load(file)), allow_pickle=True)
    with pytest.raises(ValueError, match=said):
        form("numpy").read(tmp_path, data)


def test_arrays_that_lie_about_their_length(tmp_path: Path) -> None:
    data = reference()
    form("numpy").write(poison_of([3], 0, data), tmp_path, data)
    file = tmp_path / "poisoned_training_data.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="its header says"):
        form("numpy").read(tmp_path, data)
    file.write_bytes(content[:8] + struct.pack("<H", 65535) + b"(" * 70000)
    with pytest.raises(ValueError):
        form("numpy").read(tmp_path, data)


class Call:
    """Would leave a file behind if it were unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_packed_never_runs_what_it_reads(tmp_path: Path) -> None:
    data, trace = reference(), tmp_path / "trace"
    file = tmp_path / "poisons_packed.pth"
    for save in (lambda: torch.save([Call(trace), 1], file), lambda: file.write_bytes(pickle.dumps(Call(trace)))):
        save()
        with pytest.raises(ValueError):
            form("packed").read(file, data)
    torch.save([torch.zeros(1, 3, 8, 8), Call(trace)], file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="asks for '"):
        form("packed").read(file, data)
    assert not trace.exists()


def test_packed_may_be_of_an_old_torch(tmp_path: Path) -> None:
    """The framework is of 2020; torch has written zip archives since 1.6 of that year."""
    data, content = reference(), [torch.zeros(1, 3, 8, 8), torch.tensor([2])]
    torch.save(content, tmp_path / "poisons_packed_2020-09-01.pth", _use_new_zipfile_serialization=False)
    assert form("packed").read(tmp_path, data).rows == torch.tensor([2])


def test_a_changed_bit_of_a_torch_file_is_noticed(tmp_path: Path) -> None:
    data = reference()
    (file,) = form("packed").write(poison_of([1], 0, data), tmp_path, data)
    content, values = bytearray(file.read_bytes()), torch.load(file, weights_only=True)[0].numpy().tobytes()
    content[content.index(values) + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        form("packed").read(tmp_path, data)


@pytest.mark.parametrize("name", ["os system", "builtins eval", "torch load", "builtins bytearray", "numpy load"])
def test_what_a_pickle_asks_for_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "poisons_packed.pth"
    module, function = name.split()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", f"\x80\x02c{module}\n{function}\nX\1\0\0\0x\x85R.".encode("latin1"))
        packed.writestr("a/version", b"3\n")
    with pytest.raises(ValueError, match=f"asks for '{module}.{function}'"):
        form("packed").read(file, reference())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(1, 3, 8, 8), torch.tensor([24])], "row 24 is not in"),
        ([torch.zeros(2, 3, 8, 8), torch.tensor([2, 2])], "more than once"),
        ([torch.zeros(2, 3, 8, 8), torch.tensor([2])], "deltas are"),
        ([torch.zeros(1, 3, 8, 9), torch.tensor([2])], "deltas are"),
        ([torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.tensor([2])], "deltas are"),
        ([torch.full((1, 3, 8, 8), torch.nan), torch.tensor([2])], "NaN"),
        ([torch.zeros(1, 3, 8, 8), torch.tensor([2.0])], "rows are"),
        ([torch.zeros(1, 3, 8, 8), ["a"]], "else than 2 tensors"),
        ([torch.zeros(1, 3, 8, 8)], "list of 2"),
        ({"delta": torch.zeros(1, 3, 8, 8)}, "list of 2"),
        ([torch.zeros(1).expand(1, 3, 8, 8), torch.tensor([2])], r"tensor \(1, 3, 8, 8\) of 1 values"),
        ([torch.zeros(1, 3, 8, 8).to_sparse(), torch.tensor([2])], "_rebuild_sparse"),
        ([torch.zeros(1, 3, 8, 8, device="meta"), torch.tensor([2])], "_rebuild_meta"),
        ([torch.zeros(25, 3, 8, 8), torch.arange(25)], "rows are"),
    ],
)
def test_faults_in_packed(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "poisons_packed.pth")
    with pytest.raises(ValueError, match=said):
        form("packed").read(tmp_path, reference())


def test_rows_may_be_a_list(tmp_path: Path) -> None:
    torch.save([torch.zeros(1, 3, 8, 8), [2]], tmp_path / "poisons_packed.pth")
    assert form("packed").read(tmp_path, reference()).rows == torch.tensor([2])


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [("../evil", zipfile.ZIP_STORED, "leads out"), ("a/data/1", zipfile.ZIP_DEFLATED, "packs nothing")],
)
def test_odd_archives(tmp_path: Path, name: str, how: int, said: str) -> None:
    file = tmp_path / "poisons_packed.pth"
    torch.save([torch.zeros(1, 3, 8, 8), torch.tensor([2])], file)
    with zipfile.ZipFile(file, "a") as packed:
        packed.writestr(zipfile.ZipInfo(name), bytes(1000), how)
    with pytest.raises(ValueError, match=said):
        form("packed").read(tmp_path, reference())


# --- fuzz ------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(MODES), st.integers(0, 10**6))
@settings(max_examples=70)
def test_damaged_files(mode: str, seed: int) -> None:
    survives_damage(form(mode), "out", seed)


@given(st.sampled_from(MODES), st.binary(max_size=300), st.integers(0, 99))
@settings(max_examples=30)
def test_random_bytes(mode: str, garbage: bytes, seed: int) -> None:
    survives_damage(form(mode), "out", seed, garbage)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_damaged_pickles_in_whole_archives(seed: int) -> None:
    file = io.BytesIO()
    torch.save([torch.zeros(1, 3, 4, 4), torch.tensor([2])], file)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "poisons_packed.pth"
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                new.writestr(entry.filename, damaged(content, seed) if entry.filename.endswith(".pkl") else content)
        refused(lambda: form("packed").read(path, reference(3, 4)))
