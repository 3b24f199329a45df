"""A user's own image files: which ones a path names, their pixels, and an identity that is their content."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mithridate.core.decoding import decode
from mithridate.core.image_files import image_files, read_cutout, read_images
from mithridate.core.schema import identity
from tests.core.image_files import pixels, png


def write(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(array))
    return file


def test_a_file_is_itself_and_a_folder_its_images_by_name(tmp_path: Path) -> None:
    names = ("b.png", "a.png", "c.PNG")
    files = [write(tmp_path / name, array) for name, array in zip(names, pixels(3), strict=True)]
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    write(tmp_path / "deeper" / "d.png", pixels(1)[0])
    assert image_files(files[0]) == [files[0]]
    assert [file.name for file in image_files(tmp_path)] == ["a.png", "b.png", "c.PNG"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image file or folder is called .*dog\.png"):
        image_files(tmp_path / "dog.png")
    with pytest.raises(ValueError, match=r"holds no image files \(\.png, .*name image files"):
        image_files(tmp_path)


def test_pixels_of_the_right_shape_are_taken_as_they_are(tmp_path: Path) -> None:
    arrays = pixels(3, side=8)
    files = [write(tmp_path / f"{k}.png", array) for k, array in enumerate(arrays)]
    np.testing.assert_array_equal(read_images(files, (3, 8, 8)).numpy(), arrays.transpose(0, 3, 1, 2))


def test_other_sizes_are_resized_as_the_readers_do(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", pixels(1, side=32)[0])
    expected = decode("a", file.read_bytes(), size=8).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_images([file], (3, 8, 8))[0].numpy(), expected)
    assert read_images([file], (3, 4, 10)).shape == (1, 3, 4, 10)


def test_grey_and_colour_are_matched_to_the_data(tmp_path: Path) -> None:
    grey, colour = pixels(1, side=8)[0][:, :, 0], pixels(1, seed=1, side=8)[0]
    files = [write(tmp_path / "grey.png", grey), write(tmp_path / "colour.png", colour)]
    as_colour, as_grey = read_images(files, (3, 8, 8)).numpy(), read_images(files, (1, 8, 8)).numpy()
    np.testing.assert_array_equal(as_colour[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(as_grey[0, 0], grey)
    weights = (colour * np.array([0.299, 0.587, 0.114])).sum(2)  # ITU-R 601
    assert np.abs(as_grey[1, 0] - weights).max() <= 1
    with pytest.raises(ValueError, match=r"the data have 2 channels, but image files have 1 or 3"):
        read_images(files, (2, 8, 8))


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png: not an image"):
        read_images([tmp_path / "bad.png"], (3, 8, 8))


def test_an_identity_looks_into_the_images_of_a_folder(tmp_path: Path) -> None:
    first, second = pixels(2)
    homes = [tmp_path / name for name in ("one", "copy", "other", "swapped")]
    for home, pair in zip(homes, [(first, second)] * 2 + [(first, first), (second, first)], strict=True):
        write(home / "a.png", pair[0])
        write(home / "b.png", pair[1])
    (homes[1] / "notes.txt").write_text("no image")
    ids = [identity(home) for home in homes]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    Image.new("RGB", (4, 4)).save(homes[0] / "c.png")
    assert identity(homes[0]) != ids[0]


def test_a_cutout_keeps_its_ratio_and_what_is_see_through(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (20, 0, 40, 20))
    picture.save(tmp_path / "half.png")
    pixels, opacity = read_cutout(tmp_path / "half.png", 3, 8)
    assert pixels.shape == (3, 4, 8)
    assert opacity.shape == (1, 4, 8)
    assert opacity[0, :, 0].tolist() == [1.0] * 4
    assert opacity[0, :, -1].tolist() == [0.0] * 4
    assert pixels[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert read_cutout(tmp_path / "half.png", 1, 8)[0].shape == (1, 4, 8)


def test_a_cutout_without_transparency_is_opaque_and_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "plain.png"
    for written, level in enumerate((255, 0)):
        Image.new("L", (6, 6), level).save(file)
        os.utime(file, (0, written))
        pixels, opacity = read_cutout(file, 3, 4)
        assert pixels.unique().tolist() == [level / 255]
        assert opacity.unique().tolist() == [1.0]


def test_a_cutout_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        read_cutout(tmp_path / "text.png", 3, 4)
    with pytest.raises(FileNotFoundError, match=r"none\.png is not there \(seen from"):
        read_cutout(tmp_path / "none.png", 3, 4)
    with pytest.raises(ValueError, match="a folder; name one image file"):
        read_cutout(tmp_path, 3, 4)
    with pytest.raises(ValueError, match="the data have 4 channels"):
        read_cutout(tmp_path / "text.png", 4, 4)
