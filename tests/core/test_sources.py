from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mithridate.core.data import ImageData
from mithridate.core.readers import from_arrays, read_folder, read_parquet
from mithridate.core.schema import choices, from_json, resumable, to_json
from mithridate.core.sources import Arrays, DataSource, Digits, Folder, Hub, Parquet, TorchDataset, source
from tests.core.image_files import images_of, pixels, png, torch_pair, write_folder, write_parquet

# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_all_there_once_and_exact() -> None:
    train, test = Digits(train=1200, seed=3).load()
    assert (len(train), len(test), train.shape) == (1200, 597, (1, 8, 8))
    assert train.classes == test.classes == tuple("0123456789")
    images = np.concatenate([images_of(train), images_of(test)]).reshape(-1, 64)
    labels = np.concatenate([train.labels, test.labels])
    digits = load_digits()
    table = np.floor(np.arange(17) * 255 / 16 + 0.5).astype(np.uint8)
    expected = np.column_stack([table[digits.data.astype(int)], digits.target])
    found = np.column_stack([images, labels])
    assert np.array_equal(np.unique(found, axis=0, return_counts=True)[0], np.unique(expected, axis=0))
    assert np.array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_digits_depend_on_the_seed_only() -> None:
    assert (
        Digits().load()[0].fingerprint() == Digits().load()[0].fingerprint() != Digits(seed=1).load()[0].fingerprint()
    )


@pytest.mark.parametrize("train", [0, 1, 1797, -5])
def test_digits_need_images_on_both_sides(train: int) -> None:
    with pytest.raises(ValueError, match=f"train is {train}; digits has 1797"):
        Digits(train=train)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("order", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16"])
def test_arrays_of_every_form_mean_the_same(kind: str, order: str, dtype: str) -> None:
    base = pixels(6)
    array = base if dtype == "uint8" else (base / 255).astype(dtype)
    array = array.transpose(0, 3, 1, 2) if order == "NCHW" else array
    data = from_arrays(torch.from_numpy(array) if kind == "torch" else array, np.arange(6) % 2)
    assert data.shape == (3, 4, 4)
    assert np.array_equal(images_of(data), base)
    assert data.classes == ("0", "1")


def test_arrays_may_be_grey_and_labels_a_list() -> None:
    grey = pixels(4)[..., 0]
    data = ImageData.from_arrays(grey, [0, 2, 1, 1], ["a", "b", "c"])
    assert (data.shape, data.classes) == ((1, 4, 4), ("a", "b", "c"))
    assert np.array_equal(images_of(data)[..., 0], grey)
    assert images_of(from_arrays(grey[::-1, :, ::-1], [0, 2, 1, 1])).tobytes() == grey[::-1, :, ::-1].tobytes()


def test_bytes_are_not_copied_and_a_memory_map_stays_one(tmp_path: Path) -> None:
    array = pixels(4)
    assert from_arrays(array, [0, 1, 0, 1]).images.data_ptr() == array.ctypes.data
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = from_arrays(mapped, [0, 1, 0, 1])
    assert data.images.data_ptr() == mapped.ctypes.data
    poisoned = data.replace([1], torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert int(poisoned.pixels(torch.tensor([1])).max()) == 0
    assert data.fingerprint() == from_arrays(array, [0, 1, 0, 1]).fingerprint() != poisoned.fingerprint()


def with_values(*values: float) -> np.ndarray:
    images = np.full((4, 3, 5, 5), 0.5)
    images[2, 1, 0, : len(values)] = values
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (with_values(np.nan, 1.5), r"2 of 300 pixel values .* 1 of them NaN; the first is images\[2, 1, 0, 0\] = nan"),
        (with_values(-0.25), r"1 of 300 .*0 of them NaN; .*= -0.25; scale them to \[0, 1\]"),
        (with_values(np.inf), "= inf; scale them"),
        (with_values(255.0, 17.0), "2 of 300 .* they look like 0..255: divide by 255"),
        (with_values() * np.nan, "300 of 300 .*300 of them NaN; .*remove or repair"),
        (np.zeros((4, 3, 5, 5), np.int64), "int64; expected uint8 in 0..255 or floats"),
        (np.zeros((4, 25), np.uint8), r"shape \[4, 25\]; expected \[N, H, W\]"),
        (np.zeros((4, 5, 5, 4), np.uint8), "drop an alpha channel"),
        (np.zeros((4, 3, 5, 3), np.uint8), "no side of that length"),
        (np.array([None] * 4), "object is no array of numbers"),
    ],
)
def test_wrong_images(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(images, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0.0, 1.0, 0.0, 1.0], None, "labels are torch.float"),
        ([True, False, True, False], None, "labels are torch.bool"),
        (np.eye(4, dtype=int), None, r"shape \[4, 4\]; expected whole numbers \[N\]"),
        ([0, 1, 0], None, r"shape \[3\]; expected int64 of shape \[4\]"),
        ([0, 1, 0, 2], ["a", "b"], "row 3 has label 2, but 2 classes"),
        ([0, 1, 0, -1], None, "row 3 has label -1"),
        ([1, 1, 1, 1], None, "all 4 rows have label 1"),
        (["a", "b", "a", "b"], None, "no array of numbers"),
    ],
)
def test_wrong_labels(labels: object, classes: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(pixels(4), labels, classes)


def test_in_memory_data_are_written_as_fingerprints() -> None:
    train, test = (from_arrays(pixels(4, seed), [0, 1, 0, 1]) for seed in (0, 1))
    arrays = Arrays(train, test)
    assert all(a is b for a, b in zip(arrays.load(), (train, test), strict=True))
    written = to_json(arrays)
    assert written["type"] == "arrays"
    assert train.fingerprint() in written["train"]
    assert not resumable(arrays)
    with pytest.raises(ValueError, match="pass the same arrays again"):
        from_json(written, DataSource)
    with pytest.raises(ValueError, match="both need the same classes and shape"):
        Arrays(train, from_arrays(pixels(4), [0, 1, 0, 1], ["a", "b"]))


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        Digits(train=300, seed=2),
        Parquet("a/b", per_class=5),
        Parquet("a", test="b", size=8, cache="c"),
        Folder("a", test="b"),
        Hub("owner/name", config="plain", revision="v1", train="train[:10%]", image="photo", label="kind"),
        TorchDataset(torch_pair, classes=("a", "b", "c"), cache="c"),
    ],
)
def test_sources_are_settings(chosen: DataSource) -> None:
    assert resumable(chosen)
    assert from_json(json.loads(json.dumps(to_json(chosen))), DataSource) == chosen
    assert type(chosen) in choices(DataSource).values()


def test_source_decides(tmp_path: Path) -> None:
    assert source("digits") == Digits()
    write_folder(tmp_path / "images", {"a": 2, "b": 2})
    assert source(tmp_path / "images", size=8) == Folder(str(tmp_path / "images"), size=8)
    file = write_parquet(tmp_path / "x" / "mine.parquet", [*map(png, pixels(10))], [0, 1] * 5)
    assert source(str(file), per_class=3) == Parquet(str(file), per_class=3)
    assert len(source(str(file.parent)).load()[0]) == 8
    assert Parquet(file) == Parquet(str(file))


def test_source_names_the_hub_and_functions(tmp_path: Path) -> None:
    assert source("hub:owner/name") == source("hub:owner/name@") == Hub("owner/name")
    assert source("hub:owner/name@a1b2", size=8) == Hub("owner/name", revision="a1b2", size=8)
    limits = {"per_class": 2, "size": 8, "cache": str(tmp_path)}
    assert source("tests.core.image_files:torch_pair", **limits) == TorchDataset(torch_pair, **limits)
    write_folder(tmp_path / "images", {"a": 2, "b": 2})
    assert source(tmp_path / "images", cache=tmp_path / "c") == Folder(
        str(tmp_path / "images"), cache=str(tmp_path / "c")
    )


def test_the_hub_needs_a_name() -> None:
    with pytest.raises(ValueError, match="write hub:owner/name"):
        source("hub:")


@pytest.mark.parametrize(("text", "hint"), [("uoft-cs/cifar10", True), ("../photos", False), ("a/b/c", False)])
def test_a_missing_path_that_could_be_on_the_hub(text: str, hint: bool) -> None:
    with pytest.raises(FileNotFoundError, match="no data at") as caught:
        source(text)
    assert (f"for the Hugging Face hub write hub:{text}" in str(caught.value)) == hint


def test_source_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data at 'digit'; looked for 'digits', a .parquet file, a folder"):
        source("digit")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"x.csv is a file but no .parquet file"):
        source(tmp_path / "x.csv")
    for limit in ({"size": 16}, {"per_class": 2}, {"cache": tmp_path}):
        with pytest.raises(ValueError, match="neither per_class nor size nor cache"):
            source("digits", **limit)
    with pytest.raises(FileNotFoundError, match=r"no parquet data at .*nothing; looked for .*train\*.parquet"):
        Parquet(str(tmp_path / "nothing")).load()
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nothing"):
        Folder(str(tmp_path / "nothing")).load()
    write_parquet(tmp_path / "only" / "test.parquet", [*map(png, pixels(2))], [0, 1])
    with pytest.raises(FileNotFoundError, match="no parquet data"):  # test data are not for training
        Parquet(str(tmp_path / "only")).load()


@pytest.mark.parametrize("limits", [{"per_class": 0}, {"size": 0}, {"size": -3}])
def test_limits_are_positive(limits: dict, tmp_path: Path) -> None:
    (name,) = limits
    for make in (Parquet, Folder, Hub, source, read_folder, read_parquet):
        with pytest.raises(ValueError, match=f"{name} is {limits[name]}; it must be at least 1"):
            make(str(tmp_path), **limits)
    with pytest.raises(ValueError, match=f"{name} is {limits[name]}; it must be at least 1"):
        TorchDataset(torch_pair, **limits)
