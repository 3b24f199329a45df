from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.core import decoding
from mithridate.core.decoding import decode, decode_all

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(seed: int = 0, shape: tuple[int, ...] = (4, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["png", "bmp"])
@pytest.mark.parametrize("pixels", [RAMP, colours()])
def test_lossless_files_come_back_bit_for_bit(kind: str, pixels: np.ndarray) -> None:
    assert np.array_equal(decode("a", encode(Image.fromarray(pixels), kind)).squeeze(), pixels)


def test_transparency_is_shown_on_white() -> None:
    pixels = colours(shape=(4, 6, 4))
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    found = decode("a", encode(Image.fromarray(pixels)))
    assert found.shape == (4, 6, 3)
    assert np.abs(found - expected).max() <= 1


def test_grey_with_alpha_stays_grey() -> None:
    pixels = np.stack([RAMP, np.full_like(RAMP, 255)], -1)
    pixels[0, 0] = (0, 0)
    found = decode("a", encode(Image.fromarray(pixels)))
    assert found.shape == (4, 6, 1)
    assert found[0, 0, 0] == 255
    assert np.array_equal(found.squeeze()[1:], RAMP[1:])


def test_a_palette_becomes_colour_also_with_a_transparent_entry() -> None:
    image = Image.fromarray((RAMP // 120).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)[RAMP // 120]
    assert np.array_equal(decode("a", encode(image)), expected)
    see_through = np.where((RAMP // 120 == 0)[..., None], 255, expected)
    assert np.array_equal(decode("a", encode(image, transparency=0)), see_through)
    assert np.array_equal(decode("a", encode(image, transparency=bytes([0, 255]))), see_through)


def test_a_transparent_colour_of_an_rgb_file_is_shown_on_white() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = (1, 2, 3)
    found = decode("a", encode(Image.fromarray(pixels), transparency=(1, 2, 3)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [0, 0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 514], [128, 129, 65535]], np.uint16)
    found = decode("a", encode(Image.fromarray(deep)))
    assert found.squeeze().tolist() == [[0, 1, 2], [0, 1, 255]]


def test_one_bit_and_cmyk_and_turned_photos() -> None:
    assert np.unique(decode("a", encode(Image.fromarray(RAMP).convert("1")))).tolist() == [0, 255]
    assert decode("a", encode(Image.fromarray(colours()).convert("CMYK"), "jpeg")).shape == (4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    assert decode("a", encode(Image.fromarray(colours()), "jpeg", exif=exif.tobytes())).shape == (6, 4, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode("a", data)[2, 2].tolist() == [255, 0, 0]


def test_resizing_averages_where_it_shrinks() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode("a", encode(Image.fromarray(board.astype(np.uint8))), size=8)
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(int) - 127.5).max() < 10  # without antialiasing each pixel would be 0 or 255


@pytest.mark.parametrize(
    "data", [b"", b"no image", encode(Image.fromarray(colours(shape=(32, 32, 3))))[:200], b"\xff\xd8\xff\xe0\x00"]
)
def test_a_damaged_image_is_named(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cats/7.png: not an image that pillow can read"):
        decode("cats/7.png", data)


@pytest.mark.parametrize("colour_at", [None, 0, 1, 3])
def test_one_colour_image_makes_all_colour(colour_at: int | None) -> None:
    arrays = [RAMP + k for k in range(4)]
    if colour_at is not None:
        arrays[colour_at] = colours()
    images = decode_all([(str(k), encode(Image.fromarray(array))) for k, array in enumerate(arrays)], 4)
    assert images.dtype == torch.uint8
    assert images.shape == (4, 1 if colour_at is None else 3, 4, 6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for found, array in zip(images, arrays, strict=True):
        expected = array.transpose(2, 0, 1) if array.ndim == 3 else np.broadcast_to(array, found.shape)
        assert np.array_equal(found, expected)


def test_two_sizes_name_both_files_and_the_way_out() -> None:
    files = [("a.png", encode(Image.new("L", (6, 4)))), ("b.png", encode(Image.new("L", (5, 9))))]
    with pytest.raises(ValueError, match=r"a.png is 6x4, b.png is 5x9 \(width x height\); size=4 resizes"):
        decode_all(files, 2)
    assert decode_all(files, 2, size=4).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(("count", "bars"), [(2_000, 0), (2_001, 1)])
def test_only_many_images_are_worth_a_bar(count: int, bars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def track(items: object, label: str, total: int) -> object:
        shown.append((label, total))
        return items

    monkeypatch.setattr(decoding, "track", track)
    data = encode(Image.new("L", (1, 1)))
    decode_all((("a", data) for _ in range(count)), count)
    assert shown == [("decoding images", count)] * bars


def test_the_version_names_both_libraries_that_round() -> None:
    assert re.fullmatch(r"pillow [\w.]+ \(libjpeg(-turbo)? [\w.]+\)", decoding.decoder_version())
    assert Image.__version__ in decoding.decoder_version()
