"""The pixel cache: the same pixels, whoever is stopped, waits, damages or runs out of disk."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mithridate.core import cache
from mithridate.core.cache import mapped
from tests.core.image_files import pixels

COUNT, ROWS = 23, 4  # 23 images in chunks of 4
IMAGES, LABELS = pixels(COUNT), np.arange(COUNT) % 3
OF = {"source": "a test"}
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CHUNK", ROWS * 48)


class Source:
    """Images to cache; notes where reading starts, and may stop at an image."""

    def __init__(self, images: list[np.ndarray] | np.ndarray = IMAGES, stop: int | None = None) -> None:
        self.images, self.stop, self.starts = images, stop, []

    def __call__(self) -> tuple[int, cache.Items]:
        return len(self.images), self.read

    def read(self, start: int) -> Iterator[tuple[str, np.ndarray, int]]:
        self.starts.append(start)
        for i in range(start, len(self.images)):
            if i == self.stop:
                self.end()
            yield f"image {i}", self.images[i], int(LABELS[i])

    def end(self) -> None:
        raise KeyboardInterrupt


class Killed(Source):
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def check(folder: Path, source: Source | None = None, images: np.ndarray = IMAGES) -> Source:
    source = source or Source()
    found, labels = mapped(folder, OF, source)
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(labels, LABELS[: len(images)])
    return source


def home(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


# --- what comes back -------------------------------------------------------------------------------------------------


def test_pixels_are_the_file_and_made_once(tmp_path: Path) -> None:
    images, _ = mapped(tmp_path, OF, Source())
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (home(tmp_path) / "pixels.bin").read_bytes() == IMAGES.tobytes()
    assert str(home(tmp_path) / "pixels.bin") in Path("/proc/self/maps").read_text()
    assert check(tmp_path).starts == []


def test_other_pixels_have_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path)
    mapped(tmp_path, {"source": "another"}, Source(IMAGES[::-1]))
    monkeypatch.setattr(cache, "decoder_version", lambda: "pillow 99")
    assert check(tmp_path).starts == [0]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("colour_at", [0, 1, 3, 4, 5, 12, 22])
@pytest.mark.parametrize("stop", [None, 6, 17])
def test_grey_becomes_colour_with_the_first_colour_image(tmp_path: Path, colour_at: int, stop: int | None) -> None:
    mixed = [image if i == colour_at else image[:, :, :1] for i, image in enumerate(IMAGES)]
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            mapped(tmp_path, OF, Source(mixed, stop))
    expected = np.stack([np.broadcast_to(image, (4, 4, 3)) for image in mixed])
    check(tmp_path, Source(mixed), expected)
    assert {file.name for file in home(tmp_path).iterdir()} == {"pixels.bin", "labels.bin", "manifest.json", "lock"}


def test_grey_stays_grey(tmp_path: Path) -> None:
    check(tmp_path, Source(IMAGES[:, :, :, :1]), IMAGES[:, :, :, :1])


def test_two_sizes_name_both_images(tmp_path: Path) -> None:
    images = [*IMAGES[:9], np.zeros((5, 7, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"image 0 is 4x4, image 9 is 7x5 \(width x height\); size=4 resizes"):
        mapped(tmp_path, OF, Source(images))


@pytest.mark.parametrize("announced", [COUNT - 1, COUNT + 1, COUNT + 9])
def test_another_number_of_images_than_announced(tmp_path: Path, announced: int) -> None:
    with pytest.raises(ValueError, match=f"{COUNT} images came where {announced} were announced"):
        mapped(tmp_path, OF, lambda: (announced, Source().read))
    check(tmp_path)


# --- stopped and at once ---------------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize(("stop", "start"), [(0, 0), (3, 0), (4, 4), (5, 4), (19, 16), (20, 20), (22, 20)])
def test_after_a_kill_it_goes_on_from_the_last_chunk(tmp_path: Path, stop: int, start: int) -> None:
    child = multiprocessing.get_context("fork").Process(target=mapped, args=(tmp_path, OF, Killed(stop=stop)))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert check(tmp_path).starts == [start]


def test_what_was_written_after_the_last_manifest_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        mapped(tmp_path, OF, Source(stop=10))
    for name in ("pixels.bin", "labels.bin"):
        with (home(tmp_path) / name).open("ab") as file:
            file.write(b"torn")
    assert check(tmp_path).starts == [8]


def build_and_count(folder: Path, barrier: multiprocessing.Barrier, starts: multiprocessing.Queue) -> None:
    barrier.wait()
    starts.put(check(folder).starts)


@forks
def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, starts = context.Barrier(3), context.Queue()
    children = [context.Process(target=build_and_count, args=(tmp_path, barrier, starts)) for _ in range(3)]
    for child in children:
        child.start()
    found = sorted(starts.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    assert found == [[], [], [0]]
    assert [child.exitcode for child in children] == [0, 0, 0]


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    os.truncate(folder / "pixels.bin", 100)


def longer(folder: Path) -> None:
    with (folder / "labels.bin").open("ab") as file:
        file.write(bytes(8))


def flip(folder: Path, name: str = "pixels.bin") -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def no_labels(folder: Path) -> None:
    (folder / "labels.bin").unlink()


def bad_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"of": 1')


@pytest.mark.parametrize(
    "damage", [cut, longer, flip, lambda folder: flip(folder, "labels.bin"), no_labels, bad_manifest]
)
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: object) -> None:
    old, _ = mapped(tmp_path, OF, Source())
    damage(home(tmp_path))
    assert check(tmp_path).starts == [0]
    assert old.shape == (COUNT, 3, 4, 4)
    if damage is not cut:  # reading what is cut off would end this process
        old.sum()


def test_damage_to_an_unfinished_cache_costs_only_what_follows(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        mapped(tmp_path, OF, Source(stop=20))
    content = bytearray((home(tmp_path) / "pixels.bin").read_bytes())
    content[9 * 48] ^= 1
    (home(tmp_path) / "pixels.bin").write_bytes(content)
    assert check(tmp_path).starts == [8]


def test_a_copy_with_other_times_is_compared_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    compared = []
    intact = cache._intact
    monkeypatch.setattr(cache, "_intact", lambda *given: compared.append(1) or intact(*given))
    for _ in range(2):
        assert check(tmp_path / "b").starts == []
    assert compared == [1]


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_cache_that_is_only_read_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path)
    os.utime(home(tmp_path) / "pixels.bin")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(cache, "_write_manifest", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert check(tmp_path).starts == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the pixel cache \(Not a directory\): name a folder that can be"):
        mapped(tmp_path / "file", OF, Source())


def test_a_disk_that_gets_full_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: the system answers the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 48, hard))
    try:
        with pytest.raises(
            OSError, match=r"File too large\): it takes 1.29e-06 GB in all; free some room, and the next"
        ):
            mapped(tmp_path, OF, Source())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert check(tmp_path).starts == [8]


def test_a_disk_that_is_too_small_is_not_filled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OSError, match=r"No space left on device\): it takes 1.29e-06 GB"):
        mapped(tmp_path, OF, Source())
    assert (home(tmp_path) / "pixels.bin").stat().st_size == 0
