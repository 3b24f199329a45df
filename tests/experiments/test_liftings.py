"""What is measured of lift: images and truths as they are read, errors, memory of a process of its own, pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.experiments.lifting_pictures import colour_map, write_labels
from mithridate.experiments.lifting_tasks import Denoise, Segment, Stereo, errors, read_picture, read_truth, visible
from mithridate.experiments.liftings import Solving, measured, side_by_side, title
from mithridate.lifting.discretisations import CutPursuit, Pixels, Slic


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Two colours with noise, 24 x 20 pixels."""
    rng = np.random.default_rng(0)
    pixels = np.full((20, 24, 3), 60.0)
    pixels[5:15, 6:18] = (200, 160, 90)
    return save(tmp_path / "a.png", np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_shrunk_to_means_of_blocks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    small = read_picture(save(tmp_path / "a.png", pixels), 2)
    assert small.shape == (2, 3, 3)
    assert float(small[1, 2, 0]) == pytest.approx(pixels[2:4, 4:6, 0].mean() / 255, abs=1e-6)
    assert float((read_picture(tmp_path / "a.png") * 255 - torch.from_numpy(pixels)).abs().max()) < 1e-4


def test_a_grey_picture_has_three_equal_channels(tmp_path: Path) -> None:
    found = read_picture(save(tmp_path / "a.png", np.arange(6, dtype=np.uint8).reshape(2, 3)))
    assert found.shape == (2, 3, 3)
    assert torch.equal(found[:, :, 0], found[:, :, 2])


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "floating point"])
def test_a_truth_is_read_as_it_is_stored(kind: str, tmp_path: Path) -> None:
    stored = np.array([[0, 4, 10], [200, 0, 6]])
    types = {"8 bits": np.uint8, "16 bits": np.uint16, "floating point": np.float32}
    path = save(tmp_path / ("a.pfm" if kind == "floating point" else "a.png"), stored.astype(types[kind]))
    truth = read_truth(path, 4)
    expected = torch.tensor([[math.nan, 1.0, 2.5], [50.0, math.nan, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(truth, expected, equal_nan=True)


def test_a_shrunk_truth_is_a_median_of_what_is_known(tmp_path: Path) -> None:
    stored = np.array([[8, 8, 0, 0], [16, 24, 0, 40]], dtype=np.uint8)
    truth = read_truth(save(tmp_path / "a.png", stored), 4, 2)
    assert float(truth[0, 0]) == 8 / 4 / 2  # the lower one of the two in the middle
    assert math.isnan(float(truth[0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale of the truth is 0"),
        ({"shrink": 0}, "shrink is 0"),
        ({"shrink": 9}, "too small to shrink by 9"),
    ],
)
def test_a_truth_that_cannot_be_read_is_named(change: dict, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.ones((4, 4), np.uint8))
    with pytest.raises(ValueError, match=message):
        read_truth(path, **{"scale": 4.0, **change})


def test_a_truth_in_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode RGB, but disparities are one number per pixel"):
        read_truth(save(tmp_path / "a.png", np.ones((4, 4, 3), np.uint8)), 4)


# --- truth -----------------------------------------------------------------------------------------------------------


def test_errors_against_numpy() -> None:
    wrong = torch.rand(50, generator=torch.Generator().manual_seed(0)).double() * 4
    where = torch.arange(50) % 3 > 0
    found, kept = errors(wrong, where), wrong[where].numpy()
    assert found["pixels"] == len(kept)
    assert found["bad1"] == pytest.approx((kept > 1).mean())
    assert found["bad2"] == pytest.approx((kept > 2).mean())
    assert found["error"] == pytest.approx(kept.mean())


def test_pixels_behind_something_nearer_are_not_visible() -> None:
    truth = torch.full((1, 12), 1.0)
    truth[0, 6:9] = 4  # covers columns 2, 3, 4 of the right image, where 3, 4, 5 of the background lie
    expected = torch.tensor([[False, True, True, False, False, False, True, True, True, True, True, True]])
    assert torch.equal(visible(truth), expected)
    truth[0, 10] = math.nan
    assert not visible(truth)[0, 10]


def test_a_truth_of_another_size_or_without_anything_known_is_refused(picture: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "b.png", np.ones((20, 23), np.uint8))
    nothing = save(tmp_path / "c.png", np.zeros((20, 24), np.uint8))
    task = {"image": picture, "right": picture, "disparities": 4, "weight": 0.1}
    with pytest.raises(ValueError, match="23x20 pixels, the left image 24x20"):
        Stereo(**task, truth=other).known()
    with pytest.raises(ValueError, match="holds no known disparity"):
        Stereo(**task, truth=nothing).known()
    assert Stereo(**task).known() is None


# --- measuring -------------------------------------------------------------------------------------------------------


def test_an_outcome_is_plain_numbers(picture: Path) -> None:
    task = Segment(image=picture, weight=0.1, colours=2)
    found = measured((task, CutPursuit(cells=30), Solving()))
    assert found.labels.shape == (1, 20, 24)
    content = found.to_json()
    assert "labels" not in content
    assert content["energy"] == pytest.approx(content["cell_energy"], rel=1e-5)
    assert content["gap"] <= 1e-3
    assert content["dual"] <= content["energy"] * (1 + 1e-6)
    assert content["total_seconds"] == pytest.approx(sum(content["seconds"].values()))


def test_a_grey_image_is_one_problem_and_a_colour_image_three(picture: Path, tmp_path: Path) -> None:
    assert len(Denoise(image=picture, weight=0.1).problems()) == 3
    grey = save(tmp_path / "b.png", np.asarray(Image.open(picture))[:, :, 0])
    assert len(Denoise(image=grey, weight=0.1).problems()) == 1


def test_colours_that_are_given_are_the_labels(picture: Path) -> None:
    task = Segment(image=picture, weight=0.1, palette=("000000", "#ff8000"))
    colours = task.problems()[0].colours
    assert colours is not None
    torch.testing.assert_close(colours, torch.tensor([[0, 0, 0], [1, 128 / 255, 0]]))
    with pytest.raises(ValueError, match="'red' is no colour; write RRGGBB"):
        Segment(image=picture, weight=0.1, palette=("red", "000000")).problems()


def test_a_process_of_its_own_finds_the_same(picture: Path) -> None:
    task = Segment(image=picture, weight=0.1, colours=2)
    (there,) = side_by_side(task, [Pixels()], Solving())
    here = measured((task, Pixels(), Solving()))
    assert np.array_equal(there.labels, here.labels)
    assert (there.energy, there.dual, there.iterations) == (here.energy, here.dual, here.iterations)


def test_a_mistake_in_a_process_of_its_own_is_raised_here(picture: Path) -> None:
    with pytest.raises(ValueError, match="1 colours"):
        side_by_side(Segment(image=picture, weight=0.1, colours=1), [Pixels()], Solving())


@pytest.mark.parametrize(
    ("settings", "message"), [({"tolerance": 0.0}, "tolerance is 0"), ({"iterations": 0}, "0 iterations")]
)
def test_solving_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Solving(**settings)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_no_weight_is_refused(weight: float, picture: Path) -> None:
    with pytest.raises(ValueError, match="the weight is"):
        Segment(image=picture, weight=weight)


def test_titles_are_file_names() -> None:
    assert [title(one) for one in (Pixels(), Slic(cells=9), CutPursuit(cells=8))] == [
        "pixels",
        "slic-9",
        "cut-pursuit-8",
    ]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_near_is_red_and_far_is_blue() -> None:
    far, near = colour_map(np.array([[0.0, 10.0]]), 10)[0].astype(int)
    assert near[0] > near[2] + 40
    assert far[2] > far[0]


@pytest.mark.parametrize("most", [200, 300])
def test_labels_survive_their_file(most: int, tmp_path: Path) -> None:
    labels = np.array([[0, 1], [17, most]], dtype=np.int32)
    write_labels(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file).astype(int), labels)
