from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile

from mithridate.core.safe_images import (
    LIMITS,
    Limits,
    check_header,
    files_below,
    folder_name,
    inside,
    new_place,
    png,
    read_image,
    read_limited,
    refusing,
    safe_image,
)


def part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A complete PNG of a few bytes that says it is as large as asked."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(kind: str, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 9).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.png", "x/y/a.png", "a..b.png", "./a.png", "…"])
def test_names_that_stay(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "x/../../a", "/etc/passwd", "C:/a", "C:a", "..\\a", "x\\y", "//host/a", "a\0b", "a" * 5000],
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="the name"):
        inside(tmp_path, name)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "secret.png"
    home.mkdir()
    other.write_bytes(b"secret")
    (home / "link.png").symlink_to(other)
    with pytest.raises(ValueError, match="out of its folder"):
        inside(home, "link.png")
    with pytest.raises(ValueError, match="out of its folder"):
        files_below(home)
    (home / "link.png").unlink()
    (home / "a").write_bytes(b"")
    (home / "b").symlink_to(home / "a")
    (home / "out").symlink_to(tmp_path)
    (home / "round").symlink_to(home / "round")
    assert inside(home, "b")
    with pytest.raises(ValueError, match=r"file name|out of its folder"):
        inside(home, "round")
    with pytest.raises(ValueError, match="out of its folder"):
        inside(home, "out/secret.png")


def test_files_below_are_bounded_and_visible(tmp_path: Path) -> None:
    for name in ("b", "a/c", ".hidden", ".cache/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path)] == ["a/c", "b"]
    with pytest.raises(ValueError, match="more than 1 files"):
        files_below(tmp_path, Limits(files=1))
    with pytest.raises(FileNotFoundError):
        files_below(tmp_path / "b")


def test_only_ordinary_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for ever
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="no ordinary file"):
            read_limited(tmp_path / name, 10)
    with pytest.raises(ValueError, match="no ordinary file"):
        read_limited(Path("/dev/zero"), 10)
    (tmp_path / "a").write_bytes(bytes(10))
    assert read_limited(tmp_path / "a", 10) == bytes(10)
    with pytest.raises(ValueError, match="10 bytes"):
        read_limited(tmp_path / "a", 9)
    with pytest.raises(ValueError, match="NotADirectory"):
        read_limited(tmp_path / "a" / "b", 10)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "c", 10)


def test_new_place(tmp_path: Path) -> None:
    assert new_place(tmp_path / "new") == tmp_path / "new"
    assert new_place(tmp_path) == tmp_path
    (tmp_path / "a").symlink_to(tmp_path / "nothing")
    for taken in (tmp_path, tmp_path / "a"):
        with pytest.raises(FileExistsError):
            new_place(taken)


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a\\b", "a\nb", " a", "c:"])
def test_class_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(ValueError, match="name of a folder"):
        folder_name(name)


def test_what_is_not_there_stays_so() -> None:
    with pytest.raises(FileNotFoundError), refusing("a"):
        raise FileNotFoundError
    for error in (
        KeyError("k"),
        RecursionError(),
        MemoryError(),
        struct.error("s"),
        zlib.error("z"),
        PermissionError(),
    ):
        with pytest.raises(ValueError, match="a: damaged"), refusing("a"):
            raise error
    with pytest.raises(KeyboardInterrupt), refusing("a"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (5000, 5000), (0, 5), (2**24 + 1, 1)])
def test_bombs_are_seen_in_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        check_header("bomb.png", bomb(*size))
    assert check_header("a.png", bomb(4096, 4096)) == (4096, 4096)


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "WEBP"])
def test_other_kinds_have_limits_too(kind: str) -> None:
    data = saved(kind)
    assert check_header("a", data) == (5, 4)
    with pytest.raises(ValueError, match="at most 19 are decoded"):
        check_header("a", data, Limits(pixels=19))
    with pytest.raises(ValueError, match="at most 3 are read"):
        check_header("a", data, Limits(file_bytes=3))


def test_a_bmp_bomb_is_an_error_not_a_warning() -> None:
    data = bytearray(saved("BMP"))
    data[18:26] = struct.pack("<ii", 30000, 30000)
    with pytest.raises(ValueError, match="decompression bomb"):
        check_header("a.bmp", bytes(data))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO"])
def test_kinds_that_are_not_read(kind: str) -> None:
    with pytest.raises(ValueError, match="no image of type"):
        check_header("a", saved(kind))


@given(st.integers(0, 255), st.integers(0, 7))
@settings(max_examples=100)
def test_every_flipped_bit_of_a_png_is_noticed(place: int, bit: int) -> None:
    image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    data = bytearray(png(image))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ValueError):
        safe_image("a.png", bytes(data), (3, 4, 4))


def test_a_truncated_png_is_noticed_whatever_others_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as BackdoorBench does on import
    data = png(torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8))
    for end in (10, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError):
            safe_image("a.png", data[:end], (3, 8, 8))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"]))
@settings(max_examples=150)
def test_any_bytes_end_in_value_error(data: bytes, start: bytes) -> None:
    with pytest.raises(ValueError):
        safe_image("a", start + data, (3, 8, 8))


@given(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30)
def test_png_keeps_every_pixel(channels: int, height: int, width: int, seed: int) -> None:
    image = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed))
    image = image.to(torch.uint8)
    data = png(image)
    assert torch.equal(safe_image("a", data, (channels, height, width)), image)
    again = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(again.reshape(height, width, channels).transpose(2, 0, 1), image.numpy())


def test_size_and_colour_must_be_those_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(torch.zeros(3, 4, 5, dtype=torch.uint8)))
    assert read_image(tmp_path / "a.png", (3, 4, 5)).shape == (3, 4, 5)
    for shape in ((3, 5, 4), (3, 8, 8), (1, 4, 5)):
        with pytest.raises(ValueError, match=r"the data"):
            read_image(tmp_path / "a.png", shape)
    with pytest.raises(ValueError, match="channels"):
        png(torch.zeros(4, 2, 2, dtype=torch.uint8))


def test_limits_leave_room_for_real_data() -> None:
    assert LIMITS.pixels >= 4096**2
    assert LIMITS.files >= 1_300_000  # images of ImageNet
