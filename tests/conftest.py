"""One torch thread per process, reproducible hypothesis draws, CIFAR-10 where it exists."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; worker processes of a study inherit it
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

from mithridate import cli
from tests.command_line import Run, Said

torch.set_num_threads(1)

settings.register_profile("mithridate", deadline=None, derandomize=True, database=None)
settings.load_profile("mithridate")

collect_ignore = ["fuzz"]
"""Needs atheris, and is run by hand."""

CIFAR10 = Path(
    os.environ.get("MITHRIDATE_CIFAR10", Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10")
)


@pytest.fixture(scope="session")
def shared_cifar() -> Path:
    """The folder with CIFAR-10 as `train.parquet` and `test.parquet` (Hugging Face layout)."""
    missing = [name for name in ("train.parquet", "test.parquet") if not (CIFAR10 / name).is_file()]
    if missing:
        pytest.skip(
            f"needs CIFAR-10: no {' and '.join(missing)} in the folder that MITHRIDATE_CIFAR10 names "
            "(default: ../shared/data/cifar10 beside the checkout)"
        )
    return CIFAR10


MIDDLEBURY = Path(
    os.environ.get("MITHRIDATE_MIDDLEBURY", Path(__file__).resolve().parents[2] / "shared" / "data" / "middlebury")
)


@pytest.fixture(scope="session")
def shared_stereo() -> Path:
    """The folder with the stereo pairs `teddy` and `cones`: im2.png, im6.png, disp2.pgm (times 4)."""
    if not (MIDDLEBURY / "teddy" / "disp2.pgm").is_file():
        pytest.skip(
            "needs Middlebury stereo pairs: no teddy/disp2.pgm in the folder that MITHRIDATE_MIDDLEBURY names "
            "(default: ../shared/data/middlebury beside the checkout)"
        )
    return MIDDLEBURY


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str | Path) -> Said:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(str(stop.code))
        return Said(code, *capsys.readouterr())

    return run
