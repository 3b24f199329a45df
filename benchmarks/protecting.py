"""Memory of `mithridate protect`: what it keeps in memory of its own for few and for many images, each in a process."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Claim, Report, Row, Setup, environment
from benchmarks.memory import STATUS, Measured, Peak, anonymous
from mithridate import cli

CLASSES, ROWS = 10, 1000
"""Of the images; of a row group of parquet."""
SIDES = (24, 32, 40)
"""Sides of the images, in turn."""
ALLOWED = 50
"""Megabytes that many images may take beyond few: names and labels are held, and peaks differ by some 30 MB from run to
run."""
ROUNDS = 3
OPTIONS = ("--steps", "2", "--size", "32", "--train-on", "500", "--epochs", "1", "--workers", "1")


def run(setup: Setup) -> Report:
    """Both layouts at both sizes."""
    if not STATUS.exists():
        raise SystemExit("the memory benchmark reads /proc/self/status, which only Linux has")
    sizes = (100, 300) if setup.small else (1_000, 20_000)
    rows: list[Row] = []
    claims: list[Claim] = []
    for layout in LAYOUTS:
        found = [
            [_probe(layout, images, setup.threads) for images in sizes] for _ in range(1 if setup.small else ROUNDS)
        ]
        for images, runs in zip(sizes, zip(*found, strict=True), strict=True):
            rows.append(_row(layout, images, runs))
        more = sorted(many.peak - few.peak for few, many in found)
        claims.append(
            Claim(
                claim=f"{layout}: MB more for {sizes[1]} images than for {sizes[0]}",
                value=median(more),
                low=more[0],
                high=more[-1],
                required=f"at most {ALLOWED} MB",
                holds=median(more) <= ALLOWED,
            )
        )
    settings = {
        "counted": "RssAnon of /proc/self/status, sampled every 5 ms, largest value",
        "images": f"RGB PNG of {', '.join(f'{side}x{side}' for side in SIDES)}, {CLASSES} classes, sorted by class",
        "options": " ".join(OPTIONS),
    }
    return Report(name="protecting", settings=settings, rows=rows, claims=claims, environment=environment("cpu"))


def _row(layout: str, images: int, runs: Sequence[Measured]) -> Row:
    return Row(
        case=f"{images} images",
        arm=layout,
        value=median(one.peak for one in runs),
        unit="MB of anonymous memory at the peak",
        wall_seconds=median(one.wall for one in runs),
        cpu_seconds=median(one.cpu for one in runs),
        rounds=len(runs),
        note=f"{median(one.peak - one.before for one in runs):.0f} MB more than before",
    )


def _pictures(count: int) -> Iterator[tuple[bytes, int]]:
    """Encoded images and labels, class by class."""
    rng = np.random.default_rng(0)
    for row in range(count):
        side, file = SIDES[row % len(SIDES)], io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "png")
        yield file.getvalue(), row * CLASSES // count


def _folder(home: Path, count: int) -> None:
    for row, (data, label) in enumerate(_pictures(count)):
        file = home / str(label) / f"{row:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _parquet(home: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    home.mkdir()
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with pq.ParquetWriter(home / "train.parquet", pa.schema({"image": image, "label": pa.int64()})) as writer:
        group: list[dict[str, object]] = []
        for row, (data, label) in enumerate(_pictures(count)):
            group.append({"image": {"bytes": data, "path": f"{row:06d}.png"}, "label": label})
            if len(group) == ROWS or row == count - 1:
                writer.write_table(pa.Table.from_pylist(group, schema=writer.schema))
                group = []


LAYOUTS: dict[str, Callable[[Path, int], None]] = {"folder": _folder, "parquet": _parquet}


def _probe(layout: str, images: int, threads: int) -> Measured:
    """As `_measure`, in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="mithridate-benchmark-") as folder:
        LAYOUTS[layout](Path(folder) / "in", images)
        command = [sys.executable, "-m", "benchmarks.protecting", folder, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path) -> Measured:
    before, wall, cpu = anonymous(), time.perf_counter(), time.process_time()
    with Peak() as peak, contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["protect", str(folder / "in"), str(folder / "out"), *OPTIONS])
    if code:
        raise SystemExit(code)
    return Measured(before, peak.megabytes, time.perf_counter() - wall, time.process_time() - cpu)


def _main() -> None:
    parser = argparse.ArgumentParser(description="one measurement; `python -m benchmarks protecting` calls this")
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(json.dumps(asdict(_measure(given.folder))))


if __name__ == "__main__":
    _main()
