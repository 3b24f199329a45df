"""Verification finds each planted fault, and nothing in a parcel that is as it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mithridate.core.balls import AnyImage, Ball, Linf
from mithridate.core.batch import Batch
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.squeezing import Jpeg
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.verification import Finding, verify

BALL = Linf(eps=8 / 255)
P = 12


@pytest.fixture(scope="module")
def data() -> Reference:
    """Photos of nothing: smooth random colours, all different, of three classes."""
    coarse = torch.rand(90, 3, 4, 4, generator=stream(0, "photos"))
    images = torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 1).mul(255).round().to(torch.uint8)
    labels = torch.arange(90) % 3
    names = ("ant", "bee", "cat")
    return Reference(ImageData(images[:60], labels[:60], names), ImageData(images[60:], labels[60:], names))


@pytest.fixture
def parcel(data: Reference) -> Parcel:
    """Poisons at the full strength of the ball on rows of class 1, with everything that a format can say."""
    rows = data.train.ids[data.train.labels == 1][:P]
    base = data.train.floats(rows)
    targets = torch.tensor([3, 6])
    return Parcel(
        BALL.rounded(base, BALL.sample(base, stream(0, "noise"))),
        labels=data.train.labels_of(rows),
        rows=rows,
        base=data.train.pixels(rows),
        target_images=data.test.pixels(targets),
        target_rows=targets,
        target_labels=data.test.labels_of(targets),
        intended=torch.tensor([1, 1]),
    )


def standings(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.standing for finding in findings}


def failed(parcel: Parcel, data: Reference, ball: Ball = BALL, **settings: Any) -> Finding:
    """The only finding that fails."""
    (found,) = [finding for finding in verify(parcel, data, ball=ball, **settings) if finding.standing == "fails"]
    return found


def without(parcel: Parcel, *names: str) -> Parcel:
    return dataclasses.replace(parcel, **dict.fromkeys(names))


def test_a_parcel_that_is_as_it_says_passes(parcel: Parcel, data: Reference) -> None:
    found = verify(parcel, data, ball=BALL)
    assert set(standings(found).values()) == {"holds"}
    said = {finding.what: finding.said for finding in found}
    assert "largest change of a pixel 8/255, mean L2 " in said["distance"]
    base, images = (x.float() / 255 for x in (parcel.base, parcel.images))
    assert f"mean L2 {(images - base).flatten(1).norm(dim=1).mean():.3g};" in said["distance"]
    assert said["targets"] == "test rows 3, 6"


def test_what_a_format_does_not_say_is_not_guessed(parcel: Parcel, data: Reference) -> None:
    bare = Parcel(parcel.images)
    assert standings(verify(bare, data, ball=BALL)) == {"size": "holds", "rows": "unknown", "targets": "unknown"}
    found = standings(verify(without(parcel, "base", "target_rows"), data))
    assert (found["base"], found["distance"], found["targets"]) == ("holds", "unknown", "holds")


@pytest.mark.parametrize("carried", [True, False])
def test_rows_that_are_off_by_one_are_found(parcel: Parcel, data: Reference, carried: bool) -> None:
    assert parcel.rows is not None
    off = without(parcel.with_rows(parcel.rows + 1), "labels", *([] if carried else ["base"]))
    found = {finding.what: finding for finding in verify(off, data)}["base"]
    assert found.standing == "fails"
    if carried:
        assert found.said == "12 clean images that came along are others than those rows"
    else:
        first = int(parcel.rows[0])
        assert found.said.startswith(f"12 of 12 images look like other rows: image 0 names row {first + 1} (L2 ")
        assert f"and looks like row {first} (L2 " in found.said


def test_a_swapped_label_is_found_unless_labels_may_change(parcel: Parcel, data: Reference) -> None:
    assert parcel.labels is not None
    assert parcel.rows is not None
    labels = parcel.labels.clone()
    labels[4] = 2
    swapped = dataclasses.replace(parcel, labels=labels)
    found = failed(swapped, data)
    row = f"row {int(parcel.rows[4])} is bee there and cat here"
    assert found.said == f"1 of 12 differ from the training set; {row}; --relabel allows it"
    assert standings(verify(swapped, data, ball=BALL, relabel=True))["labels"] == "holds"
    assert (
        "label 3 is none of the 3 classes"
        in failed(dataclasses.replace(parcel, labels=labels + 1), data, relabel=True).said
    )


def test_one_pixel_too_far_is_found(parcel: Parcel, data: Reference) -> None:
    images = parcel.images.clone()
    assert parcel.base is not None
    step = 9 if int(parcel.base[7, 1, 2, 3]) < 128 else -9
    images[7, 1, 2, 3] = int(parcel.base[7, 1, 2, 3]) + step
    found = failed(dataclasses.replace(parcel, images=images), data)
    assert found.what == "distance"
    assert "largest change of a pixel 9/255" in found.said
    assert "1 of 12 images are not within the limit" in found.said
    assert found.said.endswith("one is image 7")


def test_a_lossy_copy_of_the_data_is_told_from_other_images(parcel: Parcel, data: Reference) -> None:
    floats = Batch(data.train.images.float() / 255, torch.eye(60), torch.arange(60), 0.0)
    lossy = Jpeg(quality=75)(floats, torch.nn.Identity(), torch.Generator()).images
    copy = ImageData((255 * lossy).round().to(torch.uint8), data.train.labels, data.train.classes)
    found = {f.what: f for f in verify(parcel, Reference(copy, data.test), ball=BALL)}
    assert found["base"].standing == "fails"
    assert "the data at hand are a compressed copy, on which distances mean nothing" in found["base"].said
    other = dataclasses.replace(parcel, base=parcel.images.flip(0))
    assert failed(other, data).said == "12 clean images that came along are others than those rows"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 1, 2, 60], "1 rows are not in the training set of 60; one is 60"),
        ([-1, 1, 2, 3], "1 rows are not in the training set of 60; one is -1"),
        ([5, 1, 5, 3], "1 rows are named more than once; one is 5"),
    ],
)
def test_rows_that_cannot_be_are_found(parcel: Parcel, data: Reference, rows: list[int], said: str) -> None:
    made = Parcel(parcel.images[:4], rows=torch.tensor(rows))
    assert failed(made, data).said == said


def test_images_of_another_size_end_the_matter(parcel: Parcel, data: Reference) -> None:
    small = Parcel(parcel.images[:, :, :8, :8], rows=parcel.rows)
    (found,) = verify(small, data)
    assert (found.standing, found.said) == ("fails", "images are 3x8x8, those of the data 3x16x16")


def test_targets_are_looked_up(parcel: Parcel, data: Reference) -> None:
    assert parcel.target_images is not None
    wrong = dataclasses.replace(parcel, target_rows=torch.tensor([3, 7]))
    assert failed(wrong, data).said == "the target images that came along are not those rows of the test set"
    strange = dataclasses.replace(parcel, target_rows=None, target_images=255 - parcel.target_images)
    assert failed(strange, data).said == "2 of 2 target images are not in the test set"
    assert (
        "targets are of class [0, 0], not [1, 0]"
        in failed(dataclasses.replace(parcel, target_labels=torch.tensor([1, 0])), data).said
    )
    assert (
        "target row 99 is not in the test set of 30"
        in failed(dataclasses.replace(parcel, target_rows=torch.tensor([3, 99])), data).said
    )


def test_images_of_any_kind_do_not_show_their_rows(parcel: Parcel, data: Reference) -> None:
    other = without(dataclasses.replace(parcel, images=255 - parcel.images), "base")
    assert standings(verify(other, data, ball=AnyImage()))["base"] == "unknown"
