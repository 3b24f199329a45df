"""Files and images of strangers: names that stay in their folder, sizes that are known before anything is decoded."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mithridate.core.copies import encoded
from mithridate.core.decoding import decode

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What strangers' images may be: each further format is a further decoder that a hostile file can aim at."""
_NAME_LENGTH = 1024
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is read at most.

    >>> Limits(pixels=2**20).pixels
    1048576
    """

    pixels: int = 2**24
    """Pixels of one image, as its header says: 4096 x 4096."""
    file_bytes: int = 2**26
    """Bytes of one image file or text file: 64 MiB."""
    table_bytes: int = 2**36
    """Bytes of one file that holds many images, packed or not: 64 GiB."""
    files: int = 4_000_000
    """Files of a folder."""


LIMITS = Limits()

# --- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing(where: Path | str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a ValueError that names the file, except that nothing is there.

    Libraries raise what they please on damaged files (struct.error, KeyError, RecursionError ...); who reads a
    stranger's file needs one answer.

    >>> with refusing("a.bin"):
    ...     struct.unpack("<I", b"1")
    Traceback (most recent call last):
        ...
    ValueError: a.bin: damaged, or not of this format (error: unpack requires a buffer of 4 bytes)
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (UnicodeError, zlib.error) as error:
        raise ValueError(f"{where}: damaged, or not of this format ({error})") from error
    except ValueError as error:
        if str(where) in str(error):
            raise
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: damaged, or not of this format ({said[:300]})") from error


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a name that a stranger gave, after checking that it stays in the folder, links followed.

    >>> inside(Path("/tmp"), "a/b.png").name
    'b.png'
    >>> inside(Path("/tmp"), "../etc/passwd")
    Traceback (most recent call last):
        ...
    ValueError: the name '../etc/passwd' leads out of its folder; names are relative, without ..

    Raises:
        ValueError: an absolute name, one with `..`, a drive or a backslash, or a link out of the folder.
    """
    shown = repr(name[:200])
    if len(name) > _NAME_LENGTH:
        raise ValueError(f"the name {shown}... has {len(name):,} characters")
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    if not parts or ".." in parts or "\\" in name or "\0" in name or name.startswith("/") or windows.anchor:
        raise ValueError(f"the name {shown} leads out of its folder; names are relative, without ..")
    path = folder.joinpath(*parts)
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ValueError(f"the name {shown} is no file name ({error})") from error
    if not real.is_relative_to(home):
        raise ValueError(f"{path} is a link to {real}, out of its folder; copy the file there")
    return path


def read_limited(path: Path, limit: int) -> bytes:
    """Returns the bytes of an ordinary file of at most `limit` bytes.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder, a pipe or a device, or a file that is larger.
    """
    size = check_file(path, limit)
    with refusing(path), path.open("rb") as file:
        return file.read(size)


def check_file(path: Path, limit: int) -> int:
    """Returns the size of an ordinary file of at most `limit` bytes.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder, a pipe or a device, or a file that is larger.
    """
    with refusing(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no ordinary file")
    if found.st_size > limit:
        raise ValueError(f"{path} has {found.st_size:,} bytes; at most {limit:,} are read")
    return found.st_size


@contextlib.contextmanager
def archive(file: BinaryIO, parts: int) -> Iterator[zipfile.ZipFile]:
    """Opens a stranger's zip archive, of which nothing is ever unpacked to disk.

    Its list of parts is not read where it is longer than so many parts need. How much a part unpacks to is for who
    reads it.

    >>> made = io.BytesIO()
    >>> with zipfile.ZipFile(made, "w") as packed:
    ...     packed.writestr("../a", b"")
    >>> with archive(made, 9):
    ...     pass
    Traceback (most recent call last):
        ...
    ValueError: has a part called '../a', which leads out of it

    Raises:
        ValueError: too many parts, two of one name, a name that leads out, parts that overlap.
    """
    bounded = _Bounded(file, 256 * parts)
    with zipfile.ZipFile(bounded) as packed:  # type: ignore[arg-type]
        bounded.most = None
        entries = packed.infolist()
        if len(entries) > parts:
            raise ValueError(f"has {len(entries):,} parts; at most {parts:,} are read")
        for entry in entries:
            name = entry.orig_filename
            if name.startswith("/") or set(name) & set("\\\0") or ".." in name.split("/"):
                raise ValueError(f"has a part called {name[:100]!r}, which leads out of it")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("has two parts of one name")
        if sum(entry.compress_size for entry in entries) > file.seek(0, os.SEEK_END):
            raise ValueError("says that its parts are larger than itself")
        yield packed


class _Bounded:
    """A file of which no more than `most` bytes are read at once, until that is None."""

    def __init__(self, file: BinaryIO, most: int | None) -> None:
        self.file, self.most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if self.most is not None and count > self.most:
            raise ValueError(f"has a list of parts of {count:,} bytes; at most {self.most:,} are read")
        return self.file.read(count)


def files_below(folder: Path, limits: Limits = LIMITS) -> list[Path]:
    """Returns the files in a folder and the folders in it, sorted; hidden ones are left out, links to folders too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: more files than the limit, a file that is none, or a link out of the folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    found: list[Path] = []
    with refusing(folder):
        for home, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(home, name) for name in names if not name.startswith(".")]
            if len(found) > limits.files:
                raise ValueError(f"{folder} holds more than {limits.files:,} files, the most that are read")
        for file in found:
            if file.is_symlink():
                inside(folder, file.relative_to(folder).as_posix())
    return sorted(found)


def new_place(path: Path) -> Path:
    """Returns the path after checking that nothing is there, or an empty folder.

    Raises:
        FileExistsError: something is there.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise FileExistsError(f"there is something at {path}; name a new folder or file")
    return path


def folder_name(name: str) -> str:
    """Returns a class name after checking that it can be a folder.

    >>> folder_name("cat")
    'cat'

    Raises:
        ValueError: it cannot.
    """
    if not name or name.startswith(".") or name.strip() != name or set(name) & set('/\\\0:*?"<>|\n\r'):
        raise ValueError(f"the class {name!r} cannot be the name of a folder, as this format has it; rename the class")
    return name


# --- images ----------------------------------------------------------------------------------------------------------


def check_header(name: str, data: bytes, limits: Limits = LIMITS) -> tuple[int, int]:
    """Returns width and height of an encoded image as its header says, nothing decoded.

    Every byte of a PNG file up to its end is compared with the checksums in it, which decoders leave out: a bit that
    flipped on the way is another pixel.

    >>> check_header("a.png", encoded(np.zeros((2, 5, 3), np.uint8)))
    (5, 2)

    Raises:
        ValueError: no PNG, JPEG, WebP or BMP, a PNG with a wrong checksum or without end, or too many pixels.
    """
    if len(data) > limits.file_bytes:
        raise ValueError(f"{name} has {len(data):,} bytes; at most {limits.file_bytes:,} are read")
    if data.startswith(_PNG):
        width, height = _png_size(name, data)
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
        except Exception as error:  # plug-ins raise what they please on damaged files
            raise ValueError(f"{name}: no image of type {', '.join(FORMATS)}, or a damaged one ({error})") from error
    if not 0 < width * height <= limits.pixels:
        raise ValueError(f"{name} says it is {width}x{height} pixels; at most {limits.pixels:,} are decoded")
    return width, height


def _png_size(name: str, data: bytes) -> tuple[int, int]:
    place, size = len(_PNG), (0, 0)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[place + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"{name}: damaged PNG, the checksum of its {kind!r} part is wrong; get the file again")
        if place == len(_PNG):
            if kind != b"IHDR" or length != 13:
                raise ValueError(f"{name}: damaged PNG, it begins with {kind!r} of {length} bytes, not with a header")
            size = struct.unpack_from(">II", data, place + 8)
        if kind == b"IEND":
            return size
        place = end
    raise ValueError(f"{name}: PNG that ends after {len(data):,} bytes without being complete; get the file again")


def safe_image(name: str, data: bytes, shape: tuple[int, int, int], limits: Limits = LIMITS) -> Tensor:
    """Decodes a stranger's image file to uint8 [C, H, W]; a grey image of colour data becomes colour.

    Args:
        name: For messages.
        data: The file.
        shape: (C, H, W) that it must have, looked at before anything is decoded.
        limits: How much is read at most.

    >>> safe_image("a.png", encoded(np.full((2, 2, 1), 7, np.uint8)), (3, 2, 2)).unique()
    tensor([7], dtype=torch.uint8)

    Raises:
        ValueError: damaged, of another size, too large.
    """
    channels, height, width = shape
    found = check_header(name, data, limits)
    if found != (width, height):
        raise ValueError(f"{name} is {found[0]}x{found[1]} pixels, the images of the data {width}x{height}")
    pixels = decode(name, data)
    if pixels.shape[2] == 1 < channels:
        pixels = pixels.repeat(channels, 2)
    if pixels.shape != (height, width, channels):
        seen = "x".join(map(str, pixels.shape))
        raise ValueError(f"{name} is {seen} (height x width x channels); the data have {height}x{width}x{channels}")
    return torch.tensor(pixels).permute(2, 0, 1)


def read_image(path: Path, shape: tuple[int, int, int], limits: Limits = LIMITS) -> Tensor:
    """Reads a stranger's image file as `safe_image` does.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no ordinary file, damaged, of another size, too large.
    """
    return safe_image(str(path), read_limited(path, limits.file_bytes), shape, limits)


def png(image: Tensor) -> bytes:
    """Encodes uint8 [C, H, W] as PNG, which keeps every pixel.

    >>> png(torch.zeros(3, 2, 2, dtype=torch.uint8))[1:4]
    b'PNG'

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    if len(image) not in (1, 3):
        raise ValueError(f"the images have {len(image)} channels; PNG files have 1 or 3")
    return encoded(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))
