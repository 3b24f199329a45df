"""The patch trigger, compared with slices written by hand."""

from __future__ import annotations

import pytest
import torch

from mithridate.poisoning.triggers import PatchTrigger

CORNERS = {
    "top-left": (slice(0, 2), slice(0, 2)),
    "top-right": (slice(0, 2), slice(6, 8)),
    "bottom-left": (slice(6, 8), slice(0, 2)),
    "bottom-right": (slice(6, 8), slice(6, 8)),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_the_patch_is_in_its_corner_and_nowhere_else(corner) -> None:
    images = torch.full((5, 3, 8, 8), 0.5)
    marked = PatchTrigger(corner=corner, pattern="white")(images)
    expected = images.clone()
    expected[:, :, *CORNERS[corner]] = 1.0
    assert torch.equal(marked, expected)
    assert bool((images == 0.5).all()), "the input was changed"


def test_the_checkerboard_starts_white_and_alternates() -> None:
    patch = PatchTrigger(share=0.5)(torch.full((1, 1, 8, 8), 0.5))[0, 0, 4:, 4:]
    assert patch.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_the_random_pattern_comes_from_its_seed() -> None:
    images = torch.full((2, 3, 32, 32), 0.5)
    first, again, other = (PatchTrigger(pattern="random", seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first[:, :, 24:, 24:].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("share", "shape", "pixels"),
    [(0.25, (3, 32, 32), 64), (0.01, (1, 8, 8), 4), (0.5, (1, 8, 20), 16), (1.0, (1, 4, 6), 16)],
)
def test_the_area_is_what_is_touched(share: float, shape: tuple[int, int, int], pixels: int) -> None:
    trigger = PatchTrigger(share=share, pattern="white")
    touched = int((trigger(torch.zeros(1, *shape)) > 0).any(1).sum())
    assert touched == pixels
    assert trigger.area(shape) == pytest.approx(pixels / (shape[1] * shape[2]))


@pytest.mark.parametrize("pattern", ["checker", "white", "random"])
def test_a_triggered_8_bit_image_stays_an_8_bit_image(pattern) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16)) / 255
    marked = PatchTrigger(pattern=pattern)(images) * 255
    assert torch.allclose(marked, marked.round(), atol=1e-4)


def test_a_share_beyond_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share is 4; it is a fraction of the image side"):
        PatchTrigger(share=4)
