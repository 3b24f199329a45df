"""`mithridate export`, `import` and `verify` from the command line, on poisons of digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.core.balls import Linf
from mithridate.core.schema import to_json
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.poisoning.exchange.artefact import Artefact
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.threat import ThreatModel
from tests.command_line import Run

BALL = Linf(eps=16 / 255)


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise on 20 digits of class 3, aimed at two test images."""
    data = Reference(*Digits().load())
    rows = data.train.ids[data.train.labels == 3][:20]
    base, targets = data.train.floats(rows), data.test.ids[data.test.labels != 3][:2]
    parcel = Parcel(
        BALL.rounded(base, BALL.sample(base, stream(0, "noise"))),
        labels=data.train.labels_of(rows),
        rows=rows,
        base=data.train.pixels(rows),
        target_rows=targets,
        target_images=data.test.pixels(targets),
        target_labels=data.test.labels_of(targets),
        intended=torch.tensor([3, 3]),
        notes={"work": {"threat": to_json(ThreatModel(ball=BALL))}},
    )
    folder = tmp_path_factory.mktemp("poison") / "p"
    Artefact().write(parcel, folder, data)
    return folder


@pytest.fixture
def run(run: Run) -> Run:
    """Runs the verb of this file."""
    return lambda *arguments: run(*arguments, "--data", "digits")


def test_a_poison_of_ours_passes(run: Run, poison: Path) -> None:
    code, out, _ = run("verify", poison)
    assert code == 0
    assert out.splitlines()[0].endswith(": artefact")
    assert out.count("  ok ") == 6
    assert "largest change of a pixel 16/255" in out


def test_a_tighter_limit_fails_with_exit_code_1(run: Run, poison: Path) -> None:
    code, out, _ = run("verify", poison, "--limit", "linf:eps=8/255", "--retrain", "2")
    assert code == 1
    assert "FAILS   distance: largest change of a pixel 16/255" in out
    assert "20 of 20 images are not within the limit" in out
    assert "not trained again: what fails above would decide the outcome" in out


def test_models_are_trained_again_on_the_stored_bytes(run: Run, poison: Path) -> None:
    code, out, _ = run("verify", poison, "--retrain", "2", "--epochs", "1", "--workers", "1", "--json")
    assert code == 0
    said = json.loads(out)
    assert [finding["standing"] for finding in said["findings"]] == ["holds"] * 6
    assert (said["retrained"]["poisoned"]["n"], said["retrained"]["models"]) == (4, 2)
    assert 0.05 < said["retrained"]["accuracy"]["value"] <= 1


def test_it_travels_out_and_back(run: Run, poison: Path) -> None:
    code, out, _ = run("export", poison, "there.npz", "--to", "npz")
    assert code == 0
    assert "20 poisons in there.npz, 1 file of npz" in out
    code, out, _ = run("import", "there.npz", "back", "--pictures")
    assert code == 0
    assert "20 poisons of npz in back" in out
    assert len(list(Path("back/images").glob("*.png"))) == 20
    data = Reference(*Digits().load())
    before, after = Artefact().read(poison, data), Artefact().read(Path("back"), data)
    assert torch.equal(before.images, after.images)
    assert torch.equal(before.poison().rows, after.poison().rows)
    assert run("verify", "back")[0] == 0


def test_a_whole_poisoned_set_for_cloud_automl(run: Run, poison: Path) -> None:
    """Training images with the poison in them, the clean test images, and a table of set, path and class."""
    code, out, _ = run("export", poison, "there", "--to", "data-poisoning:mode=automl")
    assert code == 0
    data = Reference(*Digits().load())
    assert f"20 poisons in there, {1 + len(data.train) + len(data.test):,} files of data-poisoning" in out
    assert "no place for: base, target images, target rows, target labels, intended\n" in out  # labels are in the table
    poisoned = Artefact().read(poison, data).poison().apply(data.train)
    with Path("there/data.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    for part, known in (("TRAIN", poisoned), ("TEST", data.test)):
        own = [line for line in lines if line[0] == part]
        classes = [known.classes[label] for label in known.labels_of(known.ids).tolist()]
        assert own == [
            [part, f"{part.lower()}/{row}.png", name] for row, name in zip(known.ids.tolist(), classes, strict=True)
        ]
        seen = torch.stack([torch.from_numpy(np.array(Image.open(Path("there", line[1]))))[None] for line in own])
        assert torch.equal(seen, known.pixels(known.ids))
    assert run("verify", "there", "--limit", "linf:eps=16/255")[0] == 0
    assert run("import", "there", "back")[0] == 0
    assert torch.equal(Artefact().read(Path("back"), data).images, Artefact().read(poison, data).images)


def test_a_fault_that_was_planted_on_the_way_is_found(run: Run, poison: Path) -> None:
    run("export", poison, "there.npz", "--to", "npz")
    with np.load("there.npz") as opened:
        arrays = dict(opened)
    arrays["rows"] = arrays["rows"] + 1
    np.savez("off.npz", **arrays)
    code, out, _ = run("verify", "off.npz")
    assert code == 1
    assert "FAILS" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "nowhere"), "nothing at nowhere"),
        (("verify", "empty"), "empty looks like none of the known formats; say which with --format, of "),
        (("import", "empty", "out", "--format", "artefakt"), "artefact"),
        (("export", "empty", "out", "--to", "npz"), "empty has no manifest.json"),
    ],
)
def test_mistakes_are_said_in_a_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    Path("empty").mkdir()
    code, _, err = run(*arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_what_is_there_is_not_written_over(run: Run, poison: Path) -> None:
    Path("out").mkdir()
    Path("out/note").write_text("mine")
    code, _, err = run("export", poison, "out", "--to", "artefact")
    assert code == 2
    assert "out exists already; name a new folder" in err
