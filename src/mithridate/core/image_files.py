"""Image files of a user's own: which ones a path names, and their pixels in the shape of a data set."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mithridate.core.decoding import decode
from mithridate.core.listings import SUFFIXES


def image_files(path: Path) -> list[Path]:
    """Returns the file itself, or the image files that lie directly in a folder, in the order of their names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     for name in ("b.png", "a.JPG", "notes.txt"):
    ...         _ = (Path(home) / name).write_bytes(b"")
    ...     [file.name for file in image_files(Path(home))]
    ['a.JPG', 'b.png']

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder without image files.
    """
    if path.is_dir():
        names = (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        found = sorted(file for file in names if file.is_file())
        if not found:
            raise ValueError(
                f"{path} holds no image files ({', '.join(SUFFIXES)}) of its own; name image files, or the folder that "
                "they lie in"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"no image file or folder is called {path} (seen from {Path.cwd()})")
    return [path]


def read_images(files: Sequence[Path], shape: tuple[int, int, int]) -> Tensor:
    """Decodes image files to uint8 [N, C, H, W] of the shape (C, H, W) of a data set.

    Images of another size are resized (bicubic, antialiased; the sides may change their ratio), grey ones become
    colour and colour ones grey.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     Image.new("RGB", (64, 48), "white").save(f"{home}/a.png")
    ...     read_images([Path(home) / "a.png"], (1, 8, 8)).shape
    torch.Size([1, 1, 8, 8])

    Raises:
        ValueError: a file that is no image, or a data set that is neither grey nor RGB.
    """
    if shape[0] not in (1, 3):
        raise ValueError(f"the data have {shape[0]} channels, but image files have 1 or 3; name rows of the test set")
    return torch.from_numpy(np.stack([_pixels(file, shape) for file in files]))


def _pixels(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of one file, [C, H, W]."""
    channels, height, width = shape
    found = decode(str(file), file.read_bytes())
    image = Image.fromarray(found[:, :, 0] if found.shape[2] == 1 else found)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def read_cutout(file: Path, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Decodes one image file for pasting: pixels [C, h, w] and opacity [1, h, w], both in [0, 1].

    The longer side becomes `side` pixels, the other one keeps the ratio. A file without transparency is opaque.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     Image.new("RGBA", (64, 48), (255, 255, 255, 51)).save(f"{home}/a.png")
    ...     pixels, opacity = read_cutout(Path(home) / "a.png", 3, 8)
    >>> pixels.shape, round(opacity.max().item(), 4)
    (torch.Size([3, 6, 8]), 0.2)

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder, a file that is no image, or a number of channels that is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"the data have {channels} channels, but image files have 1 or 3")
    if not file.is_file():
        found = "a folder; name one image file" if file.is_dir() else f"not there (seen from {Path.cwd()})"
        raise (ValueError if file.is_dir() else FileNotFoundError)(f"the image file {file} is {found}")
    return _cutout(file, file.stat().st_mtime_ns, channels, side)


@functools.lru_cache(maxsize=16)
def _cutout(file: Path, written: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """The same, kept until the file is written again: a trigger asks for it with every batch."""
    data = file.read_bytes()
    found = decode(str(file), data)  # says what is wrong with a damaged file, and knows 16 bits
    with Image.open(io.BytesIO(data)) as image:
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            picture = ImageOps.exif_transpose(image).convert("RGBA")
        else:
            picture = Image.fromarray(found[:, :, 0] if found.shape[2] == 1 else found).convert("RGBA")
    share = side / max(picture.size)
    width, height = (max(1, round(share * length)) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    picture = picture.convert("LA") if channels == 1 else picture
    values = torch.from_numpy(np.array(picture)).movedim(2, 0).float() / 255
    return values[:-1], values[-1:]
