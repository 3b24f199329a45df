"""The ball of warps against a dense search over displacements, and warped images against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from mithridate.core.balls import Linf, to_bytes, to_floats
from mithridate.core.moved import Moved, moved
from mithridate.core.seeds import stream
from tests.core.ball_cases import pictures


def shown(image: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One channel [H, W] with each pixel taken from elsewhere, by scipy."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(float)
    places = np.stack([(y + down).clip(0, image.shape[0] - 1), (x + right).clip(0, image.shape[1] - 1)])
    return map_coordinates(image, places, order=1, mode="nearest")


def displaced(seed: int, shape: tuple[int, int], furthest: float) -> Tensor:
    return furthest * (2 * torch.rand(2, *shape, generator=stream(seed, "places"), dtype=torch.float64) - 1)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (1, 6)])
@pytest.mark.parametrize("furthest", [0.4, 1.0, 3.7])
def test_pixels_come_from_where_scipy_finds_them(shape: tuple[int, int], furthest: float) -> None:
    images = torch.rand(3, 2, *shape, generator=stream(0), dtype=torch.float64)
    places = displaced(1, shape, furthest)
    found = moved(images, places)
    for image, channel in np.ndindex(3, 2):
        expected = shown(images[image, channel].numpy(), *places.numpy())
        np.testing.assert_allclose(found[image, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("pixels", [0.3, 1.0, 1.5, 2.0])
def test_the_range_is_that_of_all_displacements(pixels: float) -> None:
    base = pictures(0, 2, 1, 6).double()
    low, high = Moved(pixels=pixels).range(base)
    grid = np.unique(np.concatenate([np.linspace(-pixels, pixels, 41), np.arange(-int(pixels), int(pixels) + 1)]))
    for image in range(2):
        every = np.stack([shown(base[image, 0].numpy(), a, b) for a in grid for b in grid])
        np.testing.assert_allclose(low[image, 0].numpy(), every.min(0), atol=1e-9)
        np.testing.assert_allclose(high[image, 0].numpy(), every.max(0), atol=1e-9)


@pytest.mark.parametrize("pixels", [0.3, 1.0, 1.7])
def test_every_warp_of_that_length_is_inside_and_longer_ones_need_not_be(pixels: float) -> None:
    base, ball = pictures(2, 20), Moved(pixels=pixels)
    warped = moved(base, displaced(0, (8, 8), pixels).float())
    assert ball.contains(base, warped).all()
    assert ball.contains(base, to_floats(ball.rounded(base, warped))).all()
    assert not ball.contains(base, moved(base, torch.full((2, 8, 8), 2.5 * pixels))).all()


def test_flat_images_cannot_change() -> None:
    base = torch.full((1, 3, 8, 8), 100 / 255)
    assert torch.equal(to_bytes(Moved(pixels=2).sample(base, stream(0))), to_bytes(base))
    assert not Moved(pixels=2).contains(base, base + 1 / 255).any()


def test_a_warp_of_noise_is_in_the_sum() -> None:
    """Interpolation moves noise with the image and makes none of it larger."""
    base = pictures(3, 10)
    noise = (torch.rand(base.shape, generator=stream(5)) * 2 - 1) * 8 / 255
    places = displaced(6, (8, 8), 0.6).float()
    ball = Moved(pixels=0.6) + Linf(eps=8 / 255)
    assert ball.contains(base, moved(base + noise, places)).all()
    assert not Moved(pixels=0.6).contains(base, moved(base + noise, places)).any()


@pytest.mark.parametrize("pixels", [0, -1, float("nan"), float("inf")])
def test_the_distance_must_be_positive_and_finite(pixels: float) -> None:
    with pytest.raises(ValueError, match="it is the largest displacement"):
        Moved(pixels=pixels)
