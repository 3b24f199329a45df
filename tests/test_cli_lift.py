"""The command line labels pixels: it says energies and errors, writes pictures, and answers mistakes in one line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from mithridate import cli
from mithridate.core import extras
from tests.command_line import Run
from tests.test_cli import without_torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lifting.md"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Three colours with noise."""
    rng = np.random.default_rng(0)
    pixels = np.full((30, 40, 3), 50.0)
    pixels[:, 20:] = (80, 150, 90)
    pixels[8:22, 10:30] = (230, 200, 180)
    Image.fromarray(np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Random dots: left, right, and the disparities of the left one times 4 (2, and 6 in a rectangle)."""
    truth = np.full((28, 40), 2)
    truth[8:20, 16:30] = 6
    right = np.random.default_rng(0).integers(0, 256, (28, 40), dtype=np.uint8)
    rows, columns = np.mgrid[:28, :40]
    left = right[rows, np.maximum(columns - truth, 0)]
    places = tmp_path / "left.png", tmp_path / "right.png", tmp_path / "truth.pgm"
    for place, pixels in zip(places, (left, right, (4 * truth).astype(np.uint8)), strict=True):
        Image.fromarray(pixels).save(place)
    return places


def test_a_picture_is_segmented(run: Run, tmp_path: Path, picture: Path) -> None:
    cells = ("--superpixels", "cut-pursuit", "--cells", "120")
    said = run("lift", "segment", picture, "--colours", "3", *cells, "--out", "there")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("written: there")
    assert lines[-1].startswith("cut-pursuit-120")
    labels = np.asarray(Image.open(tmp_path / "there/cut-pursuit-120-labels.png"))
    assert labels.shape == (30, 40)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert (labels[9:21, 11:29] == 2).mean() > 0.9
    (outcome,) = json.loads((tmp_path / "there/result.json").read_text())["outcomes"]
    assert outcome["gap"] <= 1e-3
    assert np.asarray(Image.open(tmp_path / "there/picture.png")).std() > 10
    assert not (tmp_path / "there/curve.png").exists()


def test_stereo_is_compared_with_the_truth(run: Run, pair: tuple[Path, Path, Path]) -> None:
    left, right, truth = pair
    said = run("lift", "stereo", left, right, "--truth", truth, "--disparities", "9", "--superpixels", "none", "--json")
    assert said.code == 0, said.err
    (found,) = json.loads(said.out)
    assert found["cells"] == 28 * 40
    assert found["judged"]["visible"]["bad1"] < 0.05
    assert found["judged"]["visible"]["pixels"] < found["judged"]["all"]["pixels"] == 28 * 40
    assert found["judged"]["all"]["bad2"] <= found["judged"]["all"]["bad1"]
    few = run(
        "lift", "stereo", left, right, "--disparities", "9", "--superpixels", "none", "--sublabels", "2", "--json"
    )
    (coarser,) = json.loads(few.out)
    assert coarser["dual"] <= found["primal"]
    assert found["energy"] * (1 - 2e-3) <= coarser["energy"] < 1.2 * found["energy"]


def test_noise_is_removed_from_an_image_in_colour(run: Run, tmp_path: Path, picture: Path) -> None:
    clean = np.full((30, 40, 3), 50, np.uint8)
    clean[:, 20:] = (80, 150, 90)
    clean[8:22, 10:30] = (230, 200, 180)
    Image.fromarray(clean).save(tmp_path / "clean.png")
    said = run("lift", "denoise", picture, "--truth", "clean.png", "--superpixels", "none", "--levels", "16")
    assert said.code == 0, said.err
    (outcome,) = json.loads((tmp_path / "runs/lift/result.json").read_text())["outcomes"]
    assert outcome["judged"]["psnr"] > outcome["judged"]["psnr_before"] + 3
    assert len(list((tmp_path / "runs/lift").glob("pixels-labels-*.png"))) == 3


def test_an_image_that_is_its_own_truth_has_no_error(run: Run, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
    said = run("lift", "denoise", "white.png", "--truth", "white.png", "--levels", "2")
    assert said.code == 0, said.err
    (outcome,) = json.loads((tmp_path / "runs/lift/result.json").read_text())["outcomes"]
    assert outcome["judged"] == {"psnr": None, "psnr_before": None}
    assert "no error" in said.out


def test_kinds_and_numbers_of_cells_side_by_side(run: Run, tmp_path: Path, picture: Path) -> None:
    said = run("lift", "segment", picture, "--superpixels", "none", "cut-pursuit", "--cells", "60", "200")
    assert said.code == 0, said.err
    found = {one["name"]: one for one in json.loads((tmp_path / "runs/lift/result.json").read_text())["outcomes"]}
    assert list(found) == ["pixels", "cut-pursuit-60", "cut-pursuit-200"]
    best = found["pixels"]
    assert all(one["energy"] >= best["dual"] for one in found.values())
    assert found["cut-pursuit-60"]["cells"] < found["cut-pursuit-200"]["cells"] < best["cells"]
    assert all(one["memory_mb"] is None or one["memory_mb"] >= 0 for one in found.values())
    assert "cut-pursuit-60 against pixels: energy +" in said.out
    for name in ("picture.png", "curve.png"):
        assert np.asarray(Image.open(tmp_path / "runs/lift" / name)).std() > 10


@pytest.mark.parametrize("task", ["segment", "stereo", "denoise"])
def test_every_task_explains_its_options_without_torch(task: str) -> None:
    done = without_torch("lift", task, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: mithridate lift {task}" in done.stdout
    described = [line for line in re.split(r"│ --", done.stdout)[1:] if not re.search(r"[\w)]\.", line)]
    assert described == []
    assert "{None}" not in done.stdout


@pytest.mark.parametrize("installed", [True, False])
def test_pixels_unless_there_are_many_labels_or_a_number_of_cells(
    run: Run,
    picture: Path,
    pair: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
) -> None:
    if installed:
        pytest.importorskip("skimage", reason="scikit-image is not installed (extra: image)")
    else:
        monkeypatch.setattr("mithridate.verbs.lifts.find_spec", lambda name: None)
    kind = "slic" if installed else "cut-pursuit"
    asked = {
        "pixels": ("segment", picture, "--colours", "3"),
        f"{kind}-100": ("segment", picture, "--colours", "3", "--cells", "100"),
        f"{kind}-224": ("stereo", *pair[:2], "--disparities", "9"),  # a fifth of the pixels
    }
    for name, arguments in asked.items():
        said = run("lift", *arguments, "--json")
        assert said.code == 0, said.err
        assert [outcome["name"] for outcome in json.loads(said.out)] == [name]


COMMANDS = re.findall(r"^mithridate lift (.*?)(?:  +#.*)?$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_understood(command: str) -> None:
    told = tyro.cli(cli.VERBS["lift"], args=shlex.split(command), config=(tyro.conf.FlagCreatePairsOff,)).task
    assert told.name == command.split()[0]
    assert len(COMMANDS) >= 4


MISTAKES = {
    "no such file": (["segment", "none.png"], "no image file is called none.png"),
    "a folder": (["segment", "."], "is no ordinary file"),
    "no image": (["segment", "text.png"], "text.png: not an image that pillow can read"),
    "a negative weight": (["segment", "a.png", "--weight", "-1"], "the weight is -1; give 0 or more"),
    "one colour": (["segment", "a.png", "--colours", "1"], "1 colours; a segmentation needs 2 or more"),
    "no colour": (["segment", "a.png", "--palette", "red", "blue"], "'red' is no colour"),
    "too many cells": (["segment", "a.png", "--cells", "1200"], "1,200 cells for an image of 1,200 pixels"),
    "no cells": (["segment", "a.png", "--cells", "0"], "0 cells; give 1 or more"),
    "shrunk to nothing": (["segment", "a.png", "--shrink", "50"], "a.png is 40x30 pixels, too small to shrink by 50"),
    "no tolerance": (["segment", "a.png", "--tolerance", "0"], "the tolerance is 0"),
    "no threads": (["segment", "a.png", "--threads", "0"], "0 threads"),
    "a file for a folder": (["segment", "a.png", "--out", "a.png"], "a.png is a file; give a folder"),
    "no such device": (["segment", "a.png", "--device", "gpu9"], "device 'gpu9' cannot be used"),
    "two sizes": (["stereo", "left.png", "a.png", "--disparities", "9"], "40x28 pixels, the right one 40x30"),
    "too many disparities": (["stereo", "left.png", "right.png"], "64 disparities for images of 40 columns"),
    "a truth of another size": (
        ["stereo", "left.png", "right.png", "--disparities", "9", "--truth", "grey.png"],
        "grey.png is 40x30 pixels, the left image 40x28",
    ),
    "a truth in colour": (
        ["stereo", "left.png", "right.png", "--disparities", "9", "--truth", "a.png"],
        "a.png: not an image of disparities",
    ),
    "sublabels under a limit": (
        ["stereo", "left.png", "right.png", "--disparities", "9", "--limit", "1", "--sublabels", "2"],
        "sublabels lie between ordered labels under total-variation; truncated-variation has none",
    ),
    "more sublabels than labels": (
        ["stereo", "left.png", "right.png", "--disparities", "9", "--sublabels", "9"],
        "9 sublabels per interval for 9 labels; give 1 to 8",
    ),
    "no sublabels": (["denoise", "a.png", "--sublabels", "0"], "0 sublabels; give 1"),
    "a limit below zero": (
        ["stereo", "left.png", "right.png", "--disparities", "9", "--limit", "-1"],
        "limit",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    name: str,
    run: Run,
    tmp_path: Path,
    picture: Path,
    pair: tuple[Path, Path, Path],
) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.asarray(Image.open(picture))[:, :, 0]).save(tmp_path / "grey.png")
    arguments, message = MISTAKES[name]
    said = run("lift", *arguments)
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_slic_without_scikit_image_says_what_to_install(
    run: Run,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = extras.importlib.import_module

    def missing(name: str) -> object:
        if name.startswith("skimage"):
            raise ImportError("No module named 'skimage'")
        return real(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    said = run("lift", "segment", picture, "--superpixels", "slic")
    assert said.code == 2
    assert "pip install 'mithridate[image]'" in said.err
