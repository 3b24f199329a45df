"""`mithridate protect` from the command line, on small folders and parquet files of digits."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mithridate.core.sources import Digits
from tests.command_line import Run

TINY = ("--model", "mlp:width=8", "--epochs", "1", "--train-on", "60", "--workers", "1", "--steps", "2")
COUNT = 60


def digits() -> list[tuple[Image.Image, int]]:
    train, _ = Digits().load()
    return [(Image.fromarray(train.images[row, 0].numpy()), int(train.labels[row])) for row in range(COUNT)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty digits as class folders, every third one larger, with a file beside them."""
    home = tmp_path / "photos"
    for row, (image, label) in enumerate(digits()):
        file = home / str(label) / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        (image.resize((20, 13)) if row % 3 == 0 else image).save(file)
    (home / "LICENSE.txt").write_text("mine")
    return home


@pytest.fixture
def run(run: Run) -> Run:
    """Runs the verb of this file."""
    return lambda *arguments: run("protect", *arguments)


def largest_change(old: Path, new: Path) -> int:
    """Largest change of any pixel value of 255, over all images of two folders with the same names."""
    moved = 0
    for file in sorted(old.rglob("*.png")):
        pair = [np.asarray(Image.open(root / file.relative_to(old)), int) for root in (old, new)]
        assert pair[0].shape == pair[1].shape
        moved = max(moved, int(np.abs(pair[0] - pair[1]).max()))
    return moved


def test_a_folder_is_protected_within_a_typed_fraction(run: Run, folder: Path) -> None:
    code, out, _ = run(folder, "safe", "--eps", "20/255", *TINY)
    assert code == 0
    assert largest_change(folder, Path("safe")) == 20
    assert Path("safe/LICENSE.txt").read_text() == "mine"
    assert "60 images protected in safe (png); as stored, no pixel value moved by more than 20/255" in out
    assert "record: safe.record/manifest.json" in out
    assert out.rstrip().splitlines()[-1].startswith("again:  mithridate protect")
    manifest = json.loads(Path("safe.record/manifest.json").read_text())
    assert manifest["images"] == COUNT
    assert manifest["eps"] == pytest.approx(20 / 255)
    assert manifest["settings"]["method"]["steps"] == 2


def test_a_second_run_has_nothing_to_do_and_another_setting_is_refused(run: Run, folder: Path) -> None:
    _, first, _ = run(folder, "safe", *TINY)
    before = {file: file.stat().st_mtime_ns for file in Path("safe").rglob("*.png")}
    code, again, _ = run(folder, "safe", *TINY)
    assert code == 0
    assert again == first
    assert before == {file: file.stat().st_mtime_ns for file in Path("safe").rglob("*.png")}
    code, _, err = run(folder, "safe", "--eps", "4/255", *TINY)
    assert code != 0
    assert "was begun with another eps: 0.0313" in err


def test_a_check_trains_models_of_both_kinds(run: Run, folder: Path) -> None:
    code, out, _ = run(folder, "safe", *TINY, "--check", "--models", "2")
    assert code == 0
    assert "check: 2 models each, 49 images of 64x64, 11 clean test images" in out
    assert "trained on protected: " in out
    assert "Welch's test, one-sided: p" in out
    check = json.loads(Path("safe.record/manifest.json").read_text())["check"]
    assert check["clean"]["n"] == check["protected"]["n"] == 2


def test_parquet_becomes_parquet(run: Run, tmp_path: Path) -> None:
    images, labels = [], []
    for image, label in digits():
        file = io.BytesIO()
        image.save(file, "png")
        images.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    pq.write_table(pa.table({"image": images, "label": labels, "id": list(range(COUNT))}), tmp_path / "train.parquet")
    code, out, _ = run("train.parquet", "safe", *TINY, "--json")
    assert code == 0
    said = json.loads(out)
    table = pq.read_table("safe/train.parquet")
    assert table["id"].to_pylist() == list(range(COUNT))
    assert table["label"].to_pylist() == labels
    assert said["files"] == {"train.parquet": hashlib.sha256(Path("safe/train.parquet").read_bytes()).hexdigest()}
    for old, new in zip(images, table["image"].to_pylist(), strict=True):
        pixels = [np.asarray(Image.open(io.BytesIO(one["bytes"])), int) for one in (old, new)]
        assert 0 < np.abs(pixels[0] - pixels[1]).max() <= 8


def test_jpeg_is_written_where_asked_for_and_measured(run: Run, folder: Path) -> None:
    code, out, _ = run(folder, "safe", "--jpeg", "30", *TINY)
    assert code == 0
    assert not list(Path("safe").rglob("*.png"))
    assert len(list(Path("safe").rglob("*.jpg"))) == COUNT
    assert "60 images in safe (jpeg, quality 30), which changes pixels besides:" in out
    assert "what protects may be lost; --check measures that" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "badnets"), "badnets is no way to protect a release; name one of adversarial-release, "),
        (("--method", "class-wise-noise", "--steps", "3"), "class-wise-noise takes no steps; leave --steps out"),
        (("--train-on", "1"), "train_on is 1; a surrogate needs images of two classes at least"),
        (("--eps", "eight"), "eight"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(
    run: Run, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [argument for argument in TINY if argument not in ("--steps", "2")]
    code, out, err = run(folder, "safe", *given, *arguments)
    assert code != 0
    assert said in out + err
    assert not Path("safe").exists()


def test_a_folder_that_is_not_ours_is_not_written_to(run: Run, folder: Path) -> None:
    Path("safe").mkdir()
    (Path("safe") / "note").write_text("mine")
    code, _, err = run(folder, "safe", *TINY)
    assert code != 0
    assert "safe exists already, and nothing at safe.record says that it is ours" in err
    assert [file.name for file in Path("safe").iterdir()] == ["note"]


def test_what_has_no_files_is_refused(run: Run) -> None:
    code, _, err = run("digits", "safe", *TINY)
    assert code != 0
    assert "digits has no image files; name an image folder, parquet files or hub:OWNER/NAME" in err
