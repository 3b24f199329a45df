"""mithridate's own folder as a format: round trips, and every change to it noticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mithridate.core.balls import to_bytes, to_floats
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.poisoning.exchange.artefact import Artefact
from mithridate.poisoning.exchange.checks import pasted
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.verification import verify
from mithridate.poisoning.triggers import PatchTrigger, WarpTrigger


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=stream(seed, "images"))


@pytest.fixture(scope="module")
def data() -> Reference:
    names = ("ant", "bee", "cat")
    return Reference(
        ImageData(images(30, 0), torch.arange(30) % 3, names), ImageData(images(12, 1), torch.arange(12) % 3, names)
    )


def parcel_of(data: Reference, rows: list[int], targets: list[int]) -> Parcel:
    picked, aimed = torch.tensor(rows), torch.tensor(targets, dtype=torch.int64)
    return Parcel(
        images(len(rows), 2),
        labels=data.train.labels_of(picked),
        rows=picked,
        base=data.train.pixels(picked),
        target_images=data.test.pixels(aimed),
        target_rows=aimed,
        target_labels=data.test.labels_of(aimed),
        intended=(data.test.labels_of(aimed) + 1) % 3,
        notes={"name": "somebody's attack"},
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.integers(0, 29), min_size=1, max_size=8, unique=True),
    targets=st.lists(st.integers(0, 11), min_size=1, max_size=3, unique=True),
)
def test_what_it_carries_comes_back(
    data: Reference, tmp_path_factory: pytest.TempPathFactory, rows: list[int], targets: list[int]
) -> None:
    parcel, path = parcel_of(data, rows, targets), tmp_path_factory.mktemp("out")
    Artefact().write(parcel, path, data)
    assert Artefact().recognises(path)
    back = Artefact().read(path, data)
    order = parcel.order()
    for name in Artefact.carries:
        was, now = getattr(parcel, name), getattr(back, name)
        if was is None:
            assert now is None, name
        else:
            assert torch.equal(now, was[order] if name in ("images", "labels", "rows", "base") else was), name
    assert back.notes["origin"] == {"name": "somebody's attack"}
    assert {finding.standing for finding in verify(back, data)} <= {"holds", "unknown"}


def test_a_foreign_patch_stays_with_the_poison(data: Reference, tmp_path: Path) -> None:
    parcel = dataclasses.replace(parcel_of(data, [7, 2], [0]), patch=torch.rand(3, 2, 2), place=(1, 3))
    Artefact().write(parcel, tmp_path / "out", data)
    back = Artefact().read(tmp_path / "out", data)
    assert torch.equal(back.patch, parcel.patch)  # type: ignore[arg-type]
    assert (back.place, back.trigger) == ((1, 3), None)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_patch_of_another_precision_is_kept(data: Reference, tmp_path: Path, kind: torch.dtype) -> None:
    """Arrays of numpy are float64: what import wrote of them could not be read again."""
    parcel = dataclasses.replace(parcel_of(data, [7], [0]), patch=torch.full((3, 2, 2), 0.25, dtype=kind), place=(1, 3))
    Artefact().write(parcel, tmp_path / "out", data)
    assert torch.equal(Artefact().read(tmp_path / "out", data).patch, torch.full((3, 2, 2), 0.25))  # type: ignore[arg-type]


def test_clean_images_that_nobody_sent_are_not_made_up(data: Reference, tmp_path: Path) -> None:
    """Those of the rows that are named would fit whatever was named."""
    near = data.train.pixels(torch.tensor([7, 2])) ^ 1
    parcel = Parcel(near, rows=torch.tensor([8, 3]))
    Artefact().write(parcel, tmp_path / "out", data)
    back = Artefact().read(tmp_path / "out", data)
    assert back.base is None
    assert [one.what for one in verify(back, data) if one.standing == "fails"] == ["base"]


def test_triggers_come_back_and_as_a_patch_where_they_are_one(data: Reference, tmp_path: Path) -> None:
    plain = parcel_of(data, [7, 2], [0, 5])
    clean = data.test.pixels(data.test.ids)
    for number, trigger in enumerate((PatchTrigger(), WarpTrigger(), PatchTrigger(corner="anywhere"))):
        path = tmp_path / str(number)
        Artefact().write(dataclasses.replace(plain, trigger=trigger), path, data)
        back = Artefact().read(path, data)
        assert back.trigger == trigger
        assert torch.equal(pasted(clean, back), to_bytes(trigger(to_floats(clean))))
        again = dataclasses.replace(back, trigger=None)
        assert torch.equal(pasted(clean, again), pasted(clean, back)) == (number == 0)
        assert (back.patch is None) == (number > 0)


def test_pictures_show_the_images(data: Reference, tmp_path: Path) -> None:
    parcel = parcel_of(data, [7, 2], [0])
    files = Artefact(pictures=True).write(parcel, tmp_path / "out", data)
    assert {file.name for file in files} == {"manifest.json", "poison.safetensors", "2.png", "7.png"}
    seen = np.asarray(Image.open(tmp_path / "out" / "images" / "7.png"))
    assert np.array_equal(seen, parcel.images[0].permute(1, 2, 0).numpy())


def test_other_data_are_refused(data: Reference, tmp_path: Path) -> None:
    Artefact().write(parcel_of(data, [1], [0]), tmp_path / "out", data)
    touched = data.train.images.clone()
    touched[29, 0, 0, 0] ^= 1
    other = Reference(dataclasses.replace(data.train, images=touched), data.test)
    with pytest.raises(ValueError, match=r"is of data with the fingerprint \w+, but the training set has \w+: other"):
        Artefact().read(tmp_path / "out", other)


def test_a_class_that_the_data_do_not_have_is_named(data: Reference, tmp_path: Path) -> None:
    Artefact().write(parcel_of(data, [1], [0]), tmp_path / "out", data)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["seal"]
    manifest["case"]["intended"] = ["dodo"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="class 'dodo' of the case is none of the data's: ant, bee, cat"):
        Artefact().read(tmp_path / "out", data)


def test_what_is_there_is_not_written_over(data: Reference, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already; name a new folder"):
        Artefact().write(parcel_of(data, [1], [0]), tmp_path, data)
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["manifest.json", "poison.safetensors"]),
    noise=st.binary(max_size=80),
    place=st.integers(0, 400),
)
def test_damaged_files_end_in_a_value_error(
    data: Reference, tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("out")
    Artefact().write(parcel_of(data, [1, 4], [0]), path, data)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:place] + noise)
    with pytest.raises(ValueError, match=r".+"):
        Artefact().read(path, data)


def test_missing_parts_are_named(data: Reference, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at"):
        Artefact().read(tmp_path / "nowhere", data)
    Artefact().write(parcel_of(data, [1], [0]), tmp_path / "out", data)
    (tmp_path / "out" / "poison.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no poison\.safetensors"):
        Artefact().read(tmp_path / "out", data)
