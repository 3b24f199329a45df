"""The Hugging Face hub, through local folders that its library reads; and what is said where it cannot be used."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mithridate.core import hub
from mithridate.core.extras import MissingExtra
from mithridate.core.sources import Folder, Hub, Parquet
from tests.core.image_files import images_of, pixels, png, write_folder, write_parquet

NAMES = ["cat", "dog", "ship"]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    library = pytest.importorskip("datasets", reason="needs the extra hub: pip install 'mithridate[hub]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return library


def write(root: Path, splits: dict[str, int], names: list[str] | None = NAMES, **layout: Any) -> Path:
    for seed, (split, count) in enumerate(splits.items()):
        labels = np.random.default_rng(seed).permutation(np.arange(count) % 3)
        images = [*map(png, pixels(count, seed))]
        write_parquet(root / f"{split}-00000-of-00001.parquet", images, labels, names=names, **layout)
    return root


# --- beside the other sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"per_class": 2}, {"size": 3}])
@pytest.mark.parametrize("splits", [{"train": 12, "test": 6}, {"train": 12, "validation": 6}, {"train": 30}])
def test_the_same_files_are_the_same_data_as_parquet(
    tmp_path: Path, datasets: ModuleType, splits: dict[str, int], limits: dict
) -> None:
    root = write(tmp_path / "x", splits)
    expected = [data.fingerprint() for data in Parquet(root, **limits).load()]
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        pair = Hub(str(root), **limits, cache=cache).load()
        assert [data.fingerprint() for data in pair] == expected
    assert pair[0].classes == tuple(NAMES)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("layout", [{"image": "image", "label": "labels"}, {"struct": False}, {"label": "fine_label"}])
def test_columns_without_metadata_of_the_library(tmp_path: Path, datasets: ModuleType, layout: dict) -> None:
    root = write(tmp_path / "x", {"train": 12, "test": 6}, names=None, **layout)
    for found, expected in zip(Hub(str(root)).load(), Parquet(root).load(), strict=True):
        assert found.fingerprint() == expected.fingerprint()
        assert found.classes == ("0", "1", "2")


def test_jpeg_files_are_decoded_by_our_decoder(tmp_path: Path, datasets: ModuleType) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        for name in "ab":
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for k in range(3):
                array = pixels(1, seed * 9 + k, side=16)[0]
                Image.fromarray(array).save(tmp_path / "x" / split / name / f"{k}.jpg", quality=70)
    for found, expected in zip(Hub(str(tmp_path / "x")).load(), Folder(tmp_path / "x").load(), strict=True):
        assert found.fingerprint() == expected.fingerprint()


def test_images_that_are_only_named_and_change(tmp_path: Path, datasets: ModuleType) -> None:
    written = write_folder(tmp_path / "images", {"a": 4})
    values = pa.array([{"bytes": None, "path": str(tmp_path / "images" / f"{key}.png")} for key in written])
    (tmp_path / "x").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": values, "label": [0, 1, 0, 1]}), tmp_path / "x" / f"{split}.parquet")
    source = Hub(str(tmp_path / "x"), cache=tmp_path / "cache")
    assert np.array_equal(images_of(source.load()[0]), list(written.values()))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / "a" / "002.png")
    assert images_of(source.load()[0])[2, 0, 0].tolist() == [255, 0, 0]
    (tmp_path / "images" / "a" / "003.png").unlink()
    with pytest.raises(ValueError, match=r"train row 3 has no image bytes, and its file cannot be read .*003.png"):
        source.load()


# --- splits and columns ----------------------------------------------------------------------------------------------


def test_columns_and_splits_by_name_and_by_kind(tmp_path: Path, datasets: ModuleType) -> None:
    images = [{"bytes": png(array), "path": None} for array in pixels(6)]
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "mask": datasets.Image(),
            "kind": datasets.ClassLabel(names=NAMES),
            "count": datasets.Value("int64"),
        }
    )
    columns = {"photo": images, "mask": images[::-1], "kind": [0, 1, 2] * 2, "count": [0, 1] * 3}
    made = datasets.Dataset.from_dict(columns, features=features)
    for split in ("first", "second"):
        (tmp_path / "x").mkdir(exist_ok=True)
        made.to_parquet(tmp_path / "x" / f"{split}.parquet")
    (tmp_path / "x" / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files:\n  - {split: first, path: first.parquet}\n"
        "  - {split: second, path: second.parquet}\n---\n"
    )
    place = {"config": "plain", "train": "first", "test": "second"}
    train, test = Hub(str(tmp_path / "x"), **place, image="mask").load()
    assert np.array_equal(images_of(train), pixels(6)[::-1])
    assert (train.labels.tolist(), train.classes, len(test)) == ([0, 1, 2] * 2, tuple(NAMES), 6)
    assert Hub(str(tmp_path / "x"), **place, image="photo", label="count").load()[0].classes == ("0", "1")
    with pytest.raises(ValueError, match=r"has no image column: looked for img, image and for one of kind Image; its"):
        Hub(str(tmp_path / "x"), **place).load()
    with pytest.raises(ValueError, match=r"has no label column: looked for 'kin'; its columns are photo, mask, kind"):
        Hub(str(tmp_path / "x"), **place, image="mask", label="kin").load()
    with pytest.raises(ValueError, match=r"column count holds .*int64.*; expected images"):
        Hub(str(tmp_path / "x"), **place, image="count").load()
    with pytest.raises(ValueError, match=r"has no split 'train'; known: first, second"):
        Hub(str(tmp_path / "x"), config="plain").load()
    with pytest.raises(ValueError, match=r"has no split 'secnd'; did you mean second"):
        Hub(str(tmp_path / "x"), **(place | {"test": "secnd"}), image="mask").load()
    with pytest.raises(ValueError, match=r"cannot load .*, configuration plane from the Hugging Face hub: .*Available"):
        Hub(str(tmp_path / "x"), **(place | {"config": "plane"})).load()


def test_a_test_split_with_hidden_labels_is_passed_over(tmp_path: Path, datasets: ModuleType) -> None:
    root = write(tmp_path / "x", {"train": 9, "validation": 3})
    write_parquet(root / "test-00000-of-00001.parquet", [*map(png, pixels(5))], [-1] * 5, names=NAMES)
    assert len(Hub(str(root)).load()[1]) == 3
    with pytest.raises(ValueError, match="test: row 0 has label -1"):
        Hub(str(root), test="test").load()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "train: row 1 has no label"),
        (["a", "b", "a"], "column label holds string; expected whole numbers"),
        ([0, 0, 0], "all 3 rows have label 0"),
    ],
)
def test_wrong_labels(tmp_path: Path, datasets: ModuleType, labels: list, message: str) -> None:
    write_parquet(tmp_path / "x" / "train.parquet", [*map(png, pixels(3))], labels)
    with pytest.raises(ValueError, match=message):
        Hub(str(tmp_path / "x")).load()


def test_a_row_without_image(tmp_path: Path, datasets: ModuleType) -> None:
    values = pa.array([{"bytes": png(pixels(1)[0]), "path": None}] * 3 + [None])
    (tmp_path / "x").mkdir()
    pq.write_table(pa.table({"image": values, "label": [0, 1, 0, 1]}), tmp_path / "x" / "train.parquet")
    with pytest.raises(ValueError, match="train row 3 has no image; remove the row"):
        Hub(str(tmp_path / "x"), train="train", test="train").load()


# --- what is said where it cannot be used ----------------------------------------------------------------------------


def test_without_the_extra_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hub:owner/name needs datasets, .*pip install 'mithridate\[hub\]'"):
        Hub("owner/name").load()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ConnectionError("no route"),
            ConnectionError,
            r"cannot reach the .* o/n was not downloaded here before \(no ro",
        ),
        (FileNotFoundError("gated"), ValueError, r"cannot load o/n, revision v1 from the .*: gated \(.*hf auth login"),
        (RuntimeError("scripts are no longer supported"), ValueError, "cannot load o/n.*scripts are no longer"),
    ],
)
def test_the_errors_of_the_library_say_what_to_do(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    fake: Any = ModuleType("datasets")
    fake.load_dataset, fake.utils = load_dataset, ModuleType("utils")
    fake.utils.are_progress_bars_disabled = lambda: True
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(kind, match=message):
        hub.list_hub("o/n", revision="v1")


def test_offline(datasets: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"cannot reach the Hugging Face hub, and no-such-owner/no-such-data was"):
        Hub("no-such-owner/no-such-data").load()
