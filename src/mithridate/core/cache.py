"""Pixels in a file that is mapped into memory, for sets larger than memory: built once, resumable, read by position.

A set is a folder `<cache>/<address>/` with `pixels.bin` (uint8 [N, H, W, C]), `labels.bin` (int64 [N]), `manifest.json`
and `lock`. The address is a hash of what the pixels are made from, so other files, another size or another decoder have
another folder, and any of these folders may be deleted. The manifest is written after each chunk that is on disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mithridate.core.decoding import check_side, decoder_version
from mithridate.core.progress import track

Items = Callable[[int], Iterator[tuple[str, np.ndarray, int]]]
"""Position to start at -> name, pixels [H, W, C] and label of each image from there on."""

_FORMAT = 1
_CHUNK = 2**24
"""Bytes of colour pixels that are decoded before they are written: what a stopped process loses at most."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest(value: Any) -> str:
    """Returns 16 hex characters for an array or JSON value: the parts of an address.

    >>> digest([1, 2]) == digest((1, 2)), digest(np.array([1, 2])) == digest(np.array([1, 3]))
    (True, False)
    """
    content = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass
class _Manifest:
    """What is on disk so far."""

    of: dict[str, Any]
    """What the pixels are made from."""
    count: int
    """Images when it is complete."""
    shape: tuple[int, ...] = (0, 0, 0)
    """Height, width, channels; 0 before the first chunk."""
    first: str = ""
    """Name of the first image, for messages."""
    sums: list[int] = field(default_factory=list)
    """CRC-32 of each chunk, its labels included."""
    modified: list[int] | None = None
    """When the two files were last written (nanoseconds), once they are complete."""

    @property
    def rows(self) -> int:
        """Images in a chunk (the last may have fewer); grey ones count as colour, since they may become it."""
        return max(1, _CHUNK // (3 * self.shape[0] * self.shape[1]))

    @property
    def done(self) -> int:
        """Images on disk."""
        return min(len(self.sums) * self.rows, self.count) if self.sums else 0

    @property
    def image_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


def mapped(
    folder: str | os.PathLike[str], of: dict[str, Any], begin: Callable[[], tuple[int, Items]]
) -> tuple[Tensor, np.ndarray]:
    """Returns images, uint8 [N, C, H, W] stored channels last in a read-only memory map, and labels [N].

    Where they are not on disk yet, they are written first: chunk by chunk, from where a stopped process left off. Of
    two processes, one waits for the other. Files that something else changed since are found out and written anew.

    Args:
        folder: Holds all caches.
        of: What the pixels are made from, as JSON values: their address, together with the decoder and its version.
        begin: Returns the number of images and how to read them; called only where something is to be written.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
        ValueError: two sizes of images; and what `begin` raises.

    >>> import tempfile
    >>> def two_images():
    ...     images = [("a", np.zeros((4, 4, 3), np.uint8), 0), ("b", np.ones((4, 4, 3), np.uint8), 1)]
    ...     return 2, lambda start: iter(images[start:])
    >>> with tempfile.TemporaryDirectory() as home:
    ...     images, labels = mapped(home, {"source": "two images"}, two_images)
    ...     images[:, 0, 0, 0].tolist(), labels.tolist()
    ([0, 1], [0, 1])
    """
    of = {"format": _FORMAT, "decoder": decoder_version(), **of}
    home = Path(folder).expanduser() / digest(of)
    found = _complete(home)
    if found is None:
        with _locked(home):
            found = _complete(home)  # another process may have made it in the meantime
            if found is None:
                found = _build(home, of, *begin())
    stack = np.memmap(home / "pixels.bin", np.uint8, "r", shape=(found.count, *found.shape))
    with warnings.catch_warnings():  # torch warns of writing to a read-only array, and nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = torch.from_numpy(stack).permute(0, 3, 1, 2)
    return images, np.fromfile(home / "labels.bin", np.int64)


# --- what is there ---------------------------------------------------------------------------------------------------


def _read(home: Path) -> _Manifest | None:
    try:
        found = _Manifest(**json.loads((home / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or damaged: there is nothing that could be trusted
        return None
    found.shape = tuple(found.shape)
    return found


def _complete(home: Path) -> _Manifest | None:
    """The manifest of a cache that is whole: unchanged since it was written, or else of the right check sums."""
    found = _read(home)
    if found is None or found.modified is None:
        return None
    try:
        stats = [(home / name).stat() for name in ("pixels.bin", "labels.bin")]
    except OSError:
        return None
    if [stat.st_size for stat in stats] != [found.count * found.image_bytes, found.count * 8]:
        return None
    times = [stat.st_mtime_ns for stat in stats]
    if times != found.modified:  # copied elsewhere, or written to
        if _intact(home, found) < len(found.sums):
            return None
        found.modified = times
        with contextlib.suppress(OSError):  # a folder that is only read is compared again the next time
            _write_manifest(home, found)
    return found


def _intact(home: Path, manifest: _Manifest) -> int:
    """Counts the chunks before the first that is not as it was written."""
    rows = manifest.rows if manifest.sums else 0
    try:
        with (home / "pixels.bin").open("rb") as pixels, (home / "labels.bin").open("rb") as labels:
            for number, expected in enumerate(track(manifest.sums, "checking the pixel cache")):
                count = min(rows, manifest.count - number * rows)
                parts = pixels.read(count * manifest.image_bytes), labels.read(count * 8)
                if [len(part) for part in parts] != [count * manifest.image_bytes, count * 8]:
                    return number
                if zlib.crc32(parts[1], zlib.crc32(parts[0])) != expected:
                    return number
    except OSError:
        return 0
    return len(manifest.sums)


def _write_manifest(home: Path, manifest: _Manifest) -> None:
    """Replaces the manifest as a whole."""
    partial = home / f"manifest.{os.getpid()}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(home / "manifest.json")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(home: Path, bytes_in_all: int = 0) -> Iterator[None]:
    """Says what to do where the disk refuses."""
    try:
        yield
    except OSError as error:
        way_out = "name a folder that can be written to"
        if error.errno in _FULL:
            way_out = (
                f"it takes {bytes_in_all / 1e9:.3g} GB in all; free some room, and the next run goes on from what is "
                "written, or name another folder"
            )
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"cannot write the pixel cache ({reason}): {way_out}", str(home)) from error


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Holds the right to write; a process that ends for whatever reason gives it back."""
    import fcntl

    with _writing(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("a")
    with lock:
        with _writing(home):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(home: Path, of: dict[str, Any], count: int, items: Items) -> _Manifest:
    """Writes what is missing."""
    manifest = _read(home)
    if manifest is None or manifest.count != count or manifest.modified is not None:  # complete, but damaged since
        with _writing(home):
            for name in ("manifest.json", "pixels.bin", "labels.bin"):  # who has them mapped keeps the old ones
                (home / name).unlink(missing_ok=True)
        manifest = _Manifest(of, count)
    del manifest.sums[_intact(home, manifest) :]
    if not manifest.sums:
        manifest = _Manifest(of, count)
    with contextlib.closing(_Writer(home, manifest)) as writer:
        if (start := manifest.done) < count:
            for name, pixels, label in track(items(start), "building the pixel cache", count - start):
                writer.add(name, pixels, label)
        writer.finish()
    return manifest


class _Writer:
    """Appends images to the files of a cache."""

    def __init__(self, home: Path, manifest: _Manifest) -> None:
        self.home, self.manifest = home, manifest
        self.taken = manifest.done
        self.pixels: list[np.ndarray] = []
        self.labels: list[int] = []
        with _writing(home):
            self.files = [self._open("pixels.bin", manifest.image_bytes), self._open("labels.bin", 8)]

    def _open(self, name: str, each: int) -> BinaryIO:
        """The file, cut after what the manifest vouches for."""
        file = os.fdopen(os.open(self.home / name, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        file.truncate(self.manifest.done * each)
        file.seek(0, os.SEEK_END)
        return file

    def add(self, name: str, pixels: np.ndarray, label: int) -> None:
        """Takes one image [H, W, C]."""
        manifest = self.manifest
        if not manifest.first:
            manifest.first, manifest.shape = name, pixels.shape
            self._check_room()
        check_side(manifest.first, manifest.shape, name, pixels)
        if pixels.shape[2] > manifest.shape[2]:
            self._widen(pixels.shape[2])
        self.pixels.append(pixels)
        self.labels.append(label)
        self.taken += 1
        if len(self.pixels) == manifest.rows:
            self._flush()

    def _check_room(self) -> None:
        """A disk that is too small is not filled first."""
        needed = self.manifest.count * (self.manifest.image_bytes + 8)
        with _writing(self.home, needed):
            if shutil.disk_usage(self.home).free < needed:
                raise OSError(errno.ENOSPC, "")

    def _flush(self) -> None:
        """Writes the images that wait, then the manifest that vouches for them."""
        manifest = self.manifest
        stack = np.empty((len(self.pixels), *manifest.shape), np.uint8)
        for place, pixels in zip(stack, self.pixels, strict=True):
            place[:] = pixels
        labels = np.asarray(self.labels, np.int64)
        with _writing(self.home, manifest.count * (manifest.image_bytes + 8)):
            for file, array in zip(self.files, (stack, labels), strict=True):
                file.write(array.data)
                file.flush()
                os.fsync(file.fileno())
            manifest.sums.append(zlib.crc32(labels.data, zlib.crc32(stack.data)))
            _write_manifest(self.home, manifest)
        self.pixels, self.labels = [], []

    def _widen(self, channels: int) -> None:
        """Makes what is written colour, since the first colour image has come: in another file, chunk by chunk."""
        manifest = self.manifest
        old, each, rows, done = self.files[0], manifest.image_bytes, manifest.rows, manifest.done
        manifest.shape = (*manifest.shape[:2], channels)
        with _writing(self.home, manifest.count * (manifest.image_bytes + 8)):
            new = (self.home / "pixels.partial").open("w+b")
            old.seek(0)
            labels = np.fromfile(self.home / "labels.bin", np.int64)
            sums = []
            for start in range(0, done, rows):
                grey = np.frombuffer(old.read(min(rows, done - start) * each), np.uint8)
                stack = np.repeat(grey, channels)
                new.write(stack.data)
                sums.append(zlib.crc32(labels[start : start + rows].data, zlib.crc32(stack.data)))
            new.flush()
            os.fsync(new.fileno())
            # A process that stops between the two leaves sums that do not fit, and the next begins anew.
            (self.home / "pixels.partial").replace(self.home / "pixels.bin")
            old.close()
            self.files[0], manifest.sums = new, sums
            _write_manifest(self.home, manifest)

    def finish(self) -> None:
        """Vouches for the whole."""
        if self.taken != self.manifest.count:
            raise ValueError(f"{self.taken} images came where {self.manifest.count} were announced; nothing is kept")
        if self.pixels:
            self._flush()
        with _writing(self.home):
            self.manifest.modified = [os.fstat(file.fileno()).st_mtime_ns for file in self.files]
            _write_manifest(self.home, self.manifest)

    def close(self) -> None:
        """Closes the files; what is not on disk yet is lost."""
        for file in self.files:
            with contextlib.suppress(OSError):  # the rest of a chunk that the disk had no room for
                file.close()
