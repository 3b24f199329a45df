from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mithridate.core.data import ImageData
from mithridate.core.safe_images import png
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.png_folder import PngFolder
from tests.core.test_safe_images import bomb
from tests.poisoning.exchange.exchange_cases import equal, parcels, poison_of, reference, returned, survives_damage


@given(parcels(relabel=False, smallest=1), st.booleans())
@settings(max_examples=20)
def test_round_trip(case: tuple[Parcel, Reference], rest: bool) -> None:
    parcel, data = case
    back = returned(PngFolder(rest=rest), parcel, data)
    assert equal(parcel, back, PngFolder.carries)
    assert back.labels is None


def test_no_poison_at_all_is_a_clean_set(tmp_path: Path) -> None:
    data = reference()
    PngFolder().write(poison_of([], 0, data), tmp_path, data)
    assert len(PngFolder().read(tmp_path, data)) == 0


def test_the_peers_reader_sees_poison_and_labels(tmp_path: Path) -> None:
    """As `CIFAR_load` reads: the number before the first dot names the row, as many files as the clean set has."""
    data = reference()
    parcel = poison_of([20, 3], 0, data)
    PngFolder().write(parcel, tmp_path, data)
    names = [file.name for file in (tmp_path / "data").iterdir()]
    assert len(names) == len(data.train)
    seen = {int(name.split(".")[0]): np.asarray(Image.open(tmp_path / "data" / name)) for name in names}
    expected = parcel.poison().apply(data.train)
    for row in data.train.ids.tolist():
        assert np.array_equal(seen[row], expected.pixels(torch.tensor([row]))[0].permute(1, 2, 0).numpy())


def test_hidden_rows_keep_their_numbers(tmp_path: Path) -> None:
    data = reference()
    few = Reference(data.train.select([2, 5, 9, 13]), data.test)
    PngFolder().write(poison_of([9], 0, few), tmp_path, few)
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["13.png", "2.png", "5.png", "9.png"]
    assert equal(poison_of([9], 0, few), PngFolder().read(tmp_path, few), PngFolder.carries)
    with pytest.raises(ValueError, match="row 4 is not in"):
        PngFolder().write(poison_of([4], 0, data), tmp_path / "new", few)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([1], 0, data)
    with pytest.raises(ValueError, match="no labels"):
        PngFolder().write(poison_of([1, 2, 3], 1, data, relabel=True), tmp_path / "a", data)
    with pytest.raises(ValueError, match="needs rows"):
        PngFolder().write(Parcel(parcel.images), tmp_path / "a", data)
    with pytest.raises(ValueError, match="shape"):
        PngFolder().write(Parcel(parcel.images[:, :, :4], rows=parcel.rows), tmp_path / "a", data)
    four = ImageData(torch.zeros(4, 4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="4 channels"):
        PngFolder().write(poison_of([1], 0, Reference(four, four)), tmp_path / "b", Reference(four, four))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_bytes(b"")
    with pytest.raises(FileExistsError):
        PngFolder().write(parcel, tmp_path / "c", data)


def image(*size: int) -> bytes:
    return png(torch.zeros(*size, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("24.png", image(3, 8, 8), "row 24 is not in the training set"),
        ("99999999999999999999.png", image(3, 8, 8), "not named after"),
        ("003.png", image(3, 8, 8), "row 3 is named more than once"),
        ("-1.png", image(3, 8, 8), "not named after"),
        ("cat.png", image(3, 8, 8), "not named after"),
        ("x/5.png", image(3, 8, 8), "not named after"),
        ("5.txt", b"", "not named after"),
        ("5.png", image(3, 8, 9), "9x8 pixels"),
        ("5.png", image(3, 8, 8)[:60], "without being complete"),
        ("5.png", bomb(50000, 50000), "50000x50000"),
        ("5.png", b"", "no image of type"),
    ],
)
def test_planted_faults(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    data = reference()
    PngFolder(rest=False).write(poison_of([3], 0, data), tmp_path / "out", data)
    file = tmp_path / "out" / "data" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        PngFolder().read(tmp_path / "out", data)


def test_links_are_not_followed_out(tmp_path: Path) -> None:
    data = reference()
    PngFolder(rest=False).write(poison_of([3], 0, data), tmp_path / "out", data)
    (tmp_path / "5.png").write_bytes(image(3, 8, 8))
    (tmp_path / "out" / "data" / "5.png").symlink_to(tmp_path / "5.png")
    with pytest.raises(ValueError, match="out of its folder"):
        PngFolder().read(tmp_path / "out", data)


def test_nothing_there(tmp_path: Path) -> None:
    assert not PngFolder().recognises(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        PngFolder().read(tmp_path / "none", reference())
    with pytest.raises(ValueError, match="no PNG"):
        PngFolder().read(tmp_path, reference())


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=40)
def test_damaged_files(seed: int, rest: bool) -> None:
    survives_damage(PngFolder(rest=rest), "out", seed)


@given(st.binary(max_size=200), st.integers(0, 99))
@settings(max_examples=20)
def test_random_bytes(garbage: bytes, seed: int) -> None:
    assert survives_damage(PngFolder(), "out", seed, garbage)
