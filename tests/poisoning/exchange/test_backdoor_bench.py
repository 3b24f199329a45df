from __future__ import annotations

import dataclasses
import io
import pickle
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
from mithridate.poisoning.exchange.backdoor_bench import BackdoorBench
from mithridate.poisoning.exchange.parcel import Parcel, Reference
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

FORM = BackdoorBench()


@given(parcels(targets=3, smallest=1))
@settings(max_examples=20)
def test_round_trip(case: tuple[Parcel, Reference]) -> None:
    parcel, data = case
    if not parcel.targets:
        with pytest.raises(ValueError, match="needs target_rows"):
            FORM.write(parcel, Path("nowhere"), data)
        return
    assert equal(parcel, returned(FORM, parcel, data), BackdoorBench.carries)


def test_a_patch_comes_back(tmp_path: Path) -> None:
    data = reference()
    patch = torch.tensor([0.0, 1.0]).expand(3, 2, 2)
    parcel = dataclasses.replace(poison_of([3, 5], 0, data, relabel=True, targets=3), patch=patch, place=(5, 6))
    FORM.write(parcel, tmp_path, data)
    back = FORM.read(tmp_path, data)
    assert back.place == (5, 6)
    assert back.patch is not None
    assert torch.equal(back.patch, patch)
    assert back.notes == {"model_name": "preactresnet18", "clean_data": "cifar10"}


def test_another_trigger_is_said_to_be_one(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([3], 0, data, targets=3)
    assert parcel.target_images is not None
    blended = (parcel.target_images.float() * 0.8 + 40).to(torch.uint8)
    FORM.write(dataclasses.replace(parcel, target_images=blended), tmp_path, data)
    back = FORM.read(tmp_path, data)
    assert back.patch is None
    assert "not one patch" in back.notes["trigger"]


# --- as BackdoorBench reads and writes -------------------------------------------------------------------------------


def as_the_bench_reads(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The rules of its reader, by hand: paths relative to its root, images by row where the indicator is 1."""
    monkeypatch.chdir(root)
    save_path = str(Path(f"record/{name}/attack_result.pt").resolve())
    record = torch.load(save_path, weights_only=False)
    assert save_path.index("record") > 0
    assert record["data_path"].index("data") >= 0
    sides = {}
    for side in ("bd_train", "bd_test"):
        state = record[side]
        assert isinstance(state["original_index_array"], np.ndarray)
        assert isinstance(state["poison_indicator"], np.ndarray)
        seen = {}
        for original in state["original_index_array"]:
            if state["poison_indicator"][original] == 1:
                entry = state["bd_data_container"]["data_dict"][original]
                with Image.open(entry["path"]) as image:
                    seen[int(original)] = (np.asarray(image).copy(), *entry["other_info"])
        sides[side] = (len(state["original_index_array"]), seen)
    return {**record, **sides}


def test_the_peers_reader_sees_the_poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = reference()
    parcel = poison_of([9, 2], 0, data, relabel=True, targets=2)
    torch.save({"b": torch.ones(2), "a": torch.zeros(1)}, tmp_path / "weights.pt")
    form = BackdoorBench(name="ours", weights=tmp_path / "weights.pt")
    form.write(parcel, tmp_path / "bench", data)
    record = as_the_bench_reads(tmp_path / "bench", "ours", monkeypatch)
    assert list(record["model"]) == ["b", "a"]  # it matches weights by position
    assert record["img_size"] == [8, 8, 3]
    assert record["num_classes"] == 3
    count, seen = record["bd_train"]
    assert count == len(data.train)
    poison = parcel.poison()
    assert poison.labels is not None
    assert sorted(seen) == poison.rows.tolist()
    for row, image, label in zip(poison.rows.tolist(), poison.images, poison.labels.tolist(), strict=True):
        assert np.array_equal(seen[row][0], image.permute(1, 2, 0).numpy())
        assert seen[row][1:] == (label, int(data.train.labels_of(torch.tensor([row]))))
    assert parcel.target_rows is not None
    assert sorted(record["bd_test"][1]) == sorted(parcel.target_rows.tolist())


def in_memory(data: Reference, rows: list[int]) -> dict[str, Any]:
    """A record as BackdoorBench itself writes it for small data: Pillow images, keys and labels of numpy."""

    def side(chosen: list[int], images: Any, whole: Any, every: bool) -> dict[str, Any]:
        marks = np.zeros(len(whole))
        marks[chosen] = 1
        entries = {
            np.int64(row): (
                Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()),
                1,
                np.int64(whole.labels[row]),
            )
            for row, image in zip(chosen, images, strict=True)
        }
        return {
            "bd_data_container": {"save_folder_path": None, "data_dict": entries, "save_file_format": ".png"},
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(len(whole)) if every else np.array(chosen),
            "poison_indicator": marks,
            "save_folder_path": None,
        }

    parcel = poison_of(rows, 0, data)
    return {
        "model_name": "resnet18",
        "num_classes": 3,
        "model": {"w": torch.zeros(2)},
        "data_path": "./data",
        "img_size": (8, 8, 3),
        "clean_data": "cifar10",
        "bd_train": side(rows, parcel.images, data.train, True),
        "bd_test": side([0, 2], data.test.pixels(torch.tensor([0, 2])), data.test, False),
    }


def test_records_that_keep_images_in_the_pickle(tmp_path: Path) -> None:
    data = reference()
    torch.save(in_memory(data, [4, 9]), tmp_path / "attack_result.pt")
    assert FORM.recognises(tmp_path / "attack_result.pt")
    back = FORM.read(tmp_path / "attack_result.pt", data)
    assert equal(poison_of([4, 9], 0, data), back, {"images", "rows"})
    assert back.labels is not None
    assert back.labels.tolist() == [1, 1]
    assert back.target_rows is not None
    assert back.target_rows.tolist() == [0, 2]


# --- planted faults --------------------------------------------------------------------------------------------------


class Call:
    """Would leave a file behind if it were unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_run(tmp_path: Path) -> None:
    data, file, trace = reference(), tmp_path / "attack_result.pt", tmp_path / "trace"
    for content in (Call(trace), {"bd_train": Call(trace)}, in_memory(data, [4]) | {"model": Call(trace)}):
        torch.save(content, file)
        with pytest.raises(ValueError):
            FORM.read(file, data)
    file.write_bytes(pickle.dumps(Call(trace)))
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        FORM.read(file, data)
    assert not trace.exists()
    torch.save({"weights": Call(trace)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError):
        BackdoorBench(weights=tmp_path / "weights.pt").write(poison_of([1], 0, data, targets=1), tmp_path / "a", data)
    assert not trace.exists()
    assert not (tmp_path / "a").exists()


def entry_of(record: dict[str, Any], row: int) -> tuple:
    return record["bd_train"]["bd_data_container"]["data_dict"][row]


def planted(record: dict[str, Any], fault: str) -> None:
    """Plants one fault in a record of row 4."""
    train = record["bd_train"]
    entries, (picture, _, true) = train["bd_data_container"]["data_dict"], entry_of(record, 4)
    others: dict[str, tuple] = {
        "wrong size": (Image.new("RGB", (9, 8)), 1, true),
        "see-through": (Image.new("RGBA", (8, 8)), 1, true),
        "label": (picture, 3, true),
        "true label": (picture, 1, (true + 1) % 3),
        "label of text": (picture, "1", true),
        "no image": ("picture", 1, true),
        "escape": ({"path": "../../../etc/x.png", "other_info": [1, int(true)]},),
        "relative": ({"path": "a/../../x.png", "other_info": [1, int(true)]},),
    }
    if fault in others:
        entries[np.int64(4)] = others[fault] if len(others[fault]) == 3 else others[fault][0]
    elif fault == "no entry":
        del entries[4]
    elif fault == "length":
        train["poison_indicator"] = np.zeros(25)
    elif fault == "outside":
        train["original_index_array"] = np.array([0, 4, 24])
    elif fault == "twice":
        train["original_index_array"] = np.array([4, 4])
    elif fault == "objects":
        train["poison_indicator"] = np.array([0, "a"], object)
    elif fault == "halves":
        train["poison_indicator"] = np.full(24, 0.5)
    elif fault == "no training set":
        record["bd_train"] = None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong size", "9x8 pixels"),
        ("see-through", "seen through"),
        ("label", "label 3 is none of"),
        ("true label", "of other data"),
        ("label of text", "expected the new class"),
        ("no image", "has no image, but a str"),
        ("escape", "leads out"),
        ("relative", "leads out"),
        ("no entry", "has no image"),
        ("length", "of a training set of 25"),
        ("outside", "row 24 is not in"),
        ("twice", "more than once"),
        ("objects", "plain numbers"),
        ("halves", "whole numbers"),
        ("no training set", "no poisoned training set"),
    ],
)
def test_planted_faults(tmp_path: Path, fault: str, said: str) -> None:
    data = reference()
    record = in_memory(data, [4, 9])
    planted(record, fault)
    torch.save(record, tmp_path / "attack_result.pt")
    with pytest.raises(ValueError, match=said):
        FORM.read(tmp_path, data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(torch.zeros(3, 8, 8, dtype=torch.uint8))[:50], "without being complete"),
        (bomb(50000, 50000), "50000x50000"),
        (png(torch.zeros(3, 8, 9, dtype=torch.uint8)), "9x8"),
    ],
    ids=["truncated", "bomb", "size"],
)
def test_faults_in_images(tmp_path: Path, content: bytes, said: str) -> None:
    data = reference()
    files = FORM.write(poison_of([3], 0, data, targets=1), tmp_path, data)
    next(file for file in files if file.name == "3.png").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        FORM.read(tmp_path, data)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([3], 0, data, targets=1)
    with pytest.raises(ValueError, match="hidden"):
        FORM.write(parcel, tmp_path / "a", Reference(data.train.drop([0]), data.test))
    with pytest.raises(ValueError, match="name of a folder"):
        BackdoorBench(name="../x")
    with pytest.raises(ValueError, match="needs place"):
        FORM.write(dataclasses.replace(parcel, patch=torch.ones(3, 2, 2)), tmp_path / "b", data)
    with pytest.raises(FileNotFoundError):
        FORM.read(tmp_path / "none", data)
    with pytest.raises(FileNotFoundError):
        FORM.read(tmp_path, data)
    assert not FORM.recognises(tmp_path)


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_damaged_files(seed: int) -> None:
    survives_damage(FORM, "out", seed)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04"]), st.integers(0, 99))
@settings(max_examples=30)
def test_random_bytes(garbage: bytes, start: bytes, seed: int) -> None:
    survives_damage(FORM, "out", seed, start + garbage)


@given(st.integers(0, 10**6))
@settings(max_examples=80)
def test_damaged_pickles_in_whole_archives(seed: int) -> None:
    data, file = reference(), io.BytesIO()
    torch.save(in_memory(data, [4, 9]), file)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "attack_result.pt"
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                new.writestr(entry.filename, damaged(content, seed) if entry.filename.endswith(".pkl") else content)
        refused(lambda: FORM.read(path, data))
