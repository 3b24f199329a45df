"""`mithridate verify` on every format: a faultless export passes, and each planted fault is named."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate import cli
from mithridate.core.balls import Linf, to_bytes
from mithridate.core.data import ImageData
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from mithridate.core.sources import source
from mithridate.poisoning.exchange.hugging_face import HuggingFace
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.poisoning_benchmark import PoisoningBenchmark
from tests.poisoning.cases import CLASSES, images_of
from tests.poisoning.exchange.hostile_cases import FORMS, SETTINGS

BALL = Linf(eps=0.03)
"""7.65/255: no 8-bit image lies on its border, and the nearest one is outside."""
LIMIT = "linf:eps=0.03"
STD = torch.tensor([float(value) for value in str(SETTINGS["std"]).split("/")], dtype=torch.float64)[:, None, None]

every_format = pytest.mark.parametrize("name", FORMS)

# What formats have no place for, or hold in another way. Everything else a sender may get wrong is in the bytes.
BASES = {"artefact", "npz"}
"""Clean images travel along. In all others the poison itself has to show which rows it was."""
NO_LABELS = {"png-folder", "data-poisoning-packed"}
"""Labels are those of the row: there is nothing to swap, and `verify` says so."""
ONE_CLASS = {"poisoning-benchmark", "sleeper-agent-sleeper-agent", "sleeper-agent-epic"}
"""The class of the poison is the one intended: one label that differs makes it none of this format."""
SORTED = {"metapoison-float32", "metapoison-uint8"}
"""Places follow from the labels: one that differs makes it other data."""
FLOATS = {"metapoison-float32", "data-poisoning-packed", "data-poisoning-numpy"}
"""Pixels, or what is added to them, are floats. In all others a float-only poison is rounded as it is written."""
TARGET_ROWS = {"artefact", "npz", "backdoor-bench", "data-poisoning-limited", "data-poisoning-full"}
TARGET_IMAGES = {"poisoning-benchmark", *ONE_CLASS, *SORTED}
"""Test images come along without their rows. The formats that are in neither say nothing of targets."""


class Home(NamedTuple):
    """Clean data on disk, and as they are loaded from there."""

    path: Path
    data: Reference


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """36 training and 12 test images; rows 2k and 2k + 1 are of one class, so one that is off by one has its label."""
    path = tmp_path_factory.mktemp("data")
    for seed, (part, labels) in enumerate((("train", torch.arange(36) // 2 % 3), ("test", torch.arange(12) % 3))):
        images = ImageData(images_of(labels, seed), labels, CLASSES)
        none = Parcel(images.images[:0], rows=images.labels[:0])
        (file,) = HuggingFace().write(none, path / part, Reference(images, images))
        file.rename(path / f"{part}.parquet")
    return Home(path, Reference(*source(path).load()))


@pytest.fixture
def verdict(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs `mithridate verify`; returns the exit code, and what it found by name, or the error."""

    def run(path: Path, limit: str | None = LIMIT) -> tuple[int, Any]:
        said = [] if limit is None else ["--limit", limit]
        if any(path.glob("poisons_packed*")):  # the file does not say what its numbers are multiples of
            said += ["--format", f"data-poisoning:std={SETTINGS['std']}"]
        code = cli.main(["verify", str(path), "--data", str(home.path), "--json", *said])
        out, error = capsys.readouterr()
        return code, error if code == 2 else {found["what"]: found for found in json.loads(out)["findings"]}

    return run


def failed(found: dict[str, Any]) -> set[str]:
    return {what for what, one in found.items() if one["standing"] == "fails"}


# --- what a sender gets right, and wrong -----------------------------------------------------------------------------


def rows_of_poison() -> Tensor:
    """Three even rows of class 1, not in order."""
    return torch.tensor([20, 2, 14])


def floats(data: Reference) -> Tensor:
    """The poison as an attack that never rounds has it: within the limit, and no 8-bit image."""
    base = data.train.floats(rows_of_poison())
    return BALL.sample(base, stream(0, "noise"))


def right(data: Reference) -> Parcel:
    """Poison that is as it says."""
    rows, target = rows_of_poison(), torch.tensor([3])
    return Parcel(
        BALL.rounded(data.train.floats(rows), floats(data)),
        labels=torch.ones(3, dtype=torch.int64),
        rows=rows,
        base=data.train.pixels(rows).contiguous(),
        target_rows=target,
        target_images=data.test.pixels(target).contiguous(),
        target_labels=torch.tensor([0]),
        intended=torch.tensor([1]),
    )


def rounded_carelessly(data: Reference) -> Parcel:
    return dataclasses.replace(right(data), images=to_bytes(floats(data)))


def off_by_one(data: Reference) -> Parcel:
    return right(data).with_rows(rows_of_poison() + 1)


def label_swapped(data: Reference) -> Parcel:
    return dataclasses.replace(right(data), labels=torch.tensor([1, 2, 1]))


def wrong_base(data: Reference) -> Parcel:
    """Made of other images than those of its rows, of the same class."""
    parcel = right(data)
    assert parcel.base is not None
    return dataclasses.replace(parcel, images=parcel.images.roll(1, 0), base=parcel.base.roll(1, 0))


def written(name: str, parcel: Parcel, home: Home, folder: Path) -> Path:
    path = folder / ("poison.npz" if name == "npz" else "poison")
    FORMS[name].write(parcel, path, home.data)
    return path


def test_the_tables_are_of_formats_that_there_are() -> None:
    for table in (BASES, NO_LABELS, ONE_CLASS, SORTED, FLOATS, TARGET_ROWS, TARGET_IMAGES):
        assert table <= FORMS.keys()
    assert {type(form) for form in FORMS.values()} == set(choices(Format).values())
    assert {name for name, form in FORMS.items() if "base" in type(form).carries} == BASES


# --- the checks ------------------------------------------------------------------------------------------------------


@every_format
def test_what_is_as_it_says_passes(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    code, found = verdict(written(name, right(home.data), home, tmp_path))
    assert code == 0
    targets = "holds" if name in TARGET_ROWS | TARGET_IMAGES else "unknown"
    standings = {what: one["standing"] for what, one in found.items()}
    assert standings == dict.fromkeys(("size", "rows", "labels", "base", "distance"), "holds") | {"targets": targets}
    assert found["distance"]["said"].startswith("largest change of a pixel 7/255")
    assert ("came along" in found["base"]["said"]) == (name in BASES)


@every_format
def test_a_poison_that_is_right_as_floats_only(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    as_floats, base = floats(home.data), home.data.train.floats(rows_of_poison())
    assert bool(BALL.contains(base, as_floats).all())
    path = written(name, rounded_carelessly(home.data), home, tmp_path)
    if name in FLOATS:
        keep_floats(name, path, as_floats, base)
    code, found = verdict(path)
    if name == "data-poisoning-numpy":
        assert code == 2
        assert "expected whole numbers in 0..255" in found
        return
    assert (code, failed(found)) == (1, {"distance"})
    assert "largest change of a pixel 8/255" in found["distance"]["said"]
    assert "3 of 3 images are not within the limit" in found["distance"]["said"]


def keep_floats(name: str, path: Path, images: Tensor, base: Tensor) -> None:
    """Puts the poison into the file as it was before it was rounded."""
    rows = rows_of_poison()
    if name == "data-poisoning-packed":
        torch.save([((images - base) / STD).float(), rows], path / "poisons_packed.pth")
    elif name == "data-poisoning-numpy":
        array = np.load(path / "poisoned_training_data.npy")
        array[rows.numpy()] = 255 * images.permute(0, 2, 3, 1).numpy()
        np.save(path / "poisoned_training_data.npy", array)
    else:
        file = path / "poisondataset-60.pkl"
        content = pickle.loads(file.read_bytes())
        places = 12 + rows.numpy() // 6 * 2  # class 1 begins at 12, and two rows of every six are of it
        exact = 255 * images.permute(0, 2, 3, 1).numpy()
        assert np.abs(content["xtrain"][places] - exact).max() < 0.5  # there they are
        content["xtrain"][places] = exact
        file.write_bytes(pickle.dumps(content))


@every_format
def test_rows_that_are_off_by_one(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    code, found = verdict(written(name, off_by_one(home.data), home, tmp_path))
    assert (code, failed(found)) == (1, {"base", "distance"})
    said = found["base"]["said"]
    if name in BASES:
        assert said == "3 clean images that came along are others than those rows"
    else:
        assert said.startswith("3 of 3 images look like other rows: image 0 names row ")
        named, looks = (int(part.split(" ")[0]) for part in said.split(" row ")[1:])
        assert (named - 1, looks) in {(row, row) for row in rows_of_poison().tolist()}


def test_rows_that_are_off_by_one_are_found_without_a_limit(home: Home, tmp_path: Path, verdict: Any) -> None:
    """Distances are judged by nobody then; what it looks like still is."""
    bare = dataclasses.replace(off_by_one(home.data), base=None)
    for name in FORMS:
        (tmp_path / name).mkdir()
        code, found = verdict(written(name, bare, home, tmp_path / name), None)
        assert (code, failed(found)) == (1, {"base"}), name


@every_format
def test_a_swapped_label(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    if name in NO_LABELS:
        with pytest.raises(ValueError, match="this format has no labels; choose another one"):
            written(name, label_swapped(home.data), home, tmp_path)
        _, found = verdict(written(name, right(home.data), home, tmp_path))
        assert found["labels"]["said"] == "the format has none: they are those of the rows"
        return
    if name in ONE_CLASS | SORTED:
        said = "has other labels than its rows" if name in SORTED else "the poison is of the classes 1, 2"
        with pytest.raises(ValueError, match=said):
            written(name, label_swapped(home.data), home, tmp_path)
        path = written(name, right(home.data), home, tmp_path)
        swap_label(name, path)
        code, said = verdict(path)
        assert code == 2
        expected = "holds 13 images of class 2, the training set at hand 12: it is other data"
        assert (expected if name in SORTED else "holds poisons of several classes") in said
        return
    code, found = verdict(written(name, label_swapped(home.data), home, tmp_path))
    assert (code, failed(found)) == (1, {"labels"})
    assert (
        found["labels"]["said"]
        == "1 of 3 differ from the training set; row 2 is bee there and cat here; --relabel allows it"
    )


def swap_label(name: str, path: Path) -> None:
    """Changes the label of one poison in the file, as no writer of ours does."""
    file = path / ("poisondataset-60.pkl" if name in SORTED else "poisons.pickle")
    content = pickle.loads(file.read_bytes())
    if name in SORTED:
        content["ytrain"][12] = 2
    else:
        content[1] = (content[1][0], 2)
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", sorted(ONE_CLASS))
def test_all_labels_swapped_together(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    """Still of one class, so that only the training set can tell."""
    all_of_them = dataclasses.replace(right(home.data), labels=torch.full((3,), 2), intended=torch.tensor([2]))
    code, found = verdict(written(name, all_of_them, home, tmp_path))
    assert (code, failed(found)) == (1, {"labels"})
    assert "3 of 3 differ from the training set; row 20 is bee there and cat here" in found["labels"]["said"]


@every_format
def test_a_wrong_base(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    code, found = verdict(written(name, wrong_base(home.data), home, tmp_path))
    assert (code, failed(found)) == (1, {"base", "distance"})
    said = found["base"]["said"]
    expected = "3 clean images that came along are others" if name in BASES else "3 of 3 images look like other rows"
    assert said.startswith(expected)


@every_format
def test_wrong_clean_images_beside_the_right_poison(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    """Where they do not travel, the file is that of the right poison; where any image is allowed, nothing shows."""
    parcel = right(home.data)
    assert parcel.base is not None
    path = written(name, dataclasses.replace(parcel, base=255 - parcel.base), home, tmp_path)
    code, found = verdict(path)
    assert (code, failed(found)) == ((1, {"base"}) if name in BASES else (0, set()))
    _, found = verdict(path, "any-image")
    if name in BASES:
        assert found["base"]["standing"] == "fails"
    else:
        expected = ("unknown", "images may be any, so they do not show which rows they were")
        assert (found["base"]["standing"], found["base"]["said"]) == expected


@every_format
def test_a_wrong_target(name: str, home: Home, tmp_path: Path, verdict: Any) -> None:
    """Row and image do not belong together; or, without a row, the image is none of the test set."""
    parcel = right(home.data)
    assert parcel.target_images is not None
    path = written(name, dataclasses.replace(parcel, target_images=255 - parcel.target_images), home, tmp_path)
    code, found = verdict(path)
    said = found["targets"]["said"]
    if name in TARGET_IMAGES - ONE_CLASS | {"poisoning-benchmark"}:
        assert (code, failed(found), said) == (1, {"targets"}, "1 of 1 target images are not in the test set")
    elif name in ONE_CLASS:  # it may be the trigger
        assert (code, found["targets"]["standing"]) == (0, "unknown")
        assert said == "target images carry a trigger, and the test set has them without"
    elif name == "backdoor-bench":  # what differs is taken for a trigger
        assert (code, found["targets"]["standing"]) == (0, "holds")
    elif name in TARGET_ROWS:
        assert (code, failed(found)) == (1, {"targets"})
        assert said == "the target images that came along are not those rows of the test set"
    else:
        assert (code, said) == (0, "the format does not say which test images are aimed at")


def test_the_benchmarks_own_limit_refuses_them_before(home: Home, tmp_path: Path) -> None:
    for fault in (off_by_one, wrong_base):
        with pytest.raises(ValueError, match="poisoning-benchmark refuses more than 9/255"):
            PoisoningBenchmark().write(fault(home.data), tmp_path / "poison", home.data)
    PoisoningBenchmark().write(right(home.data), tmp_path / "poison", home.data)
