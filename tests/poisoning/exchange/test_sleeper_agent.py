from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mithridate.poisoning.exchange.checks import pasted
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.poisoning_benchmark import PoisoningBenchmark
from mithridate.poisoning.exchange.sleeper_agent import SleeperAgent
from mithridate.poisoning.exchange.verification import verify
from mithridate.poisoning.triggers import BlendTrigger, PatchTrigger
from tests.poisoning.exchange.exchange_cases import (
    equal,
    of_one_class,
    parcels_of_one_class,
    reference,
    returned,
    survives_damage,
)

NAMES = ["base_indices.pickle", "poisons.pickle", "source.pickle"]
LAYOUTS = ("sleeper-agent", "epic")


def form(layout: Any) -> SleeperAgent:
    return SleeperAgent(layout=layout)


def loaded(folder: Path, name: str) -> Any:
    with (folder / name).open("rb") as file:
        return pickle.load(file)


# --- round trips -----------------------------------------------------------------------------------------------------


@given(parcels_of_one_class(targets=3), st.sampled_from(LAYOUTS))
@settings(max_examples=30)
def test_round_trip(case: tuple[Parcel, Reference], layout: str) -> None:
    parcel, data = case
    if layout == "sleeper-agent" and parcel.targets > 1:
        with pytest.raises(ValueError, match=r"writes one, so use layout=epic"):
            form(layout).write(parcel, Path("nowhere"), data)
        return
    back = returned(form(layout), parcel, data)
    for name in (*SleeperAgent.carries, "target_images"):  # without a trigger, they are those of the test set
        assert torch.equal(getattr(parcel, name), getattr(back, name)), name
    assert (back.patch, back.place, back.trigger, back.target_rows) == (None, None, None, None)


@given(parcels_of_one_class(targets=3), st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=20)
def test_the_trigger_is_drawn_on_the_images(
    case: tuple[Parcel, Reference], high: int, wide: int, draw: st.DataObject
) -> None:
    parcel, data = case
    channels, height, width = data.test.shape
    place = draw.draw(st.integers(0, height - high)), draw.draw(st.integers(0, width - wide))
    parcel = dataclasses.replace(parcel, patch=torch.rand(channels, high, wide), place=place)
    assert parcel.target_images is not None
    back = returned(form("epic"), parcel, data)
    assert torch.equal(back.target_images, pasted(parcel.target_images, parcel))  # type: ignore[arg-type]
    assert back.notes == {"trigger": "drawn on the target images"}
    assert equal(parcel, back, SleeperAgent.carries - {"target_labels", "intended"})


@pytest.mark.parametrize("trigger", [PatchTrigger(), BlendTrigger()])
def test_triggers_that_are_no_patch_are_drawn_too(tmp_path: Path, trigger: Any) -> None:
    data = reference()
    parcel = dataclasses.replace(of_one_class(data), trigger=trigger)
    form("sleeper-agent").write(parcel, tmp_path / "0", data)
    back = form("sleeper-agent").read(tmp_path / "0", data)
    assert parcel.target_images is not None
    assert torch.equal(back.target_images, pasted(parcel.target_images, parcel))  # type: ignore[arg-type]
    assert not torch.equal(back.target_images, parcel.target_images)  # type: ignore[arg-type]
    said = {finding.what: finding for finding in verify(back, data)}["targets"]
    assert (said.standing, said.said) == (
        "unknown",
        "target images carry a trigger, and the test set has them without",
    )


# --- as the peers read and write -------------------------------------------------------------------------------------


def test_the_pickles_hold_what_the_readers_expect(tmp_path: Path) -> None:
    data = reference()
    parcel = of_one_class(data, targets=1)
    for layout in LAYOUTS:
        files = form(layout).write(parcel, tmp_path / layout, data)
        assert sorted(file.name for file in files) == NAMES
        poisons, rows = (loaded(tmp_path / layout, name) for name in ("poisons.pickle", "base_indices.pickle"))
        assert {(type(entry), type(entry[0]), type(entry[1])) for entry in poisons} == {(tuple, Image.Image, int)}
        assert {(image.mode, image.size, label) for image, label in poisons} == {("RGB", (8, 8), 1)}
        assert parcel.rows is not None
        assert (type(rows), rows) == (list, parcel.rows.tolist())
    image, label = loaded(tmp_path / "sleeper-agent", "source.pickle")
    assert (type(image), type(label), label) == (Image.Image, int, 2)
    assert parcel.target_images is not None
    assert np.array_equal(np.asarray(image), parcel.target_images[0].permute(1, 2, 0).numpy())


def test_epic_sees_every_image_and_the_class_of_the_first(tmp_path: Path) -> None:
    """By hand: the class of the first source is that of all, that of the first poison is what is counted."""
    data = reference()
    patch = torch.randint(0, 2, (3, 2, 3), generator=torch.Generator().manual_seed(0)).float()
    parcel = dataclasses.replace(of_one_class(data, targets=3), patch=patch, place=(5, 1))
    form("epic").write(parcel, tmp_path / "0", data)
    sources = loaded(tmp_path / "0", "source.pickle")
    assert type(sources) is list
    assert len(sources) == 3
    assert sources[0][1] == 2
    assert loaded(tmp_path / "0", "poisons.pickle")[0][1] == 1
    assert parcel.target_images is not None
    for (image, _), clean in zip(sources, parcel.target_images, strict=True):
        shown = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(shown[:, 5:7, 1:4], (patch * 255).byte().numpy())
        assert (shown != clean.numpy()).any(0).sum() <= 6


def trial(data: Reference) -> dict[str, Any]:
    """The three pickles as Sleeper Agent writes them: rows as a tensor, and one source."""
    parcel = of_one_class(data)
    assert parcel.rows is not None
    assert parcel.target_images is not None
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in parcel.images.contiguous()]
    return {
        "poisons.pickle": [(image, 1) for image in images],
        "base_indices.pickle": parcel.rows,
        "source.pickle": (Image.fromarray(parcel.target_images[0].permute(1, 2, 0).numpy()), 2),
    }


def dumped(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    return folder


def test_what_sleeper_agent_writes_is_read(tmp_path: Path) -> None:
    data = reference()
    parcel, one = of_one_class(data), trial(data)
    for source in (one["source.pickle"], list(one["source.pickle"]), [one["source.pickle"]]):
        for layout in LAYOUTS:  # whatever was said, the contents tell
            back = form(layout).read(dumped(tmp_path, one | {"source.pickle": source}), data)
            assert equal(parcel, back, SleeperAgent.carries - {"target_labels", "intended"})
            assert (back.target_labels, back.intended) == (torch.tensor([2]), torch.tensor([1]))
            assert torch.equal(back.target_images, parcel.target_images)  # type: ignore[arg-type]


def test_a_folder_that_the_benchmark_can_judge_is_of_the_benchmark(tmp_path: Path) -> None:
    """Its `target.pickle` tells them apart; Sleeper Agent alone writes a source, which the benchmark does not find."""
    data = reference()
    form("sleeper-agent").write(of_one_class(data), tmp_path / "a", data)
    judged = PoisoningBenchmark(strict=False)
    assert form("epic").recognises(tmp_path / "a")
    assert not judged.recognises(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"target\.pickle"):
        judged.read(tmp_path / "a", data)
    (tmp_path / "a" / "target.pickle").write_bytes((tmp_path / "a" / "source.pickle").read_bytes())
    assert not form("epic").recognises(tmp_path / "a")
    assert judged.recognises(tmp_path / "a")
    assert equal(of_one_class(data), judged.read(tmp_path / "a", data), {"images", "rows"})


# --- planted faults --------------------------------------------------------------------------------------------------


def test_what_cannot_be_written(tmp_path: Path) -> None:
    data = reference()
    several = of_one_class(data, targets=2)
    mixed = {
        "target_rows": torch.tensor([2, 0]),
        "target_images": data.test.pixels(torch.tensor([2, 0])),
        "target_labels": torch.tensor([2, 0]),
    }
    with pytest.raises(ValueError, match="targets are of the classes 0, 2; EPIC counts all of them as of the first"):
        form("epic").write(dataclasses.replace(several, **mixed), tmp_path / "a", data)
    nothing = {"target_images": None, "target_rows": None, "target_labels": None, "intended": None}
    for layout in LAYOUTS:
        for change, said in (
            ({"rows": None}, "needs rows"),
            ({"labels": torch.tensor([1, 1, 2])}, "is of the classes 1, 2"),
            ({"intended": torch.tensor([0])}, "targets should get class 0, but the poison is of class 1"),
            ({"rows": torch.tensor([1, 4, 24])}, "training row 24 is not in"),
            ({"patch": torch.ones(3, 5, 5)}, "needs place"),
            ({"patch": torch.ones(3, 5, 5), "place": (4, 0)}, "leaves images"),
            (nothing, "needs target_images or target_rows"),
        ):
            with pytest.raises(ValueError, match=said):
                form(layout).write(dataclasses.replace(of_one_class(data), **change), tmp_path / "a", data)
        with pytest.raises(ValueError, match="aims at no test image"):
            form(layout).write(of_one_class(data, targets=0), tmp_path / "a", data)
        with pytest.raises(ValueError, match="the poison is empty"):
            form(layout).write(of_one_class(data, count=0), tmp_path / "a", data)
    assert not (tmp_path / "a").exists()
    form("epic").write(several, tmp_path / "a", data)
    with pytest.raises(FileExistsError):
        form("epic").write(several, tmp_path / "a", data)


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
            form("epic").read(dumped(tmp_path / "a", trial(data) | {name: Call(trace)}), data)
    assert not trace.exists()


SEEN, WIDE = Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("poisons", [(SEEN, 1), (SEEN, 2), (SEEN, 1)], "several classes"),
        ("poisons", [(SEEN, 3)] * 3, "label 3 is none of"),
        ("poisons", [(WIDE, 1)] * 3, "9x8 pixels"),
        ("poisons", [(SEEN, 1)] * 2, "names 3 rows, but there are 2 poisons"),
        ("base_indices", torch.tensor([1, 4, 24]), "training row 24 is not in"),
        ("base_indices", torch.tensor([1, 4, 4]), "more than once"),
        ("base_indices", torch.tensor([1.0, 4.0, 7.0]), "expected a whole number"),
        ("source", [], "entry 0 is a list of 0 parts"),
        ("source", [(SEEN, 2)] * 10, "holds 10 images; the test set has 9"),
        ("source", [(SEEN, 2), (SEEN,)], "entry 1 is a tuple of 1 parts"),
        ("source", [(SEEN, 2), SEEN], "entry 1 is a"),
        ("source", (SEEN, 3), "label 3 is none of"),
        ("source", (SEEN, "2"), "its class is a str"),
        ("source", (WIDE, 2), "9x8 pixels"),
        ("source", SEEN, "expected an image and its class"),
        ("source", {"image": 1}, "expected an image and its class"),
        ("source", None, "expected an image and its class"),
    ],
)
def test_planted_faults(tmp_path: Path, name: str, content: Any, said: str) -> None:
    data = reference()
    with pytest.raises(ValueError, match=said) as error:
        form("epic").read(dumped(tmp_path, trial(data) | {f"{name}.pickle": content}), data)
    assert str(tmp_path) in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    data = reference()
    for name in NAMES:
        dumped(tmp_path, trial(data))
        assert form("epic").recognises(tmp_path)
        (tmp_path / name).unlink()
        assert not form("epic").recognises(tmp_path)
        with pytest.raises(FileNotFoundError, match=name):
            form("epic").read(tmp_path, data)


@given(st.sampled_from(LAYOUTS), st.integers(0, 10**6))
@settings(max_examples=100)
def test_damaged_files(layout: str, seed: int) -> None:
    survives_damage(form(layout), "out", seed, single=True)


@given(st.sampled_from(LAYOUTS), st.binary(max_size=300), st.integers(0, 99))
@settings(max_examples=40)
def test_random_bytes(layout: str, garbage: bytes, seed: int) -> None:
    assert survives_damage(form(layout), "out", seed, garbage, single=True)
