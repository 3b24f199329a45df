"""Protect: perturb every image of a data set before it is published, chunk by chunk, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate import __version__
from mithridate.core.copies import Copy, TableCopy, encoded, images_in
from mithridate.core.data import ImageData
from mithridate.core.decoding import decode, decoder_version
from mithridate.core.progress import track
from mithridate.core.seeds import stream
from mithridate.poisoning.journal import Journal

if TYPE_CHECKING:
    from mithridate.poisoning.release import Perturber

SCHEMA = 1
GOLDEN = (5**0.5 - 1) / 2
SETTINGS, JOURNAL, MANIFEST, SPOOL = "settings.json", "images.jsonl", "manifest.json", "images.spool"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How images are stored."""

    quality: int | None = None
    """JPEG quality; None: PNG, which stores every pixel as it is."""

    @property
    def suffix(self) -> str:
        """Ending of the files."""
        return ".png" if self.quality is None else ".jpg"


class Protected(NamedTuple):
    """What was made, as the manifest says it."""

    manifest: dict[str, Any]
    path: Path
    """The manifest."""


def protect(
    copy: Copy,
    perturber: Callable[[], Perturber],
    *,
    eps: float,
    shape: tuple[int, int, int],
    record: Path,
    settings: dict[str, Any],
    chunk: int = 512,
    form: Format | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Protected:
    """Writes a copy of a data set whose every image is perturbed; what was begun before is gone on with.

    Each chunk of images is perturbed alone, at the size of the surrogate; the perturbation is resized to each image,
    rounded to whole 8-bit steps within eps, and added. What was stored is read back and compared with the original.

    Args:
        copy: Reads the originals and writes the copy.
        perturber: Prepares what perturbs a chunk; called once, and only where something is left to do.
        eps: Largest change of a pixel value, in [0, 1].
        shape: (C, H, W) of the images that the perturber takes.
        record: Folder of settings, journal and manifest. It says which images were protected how, so it is not part of
            the copy.
        settings: What the result depends on, in JSON; what was begun with others is not gone on with.
        chunk: Images perturbed together: bounds the memory, and changes the result.
        form: How images are stored; PNG unless given.
        seed: Of the chunks' random streams.
        device: Where models run.

    Returns:
        The manifest: settings, number of images, largest change as stored, hashes of journal and files.

    Raises:
        ValueError: The record was begun with other settings, or what was stored is not what was made.
    """
    form = form or Format()
    record.mkdir(parents=True, exist_ok=True)
    _same_settings(record, settings)
    if (record / MANIFEST).exists():
        if not copy.out.exists():
            raise FileNotFoundError(
                f"{record} says that {copy.out} is complete, but nothing is there; put it back, or remove {record} to "
                "begin anew"
            )
        return Protected(json.loads((record / MANIFEST).read_text()), record / MANIFEST)
    order, journal = mixed(copy.listing.labels, chunk), Journal(record / JOURNAL)
    done = journal.resume()
    copy.cut(done.size)
    if done.images < len(order):
        work = _Worker(copy, perturber(), eps, shape, form, seed, device)
        for start in track(range(done.images, len(order), chunk), "protecting images"):
            stop = min(start + chunk, len(order))
            journal.add(work.chunk(order[start:stop], start), stop)
    totals = journal.totals()
    files = copy.finish(lambda: ((line["row"], line["size"]) for line in journal.images()))
    if isinstance(copy, TableCopy):
        _check_tables(files, journal, len(order))
    manifest = {
        "schema": SCHEMA,
        "settings": settings,
        "images": totals.images,
        "classes": list(copy.listing.classes),
        "format": "png" if form.quality is None else f"jpeg, quality {form.quality}",
        "eps": eps,
        "largest": totals.largest / 255,
        "images_over_eps": totals.over,
        "journal_sha256": _file_sha256(journal.file),
        "files": {file.name: _file_sha256(file) for file in files},
        "versions": {"mithridate": __version__, "torch": torch.__version__, "decoder": decoder_version()},
    }
    draft = record / f"{MANIFEST}.tmp"
    draft.write_text(json.dumps(manifest, indent=2) + "\n")
    draft.replace(record / MANIFEST)
    return Protected(manifest, record / MANIFEST)


def mixed(labels: np.ndarray, chunk: int) -> np.ndarray:
    """Returns an order of rows whose chunks hold many classes; in each chunk rows ascend.

    Data that lie class by class would give chunks of one class, and what is perturbed together then has no gradient but
    that of one class. Rows stay in their order where that mixes classes as well as dealing them out.

    Args:
        labels: [N].
        chunk: Rows of a chunk.

    Returns:
        [N] int64.

    >>> mixed(np.array([0, 0, 0, 1, 1, 1]), 2).tolist(), mixed(np.array([0, 1, 0, 1, 0, 1]), 2).tolist()
    ([0, 5, 2, 4, 1, 3], [0, 1, 2, 3, 4, 5])
    """
    count = len(labels)
    dealt = np.argsort(np.arange(count) * GOLDEN % 1)  # what follows each other lies far apart, everywhere

    def classes(order: np.ndarray) -> int:
        return sum(len(np.unique(labels[order[start : start + chunk]])) for start in range(0, count, chunk))

    rows = np.arange(count)
    if classes(rows) >= 0.9 * classes(dealt):
        return rows
    return np.concatenate([np.sort(dealt[start : start + chunk]) for start in range(0, count, chunk)])


class _Worker:
    """Makes one chunk after the other."""

    def __init__(
        self,
        copy: Copy,
        perturb: Perturber,
        eps: float,
        shape: tuple[int, int, int],
        form: Format,
        seed: int,
        device: str,
    ) -> None:
        self.copy, self.perturb, self.shape, self.form, self.seed, self.device = (
            copy,
            perturb,
            shape,
            form,
            seed,
            device,
        )
        self.steps = math.floor(eps * 255 + 1e-6)

    def chunk(self, rows: np.ndarray, start: int) -> Iterator[dict[str, Any]]:
        """Perturbs and stores these rows, ascending; yields what the journal says of each.

        Files are read twice, so that no more than one image is held at its full size.
        """
        listing = self.copy.listing
        small = torch.stack([fitted(decode(*file), self.shape) for file in listing.files(rows)])
        labels = torch.from_numpy(listing.labels[rows])
        images = small.to(self.device).float() / 255
        found = self.perturb(images, labels.to(self.device), stream(self.seed, "protect", start))
        change = (found.images.cpu().int() - small.int()).float()
        for row, file, delta in zip(rows.tolist(), listing.files(rows), change, strict=True):
            yield {
                "row": row,
                "label": int(listing.labels[row]),
                "of_sha256": _sha256(file[1]),
                **self._one(row, file, delta),
            }

    def _one(self, row: int, file: tuple[str, bytes], change: Tensor) -> dict[str, Any]:
        """Stores one image and looks at what was stored."""
        original = decode(*file)
        wanted = encoded(enlarged(original, change, self.steps), self.form.quality)
        (name,) = self.copy.write([row], [wanted])
        (got,) = list(self.copy.read([row], [name])) or [wanted]
        moved = int(np.abs(decode(name, got).astype(int) - original.astype(int)).max())
        if got != wanted or (self.form.quality is None and moved > self.steps):
            raise ValueError(
                f"{name}: what is stored is not what was written (pixels moved by {moved}/255, {self.steps}/255 are "
                "allowed); check the disk and start again"
            )
        return {"name": name, "sha256": _sha256(got), "size": len(got), "moved": moved, "over": moved > self.steps}


def fitted(image: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Returns an image, uint8 [H, W, C], as uint8 [C', H', W'] of that shape.

    >>> fitted(np.full((4, 6, 1), 7, np.uint8), (3, 2, 2)).unique().tolist()
    [7]
    """
    pixels = torch.tensor(image).permute(2, 0, 1).float()
    channels, height, width = shape
    if len(pixels) != channels:
        pixels = pixels.expand(channels, -1, -1) if len(pixels) == 1 else pixels.mean(0, keepdim=True)
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels.round().clamp(0, 255).to(torch.uint8)


def enlarged(image: np.ndarray, change: Tensor, steps: int) -> np.ndarray:
    """Adds a perturbation, resized to the image, in whole steps of at most `steps`.

    Args:
        image: uint8 [H, W, C].
        change: [C', h, w] in units of 1/255.
        steps: Largest change of a pixel value, of 255.

    Returns:
        uint8 [H, W, C].

    >>> enlarged(np.full((4, 4, 1), 250, np.uint8), torch.full((3, 2, 2), 8.0), 8).max()
    np.uint8(255)
    """
    channels = image.shape[2]
    if len(change) != channels:
        change = change.mean(0, keepdim=True) if channels == 1 else change.expand(channels, -1, -1)
    if change.shape[1:] != image.shape[:2]:
        change = F.interpolate(change[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
    whole = change.round().clamp(-steps, steps).permute(1, 2, 0).numpy()
    return (image.astype(np.int16) + whole.astype(np.int16)).clip(0, 255).astype(np.uint8)


def protected_rows(copy: Copy, record: Path, rows: Sequence[int], shape: tuple[int, int, int]) -> ImageData:
    """Reads some protected images back as a training set of that shape.

    Args:
        copy: As for `protect`; the copy is complete.
        record: Its record.
        rows: Rows of the listing, ascending.
        shape: (C, H, W) that each image is fitted to.
    """
    wanted = set(rows)
    if isinstance(copy, TableCopy):
        files = (data for table in copy.tables for data in images_in(copy.out / table.name))
        stored = (data for row, data in enumerate(files) if row in wanted)
    else:
        names = {line["row"]: line["name"] for line in Journal(record / JOURNAL).images() if line["row"] in wanted}
        stored = (next(iter(copy.read([row], [names[row]]))) for row in rows)
    images = torch.stack([fitted(decode("protected image", data), shape) for data in stored])
    return ImageData(images, torch.from_numpy(copy.listing.labels[list(rows)]), copy.listing.classes)


# --- the record ------------------------------------------------------------------------------------------------------


def _same_settings(record: Path, settings: dict[str, Any]) -> None:
    file = record / SETTINGS
    if not file.exists():
        file.write_text(json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    now = json.loads(json.dumps(settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{record} was begun with another {name}: {before.get(name)!r}, now {now.get(name)!r}; give the old "
                "one to go on, or another folder to begin anew"
            )


def _check_tables(files: Sequence[Path], journal: Journal, count: int) -> None:
    """Compares the stored tables, image by image, with the journal."""
    wanted = np.zeros(count, "S64")
    for line in journal.images():
        wanted[line["row"]] = line["sha256"]
    stored = (data for file in files for data in images_in(file))
    for row, (expected, data) in enumerate(zip(wanted, stored, strict=True)):
        if _sha256(data) != expected.decode():
            raise ValueError(f"row {row}: what is stored is not what was written; check the disk and start again")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
