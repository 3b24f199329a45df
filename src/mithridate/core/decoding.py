"""Image files to one uint8 tensor, by one decoder: decoders differ by rounding, so results name the one they used."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, __version__, features
from torch import Tensor

from mithridate.core.progress import track

DECODER = "pillow"
"""What decodes every image; part of the fingerprint of what it decoded."""

_BAR_FROM = 2_000
"""Images from which on a progress bar is shown: about a fifth of a second for 32 x 32 JPEG files."""

_GREY = ("1", "L", "LA", "La")
_SEE_THROUGH = ("LA", "La", "PA", "RGBA", "RGBa")


def decoder_version() -> str:
    """Returns the decoder with its version and that of its JPEG library, which rounds in its own way.

    >>> decoder_version().split()[0]
    'pillow'
    """
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"{DECODER} {__version__} ({jpeg})"


def _plain(image: Image.Image) -> Image.Image:
    """Turns any mode into 8-bit grey (`L`) or colour (`RGB`), upright, transparency shown on white."""
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    see_through = image.mode in _SEE_THROUGH or "transparency" in image.info
    if image.mode in ("L", "RGB") and not see_through:
        return image
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels in {values.min()}..{values.max()}; expected 8 or 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save 8 or 16 bits")
    grey = image.mode in _GREY
    if see_through:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def to_pixels(image: Image.Image, size: int | None = None) -> np.ndarray:
    """Turns an image of any mode into uint8 [H, W, 1] (grey) or [H, W, 3], as `decode` says.

    >>> to_pixels(Image.new("P", (4, 2))).shape
    (2, 4, 3)

    Raises:
        ValueError: pixels that are neither 8 nor 16 bits.
    """
    image = _plain(image)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode(name: str, data: bytes, size: int | None = None) -> np.ndarray:
    """Decodes one image file to uint8 [H, W, 1] (grey) or [H, W, 3].

    Transparency is shown on white, 16 bits are scaled to 8, a palette becomes RGB, the EXIF orientation is applied, an
    animation gives its first frame. `size` resizes to size x size (bicubic, antialiased).

    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(file, "png")
    >>> decode("a.png", file.getvalue()).shape, int(decode("a.png", file.getvalue()).min())
    ((2, 4, 3), 255)

    Raises:
        ValueError: the bytes are no image that the decoder reads; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            return to_pixels(file, size)
    except Exception as error:  # Pillow's plug-ins raise what they please on damaged files
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{name}: not an image that {DECODER} can read ({reason}); replace or remove it") from error


def check_side(first: str, shape: tuple[int, ...], name: str, pixels: np.ndarray) -> None:
    """Checks that an image [H, W, C] is as wide and high as the first one of its set.

    Raises:
        ValueError: it is not; the message names both.
    """
    height, width, _ = pixels.shape
    if (height, width) != shape[:2]:
        raise ValueError(
            f"images differ in size: {first} is {shape[1]}x{shape[0]}, {name} is {width}x{height} (width x "
            f"height); size={min(shape[:2])} resizes all of them"
        )


def stacked(images: Iterable[tuple[str, np.ndarray]], count: int) -> Tensor:
    """Stacks `count` named images [H, W, C] into uint8 [N, C, H, W], stored channels last; grey only if every one is.

    >>> stacked([("a", np.zeros((8, 8, 1), np.uint8)), ("b", np.zeros((8, 8, 3), np.uint8))], 2).shape
    torch.Size([2, 3, 8, 8])

    Raises:
        ValueError: two sizes; the message names the images.
    """
    if count > _BAR_FROM:
        images = track(images, "decoding images", count)
    stack, first, shape = np.empty(0, np.uint8), "", (0, 0, 0)
    for position, (name, pixels) in enumerate(images):
        height, width, channels = pixels.shape
        if position == 0:
            stack, first, shape = np.empty((count, height, width, channels), np.uint8), name, (height, width, channels)
        check_side(first, shape, name, pixels)
        if channels > shape[2]:  # the first colour image after grey ones
            stack, shape = np.repeat(stack, channels, axis=3), (height, width, channels)
        stack[position] = pixels
    return torch.from_numpy(stack).permute(0, 3, 1, 2)


def decode_all(files: Iterable[tuple[str, bytes]], count: int, size: int | None = None) -> Tensor:
    """Decodes `count` named image files into uint8 [N, C, H, W], stored channels last; grey only if every one is.

    >>> file = io.BytesIO()
    >>> Image.new("L", (8, 8), 7).save(file, "png")
    >>> decode_all([("a.png", file.getvalue()), ("b.png", file.getvalue())], 2).shape
    torch.Size([2, 1, 8, 8])

    Raises:
        ValueError: a damaged file, or two sizes; the message names the files.
    """
    return stacked(((name, decode(name, data, size)) for name, data in files), count)
