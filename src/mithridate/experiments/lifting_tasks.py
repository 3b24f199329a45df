"""What lift is asked: images and truths as files of the user's own, and the problem that they make."""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mithridate.core.decoding import decode
from mithridate.core.safe_images import LIMITS, read_limited
from mithridate.lifting.problems import Matching, Problem, denoising, segmentation, stereo

BAD = (1, 2)
"""Pixels whose disparity is wrong by more than so many pixels are bad."""

# --- images ----------------------------------------------------------------------------------------------------------


def read_picture(path: Path, shrink: int = 1) -> Tensor:
    """Reads an image file as [H, W, 3] in [0, 1]; `shrink` takes the means of blocks of that side.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no ordinary file, no image, too large, or smaller than one block.
    """
    _check_shrink(shrink)
    pixels = torch.from_numpy(decode(str(path), _bytes(path)).copy()).float() / 255
    blocks = _blocks(pixels.numpy(), shrink, path)
    return torch.from_numpy(blocks.mean((1, 3))).expand(-1, -1, 3)


def read_truth(path: Path, scale: float, shrink: int = 1) -> Tensor:
    """Reads disparities [H, W] in pixels: file values divided by `scale`; what is unknown (0, or not finite) is NaN.

    8 and 16 bits and floating-point images (PFM) are read. `shrink` takes the medians of what is known of blocks of
    that side, and divides the disparities by it, too; a block is unknown where most of it is.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no ordinary file, no image of one channel, too large, a scale that is not positive.
    """
    _check_shrink(shrink)
    if not scale > 0:
        raise ValueError(f"the scale of the truth is {scale:g}; give more than 0: 4 for disparities stored times 4")
    try:
        with Image.open(io.BytesIO(_bytes(path))) as file:
            if file.mode not in ("L", "I", "F") and not file.mode.startswith("I;16"):
                raise ValueError(f"an image of mode {file.mode}, but disparities are one number per pixel")
            stored = np.asarray(file).astype(np.float64)
    except Exception as error:  # Pillow's plug-ins raise what they please on damaged files
        raise ValueError(f"{path}: not an image of disparities that can be read ({error})") from error
    known = np.where(np.isfinite(stored) & (stored > 0), stored / scale / shrink, np.nan)
    blocks = _blocks(known[:, :, None], shrink, path)[..., 0].transpose(0, 2, 1, 3)
    flat = np.sort(blocks.reshape(*blocks.shape[:2], -1), axis=-1)  # what is unknown comes last
    count = np.isfinite(flat).sum(-1)
    middle = np.take_along_axis(flat, np.maximum(count - 1, 0)[:, :, None] // 2, axis=-1)[:, :, 0]
    return torch.from_numpy(np.where(2 * count > shrink**2, middle, np.nan))


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"no image file is called {path} (seen from {Path.cwd()})")
    return read_limited(path, LIMITS.file_bytes)


def _check_shrink(side: int) -> None:
    if side < 1:
        raise ValueError(f"shrink is {side}; give 1 to leave images as they are, 4 for means of 4 x 4 pixels")


def _blocks(pixels: np.ndarray, side: int, path: Path) -> np.ndarray:
    """[H, W, C] as [H / side, side, W / side, side, C], what does not fill a block cut off."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    if min(height, width) < 1:
        raise ValueError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, too small to shrink by {side}")
    return pixels[: height * side, : width * side].reshape(height, side, width, side, -1)


# --- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is asked of which image files; a setting, so that another process can do it."""

    image: Path
    shrink: int = 1
    """Means of so many by so many pixels first."""

    @abstractmethod
    def problems(self) -> list[Problem]:
        """Returns what is solved: one problem, or one per channel."""

    @abstractmethod
    def judged(self, labels: np.ndarray) -> dict[str, Any]:
        """Returns what the truth says of labels [problems, H, W]; nothing where there is none."""

    def picture(self) -> Tensor:
        """Returns the image, [H, W, 3] in [0, 1]."""
        return read_picture(self.image, self.shrink)


@dataclass(frozen=True, kw_only=True)
class Segment(Task):
    """Few colours, short boundaries."""

    weight: float
    colours: int = 6
    palette: tuple[str, ...] | None = None
    """The colours themselves, as RRGGBB."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def problems(self) -> list[Problem]:
        """Returns the segmentation."""
        wanted = self.colours if self.palette is None else torch.tensor([_colour(text) for text in self.palette])
        return [segmentation(self.picture(), colours=wanted, weight=self.weight, seed=self.seed)]

    def judged(self, labels: np.ndarray) -> dict[str, Any]:
        """There is no truth."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Stereo(Task):
    """Disparities of a rectified pair."""

    right: Path
    disparities: int
    weight: float | None = None
    cost: Matching = "census"
    truncation: float | None = None
    limit: float | None = None
    truth: Path | None = None
    truth_scale: float = 4.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def problems(self) -> list[Problem]:
        """Returns the stereo problem."""
        return [
            stereo(
                self.picture(),
                read_picture(self.right, self.shrink),
                disparities=self.disparities,
                cost=self.cost,
                weight=self.weight,
                limit=self.limit,
                truncation=self.truncation,
            )
        ]

    def known(self) -> Tensor | None:
        """Returns the true disparities [H, W], NaN where they are unknown.

        Raises:
            ValueError: of another size than the image, or all unknown.
        """
        if self.truth is None:
            return None
        truth = read_truth(self.truth, self.truth_scale, self.shrink)
        if truth.shape != self.picture().shape[:2]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (truth.shape, self.picture().shape)]
            raise ValueError(
                f"{self.truth} is {sizes[0]} pixels, the left image {sizes[1]}; it must be its disparities"
            )
        if not bool(torch.isfinite(truth).any()):
            raise ValueError(f"{self.truth} holds no known disparity (all are 0); is it the right file?")
        return truth

    def judged(self, labels: np.ndarray) -> dict[str, Any]:
        """Returns errors over all known pixels and over those of them that both images show."""
        truth = self.known()
        if truth is None:
            return {}
        known = torch.isfinite(truth)
        wrong = (torch.from_numpy(labels[0]).double() - truth).abs()
        return {"all": errors(wrong, known), "visible": errors(wrong, known & visible(truth))}


@dataclass(frozen=True, kw_only=True)
class Denoise(Task):
    """An image without its noise, channel by channel."""

    weight: float
    levels: int = 32
    limit: float | None = None
    cost: Literal["squared", "absolute"] = "squared"
    truth: Path | None = None

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def problems(self) -> list[Problem]:
        """Returns one problem for a grey image, three for one in colour."""
        image = self.picture()
        return [
            denoising(
                image[:, :, channel],
                levels=self.levels,
                weight=self.weight,
                limit=self.limit,
                cost=self.cost,
                guide=image,
            )
            for channel in range(1 if bool((image == image[:, :, :1]).all()) else 3)
        ]

    def judged(self, labels: np.ndarray) -> dict[str, Any]:
        """Returns the peak signal-to-noise ratio in dB, of the result and of the image as it came; None: no error."""
        if self.truth is None:
            return {}
        truth = read_picture(self.truth, self.shrink)
        image = self.picture()
        if truth.shape != image.shape:
            raise ValueError(f"{self.truth} is {truth.shape[1]}x{truth.shape[0]} pixels, the image another size")
        found = torch.from_numpy(labels).permute(1, 2, 0).double() / (self.levels - 1)
        ratios = {"psnr": psnr(found, truth), "psnr_before": psnr(image, truth)}
        return {name: value if math.isfinite(value) else None for name, value in ratios.items()}


def _check_weight(weight: float | None) -> None:
    if weight is not None and not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"the weight is {weight:g}; give 0 or more")


def _colour(text: str) -> list[float]:
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise ValueError(f"{text!r} is no colour; write RRGGBB in hexadecimal digits, as ff8000")
    return [int(text[-6:][place : place + 2], 16) / 255 for place in (0, 2, 4)]


# --- truth -----------------------------------------------------------------------------------------------------------


def errors(wrong: Tensor, where: Tensor) -> dict[str, float]:
    """Returns the shares of bad pixels, the mean absolute error in pixels, and how many pixels it is over.

    >>> errors(torch.tensor([0.0, 1.5, 3.0]), torch.tensor([True, True, False]))
    {'bad1': 0.5, 'bad2': 0.0, 'error': 0.75, 'pixels': 2}
    """
    kept = wrong[where]
    count = max(1, kept.numel())
    bad = {f"bad{limit}": float((kept > limit).sum()) / count for limit in BAD}
    return {**bad, "error": float(kept.sum()) / count, "pixels": kept.numel()}


def visible(truth: Tensor) -> Tensor:
    """Returns which pixels [H, W] the right image shows as well, as far as the known disparities say.

    A pixel is hidden where another pixel of its row, nearer by more than one disparity, falls on the same place, or
    where its place lies outside.

    >>> visible(torch.tensor([[1.0, 2.0, 4.0, 4.0, 0.5, 1.0]])).tolist()
    [[False, False, False, False, True, True]]
    """
    known = torch.isfinite(truth)
    columns = torch.arange(truth.shape[1]).expand_as(truth)
    place = (columns - truth.nan_to_num(0)).round().long()
    inside = known & (place >= 0)
    nearest = torch.full_like(truth, -math.inf)
    nearest.scatter_reduce_(1, place.clamp_min(0), torch.where(inside, truth, -math.inf), "amax")
    return inside & (truth >= nearest.gather(1, place.clamp_min(0)) - 1)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB of pixels in [0, 1]; infinite for equal images.

    >>> round(psnr(torch.tensor([0.0, 0.1]), torch.tensor([0.0, 0.0])), 2)
    23.01
    """
    error = float((image.double() - truth.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)
