"""The command line with training code of the user's own: a stranger's script of which few lines change."""

from __future__ import annotations

import difflib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mithridate.cli.pipelines import AuditOptions
from mithridate.experiments.trial import WRAPPING
from tests.command_line import Run

ROOT = Path(__file__).resolve().parents[1]
ORIGINAL, CHANGED = (ROOT / "examples" / "third_party_training" / name for name in ("train_original.py", "train.py"))
TRAINING = """
import argparse
import torch

CALLS = []

def make_net(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

def train(dataset, seed):
    CALLS.append(len(dataset))
    print("training on", len(dataset))
    model = make_net(len(dataset.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size=50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model

def main():
    return train({}, 1)

def loses_its_way(dataset, seed):
    return dataset.samples

def returns_nothing(dataset, seed):
    train(dataset, seed)

def parses(dataset, seed):
    argparse.ArgumentParser(prog="theirs").parse_args()

constant = 3
"""


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command line in this process, in a folder with training code."""
    monkeypatch.setattr(sys, "argv", ["mithridate", "audit", "--train-fn"])
    (tmp_path / "own_training.py").write_text(TRAINING)
    yield run
    for name in ("own_training", "strangers_training", "guardless"):
        sys.modules.pop(name, None)


OWN = ("--train-fn", "own_training:train")
FEW = ("--trials", "1", "--clean-victims", "1", "--workers", "1")
BADNETS = ("--attacks", "badnets", "--defenses", *FEW)
BREW = "witches-brew:steps=1,restarts=1,surrogates=1"


def trials(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json"))]


def calls() -> list[int]:
    """How many images each call of the function got."""
    return sys.modules["own_training"].CALLS


# --- the example -----------------------------------------------------------------------------------------------------


def test_ten_lines_of_the_strangers_script_are_changed_at_most() -> None:
    before, after = (path.read_text().splitlines() for path in (ORIGINAL, CHANGED))
    steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = sum(max(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal")
    assert 0 < changed <= 10
    assert len(before) > 120


def test_the_page_shows_the_lines_that_are_changed() -> None:
    before, after = (path.read_text().splitlines() for path in (ORIGINAL, CHANGED))
    said = re.search(r"```diff\n(.*?)```", (ROOT / "docs" / "own-training-code.md").read_text(), re.DOTALL)
    assert said is not None
    found = [
        line for line in difflib.unified_diff(before, after, lineterm="", n=0) if not re.match(r"---|\+\+\+|@", line)
    ]
    assert [line for line in said[1].splitlines() if line.startswith(("+", "-"))] == found


def test_both_scripts_still_run_and_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "1", "--width", "4", "--device", "cpu"])
    said = []
    for script in (ORIGINAL, CHANGED):
        runpy.run_path(str(script), run_name="__main__")
        said.append(re.sub(r"\(.* s\)", "", capsys.readouterr().out))
    assert said[0] == said[1]
    assert "test acc 0." in said[0]


def digits_folder(place: Path, per_class: int) -> Path:
    """Writes some of the digits as an image folder, the first ones of each class."""
    found = load_digits()
    for digit in range(10):
        rows = (found.target == digit).nonzero()[0]
        for split, some in (("train", rows[:per_class]), ("test", rows[per_class : 2 * per_class])):
            folder = place / split / str(digit)
            folder.mkdir(parents=True)
            for row in some:
                Image.fromarray((found.images[row] * 15).astype("uint8")).save(folder / f"{row}.png")
    return place


def test_the_strangers_script_is_audited_from_end_to_end(run: Run, tmp_path: Path) -> None:
    (tmp_path / "strangers_training.py").write_text(CHANGED.read_text())
    data = digits_folder(tmp_path / "digits", per_class=14)
    attacker = ("--model", "convnet:width=2", "--recipe", "fast", "--budget", "0.05")
    command = ("audit", "--train-fn", "strangers_training:train", "--data", data, *attacker, *FEW)
    code, out, err = run(*command, "--attacks", "badnets", BREW, "--defenses", "spectral-signatures", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    named = {row["attack"] for row in rows}
    assert named == {"badnets", "witches-brew via convnet:width=2", "random-noise", "no-attack"}
    made = trials(tmp_path / "runs/audit")
    assert {t["learner"]["train"]["function"] for t in made} == {"strangers_training:train"}
    (brew, _) = (t for t in made if t["attack"]["type"] == "witches-brew")
    assert (brew["surrogate"]["model"], brew["surrogate"]["epochs"]) == ("convnet:width=2", 12)
    assert all(t["surrogate"] is None for t in made if t["attack"]["type"] != "witches-brew")
    assert "black box" in (tmp_path / "runs/audit/report.html").read_text()
    assert "test acc" in err
    again = run("trial", next(tmp_path.glob("runs/audit/trials/*/trial.json")), "--workers", "1")
    assert again[0] == 0, again[2]


# --- who trains what -------------------------------------------------------------------------------------------------


def test_by_default_the_attacker_has_another_model_and_defences_are_those_that_wrap() -> None:
    from mithridate.verbs.pipelines import audit_panels

    options = AuditOptions(train_fn="tests.test_cli_own_code:trained_by_somebody")
    panels, _ = audit_panels(options)
    assert [type(panel.attack).__name__ for panel in panels] == ["BadNets", "WitchesBrew"]
    assert {panel.scenario.learner.train for panel in panels} == {trained_by_somebody}  # pyright: ignore
    assert [getattr(panel.scenario.surrogate, "model", None) for panel in panels] == [None, "convnet"]
    kinds = [one.kind for panel in panels for stack in panel.defenses for one in stack]
    assert kinds
    assert set(kinds) <= set(WRAPPING)


def trained_by_somebody(dataset, seed):
    raise AssertionError("nothing is trained before it is asked for")


def test_from_scratch_gives_the_attacker_the_function(run: Run, tmp_path: Path) -> None:
    code, _, err = run("audit", *OWN, "--attacks", BREW, "--defenses", *FEW, "--scenarios", "from-scratch")
    assert code == 0, err
    assert all(t["surrogate"] is None for t in trials(tmp_path / "runs/audit"))
    assert "Grey box" in (tmp_path / "runs/audit/report.html").read_text()


def test_craft_trains_its_surrogates_with_the_function(run: Run, tmp_path: Path) -> None:
    code, out, err = run("craft", *OWN, "--attack", "witches-brew:steps=1,restarts=1,surrogates=2", "--workers", "1")
    assert (code, "poisoned images" in out) == (0, True), err
    (written,) = tmp_path.glob("runs/craft/poisons/*/manifest.json")
    assert json.loads(written.read_text())["work"]["surrogate"]["train"]["function"] == "own_training:train"
    assert calls() == [1000, 1000, 1000]  # the rehearsal, and two surrogates


def test_a_learner_that_builds_its_module_is_kept_on_disk(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "own_training.py").open("a") as code:
        code.write("import mithridate\nlearner = mithridate.learner(train, model=make_net)\n")
    done = run("audit", "--train-fn", "own_training:learner", *BADNETS, "--keep-models")
    assert done[0] == 0, done[2]
    assert len(list((tmp_path / "runs/audit/fits").glob("*/weights.safetensors"))) == 3


def test_a_plan_says_how_long_it_takes_and_prints_nothing_of_the_function(
    run: Run,
) -> None:
    code, out, err = run("audit", *OWN, "--plan")
    assert code == 0, err
    assert "to go" in out
    assert "training on" not in out
    assert "training on 1000" in err


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no module": (["nowhere:train"], "'nowhere:train': no module 'nowhere'"),
    "no function": (["own_training:trian"], "own_training has no 'trian'; did you mean train?"),
    "no name": (["own_training"], "write package.module:name"),
    "a file": (["own_training.py:train"], "names a file; name the module in it, from the current folder: own"),
    "no function at all": (["own_training:constant"], "train is a int; give a function of (dataset, seed)"),
    "other arguments": (["own_training:main"], "main() cannot be called with a data set and a seed"),
    "raises": (["own_training:loses_its_way"], "in loses_its_way, raised AttributeError: 'TrainingImages' object has"),
    "returns nothing": (["own_training:returns_nothing"], "returns_nothing returned NoneType; it must return"),
    "parses": (["own_training:parses"], "parses asked the process to end (exit code 2): it reads the command line"),
    "epochs": (["own_training:train", "--epochs", "3"], "--epochs is a setting of recipes, and --train-fn trains"),
    "start": (["own_training:train", "--start-from", "x.safetensors"], "load the weights in the function"),
    "mixup": (["own_training:train", "--defenses", "mixup"], "mixup changes the training recipe, but train-function"),
    "transfer": (["own_training:train", "--scenarios", "transfer"], "transfer starts from weights, which only"),
    "two models": (["own_training:train", "--model", "lenet", "--surrogate", "mlp"], "both name the attacker's model"),
    "idle model": (
        ["own_training:train", "--model", "lenet", "--scenarios", "from-scratch"],
        "--model is about the attacker's own model, but in from-scratch the attacker trains with your function",
    ),
    "weights": (["own_training:train", "--keep-models"], "nothing says how to build the module of train"),
    "metapoison": (
        ["own_training:train", "--attacks", "metapoison", "--scenarios", "from-scratch"],
        "metapoison differentiates through training steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_before_anything_is_trained(name: str, run: Run, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    code, out, err = run("audit", *BADNETS, "--train-fn", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_script_without_a_guard_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "guardless.py").write_text("import argparse\nargparse.ArgumentParser(prog='theirs').parse_args()\n")
    code, _, err = run("audit", *BADNETS, "--train-fn", "guardless:train")
    assert code == 2
    assert "guardless.py, line 2, raised SystemExit: 2; it runs as a script does" in err
