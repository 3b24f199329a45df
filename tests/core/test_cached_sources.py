"""Sources with a pixel cache: the same data, from a map, and another cache where the files are others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.core import cache
from mithridate.core.data import ImageData
from mithridate.core.sources import DataSource, Folder, Parquet
from tests.core.image_files import images_of, pixels, png, write_folder, write_parquet


def prints(pair: tuple[ImageData, ImageData]) -> list[str]:
    return [data.fingerprint() for data in pair]


def parquet(root: Path, tests: bool = True) -> Path:
    images, labels = [*map(png, pixels(30))], np.arange(30) % 3
    for shard in range(2):
        part = slice(shard * 15, shard * 15 + 15)
        write_parquet(root / f"train-{shard:05}-of-00002.parquet", images[part], labels[part], names=["a", "b", "c"])
    if tests:
        write_parquet(root / "test-00000-of-00001.parquet", [*map(png, pixels(6, 1))], np.arange(6) % 3)
    return root


def folder(root: Path) -> Path:
    write_folder(root, {"a": 10, "b": 15, "c": 1})
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded into a cache."""
    names: list[str] = []
    add = cache._Writer.add
    monkeypatch.setattr(
        cache._Writer, "add", lambda self, name, image, label: names.append(name) or add(self, name, image, label)
    )
    monkeypatch.setattr(cache, "_CHUNK", 4 * 48)
    return names


@pytest.mark.parametrize("limits", [{}, {"per_class": 3}, {"size": 3}, {"per_class": 2, "size": 5}])
@pytest.mark.parametrize("kind", ["parquet", "parquet without test data", "folder"])
def test_cached_data_are_the_same_data(tmp_path: Path, decoded: list[str], kind: str, limits: dict) -> None:
    path = str(folder(tmp_path / "x") if kind == "folder" else parquet(tmp_path / "x", tests=kind == "parquet"))
    kind_of = Folder if kind == "folder" else Parquet
    plain, cached = kind_of(path, **limits).load(), kind_of(path, **limits, cache=tmp_path / "cache")
    pair = cached.load()
    assert prints(pair) == prints(plain)
    assert len(decoded) == sum(map(len, pair))
    assert prints(cached.load()) == prints(plain)
    assert len(decoded) == sum(map(len, pair))
    assert Path("/proc/self/maps").read_text().count(str(tmp_path / "cache")) >= 2
    assert all(data.decoder == "pillow" for data in (*plain, *pair))


def test_limits_and_files_make_other_caches(tmp_path: Path) -> None:
    path, home = folder(tmp_path / "x"), tmp_path / "cache"

    def count(**limits: int) -> int:
        Folder(path, **limits, cache=home).load()
        return len(list(home.iterdir()))

    assert [count(), count(size=3), count(per_class=2), count()] == [2, 4, 5, 5]  # per_class leaves the test set alone
    file = path / "b" / "007.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert count() == 6  # it is in one of the two parts


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path, home = folder(tmp_path / "x"), tmp_path / "cache"
    before = Folder(path, cache=home).load()
    Image.new("RGB", (4, 4), "red").save(path / "c" / "000.png")
    after = Folder(path, cache=home).load()
    assert prints(after) == prints(Folder(path).load()) != prints(before)


def test_a_damaged_image_stops_it_and_what_is_there_is_kept(tmp_path: Path, decoded: list[str]) -> None:
    images, labels = [*map(png, pixels(12))], [0, 1] * 6
    file = write_parquet(tmp_path / "train.parquet", [*images[:9], b"damaged", *images[10:]], labels)
    write_parquet(tmp_path / "test.parquet", images[:2], [0, 1])
    cached = Parquet(tmp_path, cache=tmp_path / "cache")
    for first in (0, 8):
        with pytest.raises(ValueError, match=r"train.parquet row 9: not an image"):
            cached.load()
        assert decoded[0].endswith(f"row {first}")
        decoded.clear()
    write_parquet(file, images, labels)
    assert prints(cached.load()) == prints(Parquet(tmp_path).load())


def test_grey_beside_colour_stays_in_the_map(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [*map(png, pixels(4)[..., 0])], [0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", [*map(png, pixels(2, 1))], [0, 1])
    plain, pair = Parquet(tmp_path).load(), Parquet(tmp_path, cache=tmp_path / "cache").load()
    train = pair[0]
    assert prints(pair) == prints(plain)
    assert train.shape == (3, 4, 4)
    assert train.images.untyped_storage().nbytes() == 4 * 4 * 4
    patch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    poisoned, expected = (data.replace([3, 1], patch) for data in (train, plain[0]))
    rows = torch.tensor([2, 1, 1, 3])
    assert torch.equal(poisoned.pixels(rows), expected.pixels(rows))
    assert torch.equal(poisoned.floats(rows), expected.floats(rows))
    assert poisoned.fingerprint() == expected.fingerprint()
    assert poisoned.images.data_ptr() == train.images.data_ptr()


def test_poison_is_an_overlay_over_the_map(tmp_path: Path) -> None:
    train, _ = Parquet(parquet(tmp_path / "x"), cache=tmp_path / "cache").load()
    before = images_of(train)
    poisoned = train.replace([2], torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).drop([0]).to("cpu")
    assert poisoned.images.data_ptr() == train.images.data_ptr()
    assert int(poisoned.pixels(torch.tensor([2])).max()) == 0
    assert np.array_equal(images_of(train), before)


@pytest.mark.parametrize("kind", [Parquet, Folder])
def test_two_sizes_are_an_error_with_a_cache_too(tmp_path: Path, kind: type[DataSource]) -> None:
    for name, side in (("train", 6), ("test", 4)):
        write_parquet(tmp_path / "p" / f"{name}.parquet", [*map(png, pixels(2, side=side))], [0, 1])
        write_folder(tmp_path / "f" / name, {"a": 2, "b": 2}, side=side)
    with pytest.raises(ValueError, match=r"has 6x6, .* has 4x4 .*size=6 resizes"):
        kind(tmp_path / ("p" if kind is Parquet else "f"), cache=tmp_path / "cache").load()
