from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mithridate.core import listings
from mithridate.core.data import ImageData
from mithridate.core.readers import read_folder, read_parquet
from mithridate.core.sources import Folder, Parquet, source
from tests.core.image_files import images_of, pixels, png, write_folder, write_parquet

# --- parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"image": "image"},
        {"struct": False, "image": "image", "label": "labels"},
        {"label": "fine_label"},
    ],
)
def test_parquet_columns_and_class_names(tmp_path: Path, layout: dict) -> None:
    arrays, labels = pixels(8), [0, 1, 2, 0, 1, 2, 0, 1]
    file = write_parquet(tmp_path / "x.parquet", [*map(png, arrays)], labels, names=["cat", "dog", "ship"], **layout)
    data = read_parquet(file)
    assert np.array_equal(images_of(data), arrays)
    assert data.labels.tolist() == labels
    assert data.classes == ("cat", "dog", "ship")
    assert ImageData.from_parquet(file).fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    "metadata", [None, b"{}", b"not json", b'{"info": {"features": {"label": {"dtype": "int64"}}}}']
)
def test_parquet_without_class_names(tmp_path: Path, metadata: bytes | None) -> None:
    file = write_parquet(tmp_path / "x.parquet", [*map(png, pixels(3))], [0, 2, 1])
    pq.write_table(pq.read_table(file).replace_schema_metadata(metadata and {"huggingface": metadata}), file)
    assert read_parquet(file).classes == ("0", "1", "2")


LAYOUTS = {
    "plain": ("train.parquet", "test.parquet"),
    "data": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "configuration": ("plain_text/train-00000-of-00001.parquet", "plain_text/validation-00000-of-00001.parquet"),
    "converted": ("default/train/0000.parquet", "default/test/0000.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet_folders(tmp_path: Path, layout: str) -> None:
    for split, (name, count) in enumerate(zip(LAYOUTS[layout], (6, 4), strict=True)):
        write_parquet(tmp_path / name, [*map(png, pixels(count, split))], [0, 1] * (count // 2))
    chosen = source(str(tmp_path))
    train, test = chosen.load()
    assert isinstance(chosen, Parquet)
    assert np.array_equal(images_of(train), pixels(6, 0))
    assert np.array_equal(images_of(test), pixels(4, 1))
    by_file = Parquet(str(tmp_path / LAYOUTS[layout][0]), test=str(tmp_path / LAYOUTS[layout][1])).load()
    assert [data.fingerprint() for data in by_file] == [train.fingerprint(), test.fingerprint()]


@pytest.mark.parametrize("per_class", [1, 2, 3, 100])
def test_shards_join_and_per_class_takes_the_first(tmp_path: Path, per_class: int) -> None:
    arrays = pixels(20)
    labels = np.random.default_rng(5).integers(0, 3, 20)
    for shard, part in enumerate(np.split(np.arange(20), (7, 8))):
        name = f"data/train-{shard:05}-of-00003.parquet"
        write_parquet(tmp_path / name, [png(arrays[i]) for i in part], labels[part])
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [*map(png, pixels(5, 1))], [0, 1, 2, 0, 1])
    train, test = Parquet(str(tmp_path), per_class=per_class).load()
    taken: dict[int, int] = {}
    rows = []
    for row, label in enumerate(labels.tolist()):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= per_class:
            rows.append(row)
    assert np.array_equal(images_of(train), arrays[rows])
    assert train.labels.tolist() == labels[rows].tolist()
    assert len(test) == 5


def test_rows_in_large_row_groups(tmp_path: Path) -> None:
    arrays = pixels(2500, side=1)
    labels = np.arange(2500) % 2
    labels[2000] = 2
    file = write_parquet(tmp_path / "x.parquet", [*map(png, arrays)], labels, row_group_size=2500)
    data = read_parquet(file, per_class=600)
    assert np.array_equal(images_of(data), arrays[[*range(1200), 2000]])


def test_per_class_does_not_decode_the_rest(tmp_path: Path) -> None:
    """What is left out may be damaged: it is never looked at."""
    images = [*map(png, pixels(4)), b"damaged", b"damaged"]
    file = write_parquet(tmp_path / "train.parquet", images, [0, 1, 0, 1, 0, 1])
    assert len(read_parquet(file, per_class=2)) == 4
    with pytest.raises(ValueError, match=r"train.parquet row 4: not an image that pillow can read"):
        read_parquet(file)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [*map(png, pixels(2))], [0, 1])
    with pytest.raises(ValueError, match=r"1 train file.*says that there are 2"):
        Parquet(str(tmp_path)).load()


def test_train_parquet_alone_is_the_training_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [*map(png, pixels(4))], [0, 1, 0, 1])
    write_parquet(tmp_path / "train-poisoned.parquet", [*map(png, pixels(4, 1))], [0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", [*map(png, pixels(2, 2))], [0, 1])
    assert len(Parquet(str(tmp_path)).load()[0]) == 4


def test_parquet_without_test_data_is_split(tmp_path: Path) -> None:
    arrays = pixels(40)
    file = write_parquet(tmp_path / "all.parquet", [*map(png, arrays)], [0] * 10 + [1] * 30)
    train, test = Parquet(str(file)).load()
    assert (len(train), test.labels.bincount().tolist()) == (32, [2, 6])
    both = np.concatenate([images_of(train), images_of(test)]).reshape(40, -1)
    assert np.array_equal(np.unique(both, axis=0), np.unique(arrays.reshape(40, -1), axis=0))
    assert Parquet(str(file)).load()[1].fingerprint() == test.fingerprint()
    limited = Parquet(str(file), per_class=5).load()
    assert (len(limited[0]), limited[1].fingerprint()) == (10, test.fingerprint())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 7]}, r"x.parquet: row 2 has label 7, but 2 classes allow 0..1"),
        ({"labels": [0, -1, 1]}, "row 1 has label -1"),
        ({"labels": [1, 1, 1]}, "all 3 rows have label 1"),
        ({"labels": [0, None, 1]}, "row 1 has no label"),
        ({"labels": ["a", "b", "a"]}, "column label holds string; expected whole numbers"),
        ({"label": "kind"}, "no label column: looked for label, labels, fine_label; its columns are img, kind"),
        ({"image": "picture"}, "no image column: looked for img, image; its columns are picture, label"),
        ({"images": [None] * 3}, r"x.parquet row 0 has no image bytes, only a path"),
        ({"images": [], "labels": pa.array([], pa.int64())}, "x.parquet holds no images"),
    ],
)
def test_wrong_parquet(tmp_path: Path, change: dict, message: str) -> None:
    settings = {"images": [*map(png, pixels(3))], "labels": [0, 1, 0], "names": ["a", "b"]} | change
    if settings["images"] == []:
        settings["struct"] = False
    file = write_parquet(tmp_path / "x.parquet", **settings)
    with pytest.raises(ValueError, match=message):
        read_parquet(file)


def test_a_column_of_something_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[1, 2], [3, 4]], "label": [0, 1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"column image holds list.*expected image files as bytes"):
        read_parquet(tmp_path / "x.parquet")


def test_no_parquet_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"x.parquet is not a readable parquet file"):
        read_parquet(tmp_path / "x.parquet")


def test_a_truncated_page_names_the_file(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [*map(png, pixels(200))], [0, 1] * 100, row_group_size=200)
    data = bytearray(file.read_bytes())
    data[4:2000] = bytes(1996)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.parquet is not a readable parquet file"):
        read_parquet(file)


def test_train_and_test_must_agree(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [*map(png, pixels(2))], [0, 1], names=["a", "b"])
    other = write_parquet(tmp_path / "b.parquet", [*map(png, pixels(2))], [0, 1], names=["b", "a"])
    with pytest.raises(ValueError, match=r"b.parquet has the classes b, a, but the training set has a, b"):
        Parquet(str(train), test=str(other)).load()
    larger = write_parquet(tmp_path / "c.parquet", [*map(png, pixels(2, side=6))], [0, 1])
    with pytest.raises(ValueError, match=r"train.parquet has 4x4, .*c.parquet has 6x6 \(width x height\); size=4"):
        Parquet(str(train), test=str(larger)).load()
    shapes = [data.shape for data in Parquet(str(train), test=str(larger), size=5).load()]
    assert shapes == [(3, 5, 5), (3, 5, 5)]


def test_grey_beside_colour_becomes_colour(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [*map(png, pixels(2)[..., 0])], [0, 1])
    write_parquet(tmp_path / "test.parquet", [*map(png, pixels(2, 1))], [0, 1])
    train, test = Parquet(str(tmp_path)).load()
    assert train.shape == test.shape == (3, 4, 4)
    assert np.array_equal(images_of(train), np.repeat(pixels(2)[..., :1], 3, axis=3))


def test_several_data_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("coarse", "fine"):
        write_parquet(tmp_path / name / "train.parquet", [*map(png, pixels(2))], [0, 1])
    with pytest.raises(ValueError, match="several data sets: coarse, fine"):
        source(str(tmp_path))


def test_real_cifar10(shared_cifar: Path) -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train, test = source(str(shared_cifar), per_class=500).load()
    assert (len(train), len(test), train.shape, train.classes) == (5_000, 10_000, (3, 32, 32), names)
    assert train.labels.bincount().tolist() == [500] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    first = pq.ParquetFile(shared_cifar / "train.parquet").read_row_group(0).slice(0, 1).to_pylist()[0]
    assert np.array_equal(images_of(train.select([0]))[0], np.asarray(Image.open(io.BytesIO(first["img"]["bytes"]))))
    assert int(train.labels[0]) == first["label"]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folder_reads_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    written = write_folder(tmp_path, {"ship": 2, "cat": 3})
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._000.png").write_bytes(b"what a file manager leaves")
    (tmp_path / ".hidden").mkdir()
    data = read_folder(tmp_path)
    assert data.classes == ("cat", "ship")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    expected = [written[key] for key in ("cat/000", "cat/001", "cat/002", "ship/000", "ship/001")]
    assert np.array_equal(images_of(data), expected)
    assert ImageData.from_folder(tmp_path, size=3).shape == (3, 3, 3)
    assert len(read_folder(tmp_path, per_class=1)) == 2


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "bmp", "webp", "gif"])
def test_folder_file_kinds(tmp_path: Path, suffix: str) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name / "deeper").mkdir(parents=True)
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "deeper" / f"x.{suffix}")
    data = read_folder(tmp_path)
    assert len(data) == 2
    assert np.abs(images_of(data).astype(int)[:, 8, 8] - [[255, 0, 0], [0, 0, 255]]).max() < 12


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_train_and_test(tmp_path: Path, test_name: str) -> None:
    write_folder(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    write_folder(tmp_path / test_name, {"a": 1, "c": 2}, seed=1)  # a class without test images is no error
    chosen = source(str(tmp_path), per_class=2)
    assert chosen == Folder(str(tmp_path), per_class=2)
    train, test = chosen.load()
    assert (len(train), test.labels.tolist(), test.classes) == (6, [0, 2, 2], ("a", "b", "c"))
    apart = Folder(str(tmp_path / "train"), test=str(tmp_path / test_name), per_class=2).load()
    assert [data.fingerprint() for data in apart] == [train.fingerprint(), test.fingerprint()]


@pytest.mark.parametrize("inside", ["", "train"])
def test_folder_without_test_is_split_by_class(tmp_path: Path, inside: str) -> None:
    write_folder(tmp_path / inside, {"a": 10, "b": 15, "c": 1})
    train, test = Folder(str(tmp_path)).load()
    assert train.labels.bincount().tolist() == [8, 12, 1]
    assert test.labels.bincount().tolist() == [2, 3]
    everything = {image.tobytes() for image in images_of(read_folder(tmp_path / inside))}
    parts = [{image.tobytes() for image in images_of(data)} for data in (train, test)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"car": 5, "train": 5})
    assert Folder(str(tmp_path)).load()[0].classes == ("car", "train")


def damaged(root: Path) -> None:
    write_folder(root, {"a": 2, "b": 2})
    (root / "b" / "001.png").write_bytes(b"\x89PNG damaged")


def two_sizes(root: Path) -> None:
    write_folder(root, {"a": 2, "b": 2})
    Image.new("RGB", (7, 5)).save(root / "b" / "001.png")


def loose(root: Path) -> None:
    for k in range(3):
        Image.new("RGB", (4, 4)).save(root / f"{k}.png")


def one_class_empty(root: Path) -> None:
    write_folder(root, {"a": 2, "b": 2, "c": 0})


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "holds no images; expected one subfolder per class with .png, .jpg"),
        (loose, "holds 3 images but no subfolder with images"),
        (lambda root: write_folder(root, {"a": 3}), "all 3 rows have label 0; .* at least two classes"),
        (one_class_empty, r"class folder .*c holds no .png"),
        (damaged, r"b.001.png: not an image that pillow can read"),
        (two_sizes, r"a.000.png is 4x4, .*b.001.png is 7x5 .*size=4"),
    ],
)
def test_wrong_folder(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_a_test_class_that_training_lacks(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cats": 2, "dogs": 2})
    write_folder(tmp_path / "test", {"cat": 1, "dogs": 1})
    with pytest.raises(ValueError, match="cat is no class of the training set; did you mean cats"):
        Folder(str(tmp_path)).load()


def test_nothing_left_for_a_test_set(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="leave none for a test set; give test="):
        Folder(str(tmp_path)).load()


def test_suffixes_are_readable() -> None:
    Image.init()
    assert set(listings.SUFFIXES) <= set(Image.registered_extensions())
