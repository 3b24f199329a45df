"""JPEG and grey-scale in training against Pillow's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.batch import Batch
from mithridate.core.pixels import to_bytes
from mithridate.core.squeezing import Grayscale, Jpeg
from tests.core.ball_cases import pictures


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.eye(len(images)), torch.arange(len(images)), 0.0)


def squeezed(transform: Jpeg | Grayscale, images: Tensor) -> Tensor:
    return transform(batch_of(images), nn.Identity(), torch.Generator()).images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 90])
def test_jpeg_is_that_of_pillow(channels: int, quality: int) -> None:
    images = pictures(seed=1, count=3, channels=channels, side=12)
    found = squeezed(Jpeg(quality=quality), images)
    for image, got in zip(images, found, strict=True):
        pixels = to_bytes(image).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(file, "jpeg", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(12, 12, channels)
        assert np.array_equal(to_bytes(got).permute(1, 2, 0).numpy(), expected)


def test_stronger_compression_takes_more_away() -> None:
    images = F.interpolate(pictures(seed=2, count=2, side=4), 16, mode="bicubic").clamp(0, 1)
    change = [float((squeezed(Jpeg(quality=quality), images) - images).abs().mean()) for quality in (95, 50, 5)]
    assert change == sorted(change)
    assert change[0] < change[2] / 2


def test_its_gradient_passes_straight_through() -> None:
    images = pictures(seed=3, count=2, channels=3, side=8).requires_grad_()
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((squeezed(Jpeg(), images) * weights).sum(), images)
    assert torch.equal(slope, weights)


@pytest.mark.parametrize("quality", [0, 96])
def test_jpeg_refuses_a_quality_that_is_none(quality: int) -> None:
    with pytest.raises(ValueError, match=f"quality is {quality}; JPEG has 1"):
        Jpeg(quality=quality)


def test_grey_is_the_brightness_in_every_channel() -> None:
    images = pictures(seed=4, count=2, channels=3, side=6).requires_grad_()
    found = squeezed(Grayscale(), images)
    for image, grey in zip(images, found, strict=True):
        pixels = Image.fromarray(to_bytes(image.detach()).permute(1, 2, 0).numpy()).convert("L")
        assert np.abs(255 * grey[0].detach().numpy() - np.asarray(pixels, float)).max() <= 1
        assert torch.equal(grey[0], grey[1])
        assert torch.equal(grey[0], grey[2])
    (slope,) = torch.autograd.grad(found.sum(), images)
    assert torch.allclose(slope[:, :, 0, 0], 3 * torch.tensor([0.299, 0.587, 0.114]).expand(2, 3))


def test_grey_images_stay() -> None:
    images = pictures(seed=5, count=2, channels=1, side=6)
    assert torch.equal(squeezed(Grayscale(), images), images)
