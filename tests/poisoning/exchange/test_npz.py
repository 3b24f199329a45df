from __future__ import annotations

import dataclasses
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mithridate.poisoning.exchange.npz import Npz
from mithridate.poisoning.exchange.parcel import Parcel, Reference
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

NOTES = st.dictionaries(
    st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9) | st.booleans(), max_size=3
)


@given(parcels(), NOTES, st.sets(st.sampled_from(["labels", "rows", "base", "target_rows", "intended"])), st.booleans())
@settings(max_examples=40)
def test_round_trip(case: tuple[Parcel, Reference], notes: dict, left_out: set[str], compress: bool) -> None:
    parcel, data = case
    patch = torch.rand(data.train.shape[0], 2, 3)
    parcel = dataclasses.replace(parcel, notes=notes, patch=patch, place=(1, 0), **dict.fromkeys(left_out))
    back = returned(Npz(compress=compress), parcel, data, "poison.npz")
    assert back.notes == notes
    assert back.place == (1, 0)
    in_order = set(Npz.carries) - {"notes", "place"}
    for name in in_order:  # even the order is kept
        ours, theirs = getattr(parcel, name), getattr(back, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours, theirs), name  # type: ignore[arg-type]
    assert equal(parcel, back, in_order)


def test_numpy_reads_it_and_the_same_poison_is_the_same_file(tmp_path: Path) -> None:
    data = reference()
    parcel = poison_of([4, 2], 0, data, targets=2)
    for name in ("a.npz", "b.npz"):
        Npz().write(parcel, tmp_path / name, data)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["rows"].tolist() == [4, 2]
        assert np.array_equal(found["images"], parcel.images.numpy())
    with pytest.raises(FileExistsError):
        Npz().write(parcel, tmp_path / "a.npz", data)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="one file"):
        Npz().write(parcel, tmp_path / "folder", data)


def test_what_savez_writes_is_read(tmp_path: Path) -> None:
    data = reference()
    images = data.train.pixels(torch.tensor([5, 6])).numpy()
    np.savez_compressed(tmp_path / "a.npz", images=np.asfortranarray(images), rows=np.array([5, 6], np.int32))
    back = Npz().read(tmp_path / "a.npz", data)
    assert np.array_equal(back.images.numpy(), images)
    assert back.rows is not None
    assert back.rows.tolist() == [5, 6]


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return path


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=pickled)
    return file.getvalue()


IMAGES = npy(np.zeros((2, 3, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no images.npy"),
        ({"images.npy": IMAGES, "../x.npy": IMAGES}, "leads out"),
        ({"images.npy": IMAGES, "evil.pkl": b""}, "expected some of"),
        ({"images.npy": npy(np.array([{"a": 1}], object), pickled=True)}, "array of object"),
        ({"images.npy": npy(np.zeros((2, 3, 8, 8)))}, "array of float64"),
        ({"images.npy": npy(np.zeros((2, 3, 8, 8), np.uint16))}, "expected uint8"),
        ({"images.npy": npy(np.zeros((2, 3, 8, 9), np.uint8))}, "has the shape"),
        ({"images.npy": npy(np.zeros((25, 3, 8, 8), np.uint8))}, "25 rows"),
        ({"images.npy": IMAGES[:128].replace(b"(2, 3", b"(9, 3")}, "says it is"),
        ({"images.npy": IMAGES + b"more"}, "says it is"),
        ({"images.npy": IMAGES, "rows.npy": npy(np.array([1, 24]))}, "training row 24 is not in"),
        ({"images.npy": IMAGES, "rows.npy": npy(np.array([-1, 3]))}, "training row -1 is not in"),
        ({"images.npy": IMAGES, "rows.npy": npy(np.array([3, 3]))}, "more than once"),
        ({"images.npy": IMAGES, "rows.npy": npy(np.array([3]))}, "1, but there are 2 images"),
        ({"images.npy": IMAGES, "rows.npy": npy(np.array([3, 2**64 - 1], np.uint64))}, "rows hold"),
        ({"images.npy": IMAGES, "labels.npy": npy(np.array([0, 3]))}, "3 is none of the 3 classes"),
        ({"images.npy": IMAGES, "target_rows.npy": npy(np.array([9]))}, "test row 9"),
        ({"images.npy": IMAGES, "patch.npy": npy(np.full((3, 2, 2), 1.5))}, "not in"),
        ({"images.npy": IMAGES, "patch.npy": npy(np.full((3, 2, 2), np.nan))}, "not in"),
        ({"images.npy": IMAGES, "patch.npy": npy(np.ones((3, 9, 2)))}, "leaves images"),
        (
            {"images.npy": IMAGES, "patch.npy": npy(np.ones((3, 2, 2))), "place.npy": npy(np.array([7, 0]))},
            "leaves images",
        ),
        ({"images.npy": IMAGES, "notes.npy": npy(np.array("[1]"))}, "no JSON object"),
        ({"images.npy": IMAGES, "notes.npy": npy(np.array("[" * 99999))}, "damaged"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: dict[str, bytes], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Npz().read(zipped(tmp_path / "a.npz", content), reference())


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**31, 3, 8, 8)})
    with pytest.raises(ValueError, match="rows"):
        Npz().read(zipped(tmp_path / "a.npz", {"images.npy": header.getvalue() + bytes(10**7)}), reference())
    twice = {"images.npy": IMAGES}
    with (
        zipfile.ZipFile(zipped(tmp_path / "b.npz", twice), "a") as packed,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        packed.writestr("images.npy", IMAGES)
    with pytest.raises(ValueError, match="two parts of one name"):
        Npz().read(tmp_path / "b.npz", reference())


@given(st.integers(0, 10**6))
@settings(max_examples=80)
def test_damaged_files(seed: int) -> None:
    survives_damage(Npz(), "a.npz", seed)


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_random_bytes(garbage: bytes) -> None:
    assert survives_damage(Npz(), "a.npz", 0, garbage)


@given(st.integers(0, 10**6), st.sampled_from(["images", "rows", "patch", "notes", "place", "labels"]))
@settings(max_examples=100)
def test_damage_that_checksums_do_not_see(seed: int, name: str) -> None:
    """The archive is whole, an array in it is not."""
    arrays = {
        "images": np.zeros((2, 3, 4, 4), np.uint8),
        "rows": np.array([1, 2]),
        "labels": np.array([1, 2]),
        "patch": np.ones((3, 2, 2), np.float32),
        "place": np.array([0, 1]),
        "notes": np.array('{"a": 1}'),
    }
    content = {f"{key}.npy": npy(array) for key, array in arrays.items()}
    content[f"{name}.npy"] = damaged(content[f"{name}.npy"], seed)
    with tempfile.TemporaryDirectory() as home:
        path = zipped(Path(home) / "a.npz", content)
        refused(lambda: Npz().read(path, reference(3, 4)))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Npz().read(tmp_path / "a.npz", reference())
