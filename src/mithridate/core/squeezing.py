"""Batch transforms that take away what a picture does not need: JPEG compression and grey-scale."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.pixels import to_bytes

LUMA = (0.299, 0.587, 0.114)
"""Weight of red, green and blue in the brightness of ITU-R BT.601, which JPEG uses."""


@dataclass(frozen=True, kw_only=True)
class Jpeg(BatchTransform):
    """Compresses each image as JPEG and reads it again.

    The result is a step function of the pixels; its gradient is passed on as if nothing had happened to them
    (straight through), which is what an attacker who knows of it uses.

    Raises:
        ValueError: If the quality is none.

    >>> batch = Batch(torch.rand(1, 3, 8, 8), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Jpeg(quality=10)(batch, nn.Identity(), torch.Generator()).images.shape
    torch.Size([1, 3, 8, 8])
    """

    quality: int = 10
    """From 1 (strongest compression) to 95, as in every JPEG encoder; colours have half the resolution."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; JPEG has 1 (strongest compression) to 95")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        return batch._replace(images=_Straight.apply(batch.images, self.quality))


@dataclass(frozen=True, kw_only=True)
class Grayscale(BatchTransform):
    """Replaces the channels of a colour image by its brightness; images of one channel stay as they are.

    >>> batch = Batch(torch.tensor([[[[1.0]], [[0.0]], [[0.0]]]]), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Grayscale()(batch, nn.Identity(), torch.Generator()).images.flatten()
    tensor([0.2990, 0.2990, 0.2990])
    """

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        if batch.images.shape[1] == 1:
            return batch
        weights = torch.tensor(LUMA).to(batch.images).view(1, 3, 1, 1)
        grey = (batch.images * weights).sum(1, keepdim=True)
        return batch._replace(images=grey.expand_as(batch.images))


class _Straight(torch.autograd.Function):
    """JPEG of images [B, C, H, W] in [0, 1]; the identity in the backward pass."""

    @staticmethod
    def forward(ctx: object, images: Tensor, quality: int) -> Tensor:
        bytes_of = to_bytes(images.detach()).permute(0, 2, 3, 1).cpu().numpy()
        found = np.stack([_compressed(pixels, quality) for pixels in bytes_of])
        return torch.from_numpy(found).to(images.device).permute(0, 3, 1, 2).to(images.dtype) / 255

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return slope, None


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H, W, C] as JPEG and back."""
    grey, file = pixels.shape[2] == 1, io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(file, "jpeg", quality=quality)
    found = np.asarray(Image.open(file))
    return found[:, :, None] if grey else found
