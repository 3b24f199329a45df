"""Memory of data: what one training epoch over a pixel cache keeps in memory of its own, at two sizes of the set."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Claim, Report, Row, Setup, environment
from mithridate.core.data import ImageData
from mithridate.core.schema import to_json
from mithridate.core.sources import TorchDataset
from mithridate.core.training import Recipe

STATUS = Path("/proc/self/status")
CLASSES, TEST_IMAGES = 10, 1000
POISONED = 0.01
"""Share of the training images that a patch overrides."""
ARMS = ("build the cache", "fingerprint and train one epoch", "load without a cache")
ALLOWED = 300
"""Megabytes that the larger set may take beyond the smaller one."""


class Synthetic:
    """As many images as wanted: windows of one block of random bytes."""

    def __init__(self, images: int, side: int, first: int = 0) -> None:
        self.images, self.side, self.first = images, side, first
        self.block = np.random.default_rng(0).integers(0, 256, 3 * side * side + 2**16, dtype=np.uint8)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        start = (self.first + index) * 7919 % 2**16
        image = self.block[start : start + 3 * self.side * self.side]
        return image.reshape(self.side, self.side, 3), index % CLASSES


def synthetic(images: int, side: int) -> tuple[Synthetic, Synthetic]:
    """Training and test set."""
    return Synthetic(images, side), Synthetic(TEST_IMAGES, side, first=images)


@dataclass(frozen=True)
class Measured:
    """What one process found."""

    before: float
    """Megabytes of anonymous memory before the work."""
    peak: float
    """Most megabytes of anonymous memory during the work."""
    wall: float
    cpu: float


class Peak:
    """Watches RssAnon, the resident memory that no file backs, from a thread: a mapped file does not count."""

    def __init__(self, every: float = 0.005) -> None:
        self.every, self.megabytes = every, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, anonymous())

    def _watch(self) -> None:
        while not self._done.wait(self.every):
            self.megabytes = max(self.megabytes, anonymous())


def anonymous() -> float:
    """Megabytes of anonymous memory of this process."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10


def run(setup: Setup) -> Report:
    """Each size in processes of its own: one builds the cache, one trains from it, one loads without it."""
    if not STATUS.exists():
        raise SystemExit("the memory benchmark reads /proc/self/status, which only Linux has")
    sizes, side = ((200, 2_000), 16) if setup.small else ((20_000, 200_000), 64)
    rows: list[Row] = []
    peaks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for images in sizes:
        with tempfile.TemporaryDirectory(prefix="mithridate-benchmark-") as folder:
            for arm in ARMS:
                found = _probe(arm, images, side, folder, setup.threads)
                peaks[arm].append(found.peak)
                rows.append(_row(arm, images, side, found, folder))
    claims = [_claim(arm, sizes, peaks[arm]) for arm in ARMS]
    settings = {
        "counted": "RssAnon of /proc/self/status, sampled every 5 ms, largest value",
        "images": f"{side}x{side}x3, {CLASSES} classes, {TEST_IMAGES} test images",
        "poisoned": POISONED,
        "recipe": to_json(_recipe()),
    }
    return Report(name="memory", settings=settings, rows=rows, claims=claims, environment=environment("cpu"))


def tiny(classes: int) -> nn.Module:
    """A network that 200,000 images pass in half a minute on one core: what is measured is how data reach it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)
    )


def _recipe() -> Recipe:
    return Recipe(model=tiny, epochs=1, precision="fp32")


def _row(arm: str, images: int, side: int, found: Measured, folder: str) -> Row:
    on_disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return Row(
        case=f"{images} images of {side}x{side}",
        arm=arm,
        value=found.peak,
        unit="MB of anonymous memory at the peak",
        wall_seconds=found.wall,
        cpu_seconds=found.cpu,
        rounds=1,
        note=f"{found.peak - found.before:.0f} MB more than before; {on_disk / 1e6:.0f} MB on disk",
    )


def _claim(arm: str, sizes: tuple[int, int], peaks: list[float]) -> Claim:
    more, cached = peaks[1] - peaks[0], arm != ARMS[2]
    return Claim(
        claim=f"{arm}: MB more for {sizes[1]} images than for {sizes[0]}",
        value=more,
        low=more,
        high=more,
        required=f"at most {ALLOWED} MB" if cached else "-",
        holds=more <= ALLOWED or not cached,
    )


def _probe(arm: str, images: int, side: int, folder: str, threads: int) -> Measured:
    """As `_measure`, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", arm, *map(str, (images, side, folder, threads))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _measure(arm: str, images: int, side: int, folder: str) -> Measured:
    datasets = partial(synthetic, images, side)
    source = TorchDataset(datasets, cache=None if arm == ARMS[2] else folder)
    poisoned = _poisoned(source.load()[0]) if arm == ARMS[1] else None
    before, wall, cpu = anonymous(), time.perf_counter(), time.process_time()
    with Peak() as peak:
        if poisoned is None:
            held = source.load()
        else:
            held = poisoned.fingerprint(), _recipe().fit([poisoned], [0])
    del held
    return Measured(before, peak.megabytes, time.perf_counter() - wall, time.process_time() - cpu)


def _poisoned(train: ImageData) -> ImageData:
    """The set with a patch of noise over one row in a hundred, evenly spread."""
    rows = torch.arange(0, len(train), round(1 / POISONED))
    noise = torch.randint(
        0, 256, (len(rows), *train.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return train.replace(rows, noise)


def _main() -> None:
    parser = argparse.ArgumentParser(description="one memory measurement; `python -m benchmarks memory` calls this")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("images", type=int)
    parser.add_argument("side", type=int)
    parser.add_argument("folder")
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(json.dumps(asdict(_measure(given.arm, given.images, given.side, given.folder))))


if __name__ == "__main__":
    _main()
