from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor

from mithridate.core.safe_images import png
from mithridate.poisoning.exchange.checks import pasted
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.poisoning_benchmark import PoisoningBenchmark
from mithridate.poisoning.triggers import PatchTrigger, WarpTrigger
from tests.poisoning.exchange.exchange_cases import (
    equal,
    of_one_class,
    parcels_of_one_class,
    reference,
    returned,
    survives_damage,
)

LOOSE = PoisoningBenchmark(strict=False)
BY_TARGET = ("target_images", "target_labels", "intended")
NAMES = ["base_indices.pickle", "poisons.pickle", "target.pickle"]


def near(data: Reference, levels: int = 8) -> Parcel:
    """Poison that is moved by so many levels of 255, up or down, in every pixel."""
    parcel = of_one_class(data)
    assert parcel.base is not None
    up = parcel.base < 128
    images = torch.where(up, parcel.base.int() + levels, parcel.base.int() - levels).to(torch.uint8)
    return dataclasses.replace(parcel, images=images)


# --- round trips -----------------------------------------------------------------------------------------------------


@given(parcels_of_one_class())
@settings(max_examples=30)
def test_round_trip(case: tuple[Parcel, Reference]) -> None:
    parcel, data = case
    back = returned(LOOSE, parcel, data, "7")
    assert equal(parcel, back, PoisoningBenchmark.carries - {"patch", "place", *BY_TARGET})
    for name in BY_TARGET:
        assert torch.equal(getattr(parcel, name), getattr(back, name)), name
    assert back.rows is not None
    assert parcel.rows is not None
    assert back.rows.tolist() == parcel.rows.tolist()  # even the order is kept: both lists are read by place
    assert (back.patch, back.place, back.target_rows) == (None, None, None)


@given(parcels_of_one_class(), st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=30)
def test_patches_come_back(case: tuple[Parcel, Reference], high: int, wide: int, draw: st.DataObject) -> None:
    parcel, data = case
    channels, height, width = data.test.shape
    place = draw.draw(st.integers(0, height - high)), draw.draw(st.integers(0, width - wide))
    parcel = dataclasses.replace(parcel, patch=torch.rand(channels, high, wide), place=place)
    back = returned(LOOSE, parcel, data)
    assert back.place == place
    assert back.patch is not None
    assert torch.equal(back.patch, parcel.patch)  # type: ignore[arg-type]
    assert torch.equal(back.target_images, parcel.target_images)  # type: ignore[arg-type]


# --- as the benchmark reads and writes -------------------------------------------------------------------------------


def loaded(folder: Path, name: str) -> Any:
    with (folder / name).open("rb") as file:
        return pickle.load(file)


def as_the_judge_sees(folder: Path, train: Tensor) -> dict[str, Any]:
    """The rules of its evaluation, by hand: images by place in two lists, and the patch on rows y and columns x."""
    poisons, rows, target = (
        loaded(folder, name) for name in ("poisons.pickle", "base_indices.pickle", "target.pickle")
    )
    images = [np.asarray(image).transpose(2, 0, 1) / 255 for image, _ in poisons]
    moved = [float(np.abs(images[place] - train[row].numpy() / 255).max()) for place, row in enumerate(rows)]
    shown = np.asarray(target[0]).transpose(2, 0, 1).copy()
    if len(target) == 4:
        patch = target[2] if torch.is_tensor(target[2]) else torch.tensor(target[2])
        begin_x, begin_y = target[3]
        side_y, side_x = patch.shape[1:]
        shown[:, begin_y : begin_y + side_y, begin_x : begin_x + side_x] = (patch * 255).byte().numpy()
    return {"goal": poisons[0][1], "moved": moved, "true": target[1], "shown": torch.from_numpy(shown)}


def test_the_judge_sees_the_poison(tmp_path: Path) -> None:
    data = reference()
    parcel = near(data)
    files = PoisoningBenchmark().write(parcel, tmp_path / "0", data)
    assert sorted(file.name for file in files) == NAMES
    seen = as_the_judge_sees(tmp_path / "0", data.train.images)
    assert seen["goal"] == 1
    assert seen["true"] == 2
    assert seen["moved"] == pytest.approx([8 / 255] * 3)
    assert torch.equal(seen["shown"][None], parcel.target_images)  # type: ignore[arg-type]


def test_the_pickles_hold_what_the_judge_expects(tmp_path: Path) -> None:
    data = reference()
    parcel = dataclasses.replace(near(data), patch=torch.rand(3, 5, 5), place=(1, 2))
    PoisoningBenchmark().write(parcel, tmp_path / "0", data)
    poisons, rows, target = (
        loaded(tmp_path / "0", name) for name in ("poisons.pickle", "base_indices.pickle", "target.pickle")
    )
    assert type(poisons) is list
    assert {(type(entry), len(entry)) for entry in poisons} == {(tuple, 2)}
    assert {(type(image), image.mode, image.size, type(label)) for image, label in poisons} == {
        (Image.Image, "RGB", (8, 8), int)
    }
    assert [label for _, label in poisons] == [1, 1, 1]
    for (image, _), expected in zip(poisons, parcel.images, strict=True):
        assert np.array_equal(np.asarray(image), expected.permute(1, 2, 0).numpy())
    assert parcel.rows is not None
    assert rows == parcel.rows.tolist()
    assert type(rows) is list
    assert {type(row) for row in rows} == {int}
    assert type(target) is tuple
    assert len(target) == 4
    assert (type(target[1]), target[1]) == (int, 2)
    assert torch.equal(target[2], parcel.patch)  # type: ignore[arg-type]
    assert target[3] == [2, 1]  # column, then row


def test_the_patch_lies_where_the_judge_pastes_it(tmp_path: Path) -> None:
    """Columns before rows: a patch away from the diagonal shows it."""
    data = reference()
    patch = torch.randint(0, 2, (3, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    parcel = dataclasses.replace(near(data), patch=patch, place=(3, 0))
    PoisoningBenchmark().write(parcel, tmp_path / "0", data)
    seen = as_the_judge_sees(tmp_path / "0", data.train.images)["shown"][None]
    assert parcel.target_images is not None
    assert torch.equal(seen, pasted(parcel.target_images, parcel))
    assert not torch.equal(seen, parcel.target_images)


def test_a_trigger_that_is_no_patch_is_drawn_on_the_target(tmp_path: Path) -> None:
    data = reference()
    parcel = dataclasses.replace(near(data), trigger=WarpTrigger())
    PoisoningBenchmark().write(parcel, tmp_path / "0", data)
    seen = as_the_judge_sees(tmp_path / "0", data.train.images)["shown"][None]
    assert parcel.target_images is not None
    assert torch.equal(seen, pasted(parcel.target_images, parcel))
    both = dataclasses.replace(parcel, trigger=PatchTrigger(), patch=torch.ones(3, 5, 5), place=(0, 0))
    PoisoningBenchmark().write(both, tmp_path / "1", data)
    assert torch.equal(PoisoningBenchmark().read(tmp_path / "1", data).target_images, parcel.target_images)  # type: ignore[arg-type]


def from_png(image: Tensor) -> Image.Image:
    """As Pillow opens a file: of a class of its own."""
    found = Image.open(io.BytesIO(png(image)))
    found.load()
    return found


def trial(data: Reference) -> dict[str, Any]:
    """The three pickles of a trial, as plain Python."""
    parcel = near(data)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in parcel.images.contiguous()]
    assert parcel.rows is not None
    assert parcel.target_images is not None
    return {
        "poisons.pickle": [(image, 1) for image in images],
        "base_indices.pickle": parcel.rows.tolist(),
        "target.pickle": (Image.fromarray(parcel.target_images[0].permute(1, 2, 0).numpy()), 2),
    }


def dumped(folder: Path, content: dict[str, Any], protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda rows: [np.int64(row) for row in rows]])
def test_rows_of_every_kind_that_the_judge_takes(tmp_path: Path, protocol: int, kind: Any) -> None:
    """data-poisoning and Sleeper Agent write a tensor, others arrays and lists."""
    data = reference()
    content = trial(data)
    content["base_indices.pickle"] = kind(content["base_indices.pickle"])
    back = PoisoningBenchmark().read(dumped(tmp_path, content, protocol), data)
    assert equal(near(data), back, {"images", "labels", "rows"})


def test_images_of_files_and_numbers_of_numpy(tmp_path: Path) -> None:
    data, parcel = reference(), near(reference())
    content = trial(data)
    content["poisons.pickle"] = [(from_png(image), np.int64(1)) for image in parcel.images]
    for patch in (np.full((3, 5, 5), 0.25), torch.full((3, 5, 5), 0.25)):
        content["target.pickle"] = [*content["target.pickle"][:2], patch, np.array([2, 1])]
        back = PoisoningBenchmark().read(dumped(tmp_path, content), data)
        assert equal(parcel, back, {"images", "labels", "rows"})
        assert back.place == (1, 2)
        assert back.patch is not None
        assert torch.equal(back.patch.float(), torch.full((3, 5, 5), 0.25))


# --- what its evaluation would refuse --------------------------------------------------------------------------------


def test_moved_too_far_is_refused_before_it_is_written(tmp_path: Path) -> None:
    data = reference()
    assert equal(near(data, 9), returned(PoisoningBenchmark(), near(data, 9), data), {"images"})
    with pytest.raises(ValueError, match=r"training row \d+ is moved by 10/255; poisoning-benchmark refuses more"):
        PoisoningBenchmark().write(near(data, 10), tmp_path / "0", data)
    assert not (tmp_path / "0").exists()
    LOOSE.write(near(data, 10), tmp_path / "0", data)
    assert max(as_the_judge_sees(tmp_path / "0", data.train.images)["moved"]) > 9 / 255


def test_rows_that_are_off_by_one_are_refused(tmp_path: Path) -> None:
    """Its own limit sees it: the next row of the class looks nothing like the poison."""
    data, parcel = reference(), near(reference())
    assert parcel.rows is not None
    with pytest.raises(ValueError, match="is moved by"):
        PoisoningBenchmark().write(parcel.with_rows(parcel.rows - 3), tmp_path / "0", data)


@pytest.mark.parametrize(("side", "fits"), [(32, {5}), (64, {8}), (16, {5, 8})])
def test_patches_of_a_size_that_ends_the_evaluation(tmp_path: Path, side: int, fits: set[int]) -> None:
    data = reference(3, side)
    for size in (4, 5, 8):
        parcel = dataclasses.replace(near(data), patch=torch.ones(3, size, size), place=(0, 0))
        if size in fits:
            PoisoningBenchmark().write(parcel, tmp_path / str(size), data)
            continue
        with pytest.raises(ValueError, match="ends without a result on others"):
            PoisoningBenchmark().write(parcel, tmp_path / "no", data)
        LOOSE.write(parcel, tmp_path / str(size), data)
    flat = dataclasses.replace(near(data), patch=torch.ones(3, 5, 8), place=(0, 0))
    with pytest.raises(ValueError, match=r"the patch is \[5, 8\]"):
        PoisoningBenchmark().write(flat, tmp_path / "no", data)
    assert not (tmp_path / "no").exists()


def test_grey_images_are_refused(tmp_path: Path) -> None:
    data = reference(1)
    with pytest.raises(ValueError, match="need colour"):
        PoisoningBenchmark().write(near(data), tmp_path / "0", data)
    LOOSE.write(near(data), tmp_path / "0", data)
    assert [image.mode for image, _ in loaded(tmp_path / "0", "poisons.pickle")] == ["L"] * 3


def test_what_cannot_be_written(tmp_path: Path) -> None:
    data = reference()
    parcel = near(data)
    nothing = {"target_images": None, "target_rows": None, "target_labels": None, "intended": None}
    for change, said in (
        ({"rows": None}, "needs rows"),
        ({"labels": torch.tensor([1, 1, 2])}, "is of the classes 1, 2"),
        ({"intended": torch.tensor([0])}, "targets should get class 0, but the poison is of class 1"),
        ({"rows": torch.tensor([1, 4, 24])}, "training row 24 is not in"),
        ({"rows": torch.tensor([1, 4, 4])}, "more than once"),
        ({"labels": torch.tensor([3, 3, 3]), "intended": None}, "label 3 is none of"),
        ({"target_rows": torch.tensor([9])}, "test row 9 is not in"),
        ({"patch": torch.ones(3, 5, 5)}, "needs place"),
        ({"patch": torch.ones(3, 5, 5), "place": (4, 0)}, "leaves images"),
        ({"patch": torch.full((3, 5, 5), 2.0), "place": (0, 0)}, "not in"),
        (nothing, "needs target_images or target_rows"),
        ({**nothing, "target_images": parcel.target_images}, "needs target_labels"),
    ):
        with pytest.raises(ValueError, match=said):
            PoisoningBenchmark().write(dataclasses.replace(parcel, **change), tmp_path / "a", data)
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"aims at {count} test images"):
            PoisoningBenchmark().write(of_one_class(data, targets=count), tmp_path / "a", data)
    with pytest.raises(ValueError, match="the poison is empty"):
        PoisoningBenchmark().write(of_one_class(data, count=0), tmp_path / "a", data)
    assert not (tmp_path / "a").exists()
    PoisoningBenchmark().write(parcel, tmp_path / "a", data)
    with pytest.raises(FileExistsError):
        PoisoningBenchmark().write(parcel, tmp_path / "a", data)


def test_rows_of_the_test_set_are_enough(tmp_path: Path) -> None:
    data, parcel = reference(), near(reference())
    few = dataclasses.replace(parcel, target_images=None, target_labels=None, labels=None)
    assert equal(parcel, returned(PoisoningBenchmark(), few, data), {"labels", "target_images", "target_labels"})


# --- planted faults --------------------------------------------------------------------------------------------------


class Call:
    """Would leave a file behind if it were unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_run(tmp_path: Path) -> None:
    data, trace = reference(), tmp_path / "trace"
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name}.*asks for"):
            PoisoningBenchmark().read(dumped(tmp_path / "a", trial(data) | {name: Call(trace)}), data)
    assert not trace.exists()


GREY, WIDE, SEEN = Image.new("L", (8, 8)), Image.new("RGB", (9, 8)), Image.new("RGB", (8, 8))
PATCH = torch.ones(3, 5, 5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("poisons", [], "0 entries"),
        ("poisons", {"images": 1}, "holds dict"),
        ("poisons", [(SEEN, 1)] * 25, "25 entries"),
        ("poisons", [(SEEN, 1), (SEEN, 2), (SEEN, 1)], "several classes"),
        ("poisons", [(SEEN, 3)] * 3, "label 3 is none of"),
        ("poisons", [(SEEN, -1)] * 3, "label -1 is none of"),
        ("poisons", [(SEEN, 1.0)] * 3, "expected a whole number"),
        ("poisons", [(SEEN, True)] * 3, "expected a whole number"),
        ("poisons", [(WIDE, 1)] * 3, "9x8 pixels"),
        ("poisons", [(Image.new("RGBA", (8, 8)), 1)] * 3, "seen through"),
        ("poisons", [(torch.zeros(3, 8, 8), 1)] * 3, "expected an image and its class"),
        ("poisons", [SEEN] * 3, "expected an image and its class"),
        ("poisons", [(SEEN, 1)] * 2, "names 3 rows, but there are 2 poisons"),
        ("base_indices", [1, 4, 24], "training row 24 is not in"),
        ("base_indices", [1, 4, -1], "training row -1 is not in"),
        ("base_indices", [1, 4, 4], "training row 4 is named more than once"),
        ("base_indices", [1, 4], "names 2 rows, but there are 3 poisons"),
        ("base_indices", [1, 4, 2**62], "is not in"),
        ("base_indices", [1, 4, 2**70], "more than 64 bits"),
        ("base_indices", [1, 4, "7"], "entry 2 is a str"),
        ("base_indices", np.array([1.0, 4.0, 7.0]), "expected a whole number"),
        ("base_indices", np.arange(6).reshape(3, 2), "holds a ndarray"),
        ("base_indices", list(range(25)), "holds 25 numbers"),
        ("target", (SEEN,), "no image with its class"),
        ("target", (SEEN, 2, PATCH), "no image with its class"),
        ("target", [(SEEN, 2)] * 3, "no image with its class"),
        ("target", (SEEN, 3), "label 3 is none of"),
        ("target", (WIDE, 2), "9x8 pixels"),
        ("target", (PATCH, 2), "expected an image"),
        ("target", (SEEN, 2, PATCH.to(torch.uint8), [0, 0]), "the patch is no array"),
        ("target", (SEEN, 2, PATCH[0], [0, 0]), "the patch is no array"),
        ("target", (SEEN, 2, "white", [0, 0]), "the patch is no array"),
        ("target", (SEEN, 2, PATCH * 255, [0, 0]), "not in"),
        ("target", (SEEN, 2, PATCH * torch.nan, [0, 0]), "not in"),
        ("target", (SEEN, 2, PATCH, [4, 0]), "leaves images"),
        ("target", (SEEN, 2, PATCH, [-1, 0]), "leaves images"),
        ("target", (SEEN, 2, PATCH, [0]), "1 numbers; expected column and row"),
        ("target", (SEEN, 2, PATCH, [0, 0, 0]), "at most 2"),
        ("target", (SEEN, 2, PATCH, 3), "up to 2 whole numbers"),
        ("target", (SEEN, 2, torch.ones(1, 5, 5), [0, 0]), "leaves images"),
    ],
)
def test_planted_faults(tmp_path: Path, name: str, content: Any, said: str) -> None:
    data = reference()
    with pytest.raises(ValueError, match=said) as error:
        PoisoningBenchmark().read(dumped(tmp_path, trial(data) | {f"{name}.pickle": content}), data)
    assert str(tmp_path) in str(error.value)


def test_grey_images_of_colour_data_are_read(tmp_path: Path) -> None:
    data = reference()
    back = PoisoningBenchmark().read(dumped(tmp_path, trial(data) | {"target.pickle": (GREY, 2)}), data)
    assert back.target_images is not None
    assert int(back.target_images.max()) == 0


def test_missing_files(tmp_path: Path) -> None:
    data = reference()
    for name in NAMES:
        dumped(tmp_path, trial(data))
        assert LOOSE.recognises(tmp_path)
        (tmp_path / name).unlink()
        assert not LOOSE.recognises(tmp_path)
        with pytest.raises(FileNotFoundError, match=name):
            LOOSE.read(tmp_path, data)


@given(st.integers(0, 10**6))
@settings(max_examples=100)
def test_damaged_files(seed: int) -> None:
    survives_damage(LOOSE, "out", seed, single=True)


@given(st.binary(max_size=300), st.integers(0, 99))
@settings(max_examples=40)
def test_random_bytes(garbage: bytes, seed: int) -> None:
    assert survives_damage(LOOSE, "out", seed, garbage, single=True)
