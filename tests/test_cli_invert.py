"""The command line: tiny inversions from end to end, one leak of the user's own, mistakes answered in one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from mithridate import cli
from mithridate.core.classifier import save_weights
from mithridate.core.models import build
from mithridate.core.schema import choices, to_json
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.leaks import LeakTrial
from mithridate.inversion.attack import Inversion
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.client import Client, LeakDefense

MODEL = ("--model", "mlp:width=8")
TWO_STEPS = ("--attacks", "inverting-gradients:steps=2", "--workers", "1")
TINY = (*MODEL, *TWO_STEPS, "--epochs", "0", "--cases", "1", "--batch", "1")
SPARSE = (*TINY, "--defenses", "sparsify")


@pytest.fixture
def leak(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A leak on disk, of two digits of different classes, and these images."""
    _, test = Digits().load()
    rows = torch.stack([(test.labels == label).nonzero()[0, 0] for label in (3, 8)])
    images = test.floats(rows)
    model = build("mlp:width=8", 10, (1, 8, 8), 0)
    sent = Client(batch=2, tells_labels=False).share(model, images, test.labels_of(rows), seed=0)
    return sent.save(tmp_path / "leak.safetensors"), images


def trials(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json"))]


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [Inversion, LeakDefense], ids=lambda family: family.__name__)
def test_the_help_of_invert_names_every_method(
    family: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main(["invert", "--help"])
    words = set(re.findall(r"(?<![\w-])[a-z][a-z-]*", re.sub(r"[\s│]+", " ", capsys.readouterr().out)))
    assert len(choices(family)) >= 5
    assert [name for name in choices(family) if name not in words] == []


# --- from end to end -------------------------------------------------------------------------------------------------


def test_an_inversion_prints_its_table_and_where_the_report_is(run, tmp_path: Path) -> None:
    said = run("invert", *SPARSE)
    assert said.code == 0, said.err
    for word in ("inverting-gradients", "sparsify", "none"):
        assert word in said.out
    command = f"mithridate invert {' '.join(SPARSE)}"
    assert said.out.splitlines()[-2:] == ["report: runs/invert/report.html", f"again:  {command}"]
    assert (tmp_path / "runs/invert/report.html").is_file()
    assert json.loads((tmp_path / "runs/invert/study.json").read_text())["command"] == command
    assert sorted(len(trial["defenses"]) for trial in trials(tmp_path / "runs/invert")) == [0, 1]


def test_json_is_all_there_is_on_standard_output(run) -> None:
    said = run("invert", *SPARSE, "--json")
    rows = json.loads(said.out)["rows"]
    assert [(row["defense"], row["batch"], row["trials"]) for row in rows] == [("none", 1, 1), ("sparsify", 1, 1)]
    assert "report: runs/invert/report.html" in said.err


def test_options_become_settings_of_the_trials(run, tmp_path: Path) -> None:
    tiny = (*MODEL, *TWO_STEPS, "--epochs", "0", "--cases", "2", "--batch", "2", "3", "--seed", "7", "--out", "here")
    said = run("invert", *tiny, "--defenses", "sparsify+quantize:bits=4", "--adaptive", "--distinct")
    assert said.code == 0, said.err
    made = trials(tmp_path / "here")
    assert len(made) == 2 * 2 * 3
    assert {trial["seed"] for trial in made} == {7, 8}
    assert {trial["client"]["batch"] for trial in made} == {2, 3}
    assert {(len(trial["defenses"]), trial["adaptive"]) for trial in made} == {(0, False), (2, False), (2, True)}
    assert all(trial["distinct"] for trial in made)


def test_unknown_labels_and_batch_statistics_reach_the_client(run, tmp_path: Path) -> None:
    said = run("invert", *TINY, "--defenses", "--unknown-labels", "--batch-statistics")
    assert said.code == 0, said.err
    (made,) = trials(tmp_path / "runs/invert")
    assert made["client"]["tells_labels"] is False
    assert made["client"]["sharing"]["batch_statistics"] is True


def test_untrained_models_are_measured_beside_trained_ones(run, tmp_path: Path) -> None:
    trained = (*MODEL, *TWO_STEPS, "--epochs", "1", "--cases", "1", "--batch", "1")
    assert run("invert", *trained, "--defenses", "--untrained").code == 0
    assert sorted(trial["recipe"]["epochs"] for trial in trials(tmp_path / "runs/invert")) == [0, 1]


def test_a_checkpoint_is_measured_as_it_is(run, tmp_path: Path) -> None:
    train, _ = Digits().load()
    save_weights(Recipe(model="mlp:width=8").module(train, 5), tmp_path / "weights.safetensors")
    begin = (*MODEL, *TWO_STEPS, "--cases", "1", "--batch", "1", "--defenses")
    assert run("invert", *begin, "--start-from", "weights.safetensors").code == 0
    (made,) = trials(tmp_path / "runs/invert")
    assert made["recipe"]["epochs"] == 0
    assert made["recipe"]["start_from"].endswith("weights.safetensors")


def test_a_plan_trains_nothing_and_writes_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "fit", lambda *_, **__: pytest.fail("a plan trained a model"))
    plan = (*MODEL, *TWO_STEPS, "--epochs", "30", "--cases", "3", "--batch", "1", "2", "--defenses", "sparsify")
    said = run("invert", *plan, "--plan")
    assert said.code == 0, said.err
    assert "12 inversions in 4 cells; 0 are finished" in said.out
    assert "1 model to train, then about" in said.out
    assert not (tmp_path / "runs" / "invert" / "trials").exists()


def test_a_plan_knows_what_is_finished(run) -> None:
    assert run("invert", *SPARSE).code == 0
    said = run("invert", *SPARSE, "--cases", "2", "--plan")
    assert "4 inversions in 2 cells; 2 are finished" in said.out
    assert "0 models to train" in said.out


# --- one leak of the user's own --------------------------------------------------------------------------------------


def test_a_leak_of_the_user_becomes_images(run, leak, tmp_path: Path) -> None:
    path, truth = leak
    said = run("invert", "--leak", path, *MODEL, "--attacks", "analytic-linear", "--workers", "1")
    assert said.code == 0, said.err
    assert "2 images by analytic-linear, labels 3, 8" in said.out
    images, again = said.out.splitlines()[-2:]
    assert images == "images: runs/invert-leak/all.png"
    assert again.startswith(f"again:  mithridate invert --leak {path}")
    folder = tmp_path / "runs/invert-leak"
    assert {file.name for file in folder.glob("image-*.png")} == {"image-000-class-3.png", "image-001-class-8.png"}
    with Image.open(folder / "all.png") as sheet:
        assert sheet.width > sheet.height  # one row of two
    found = torch.from_numpy(load_file(folder / "reconstruction.safetensors")["images"])
    assert torch.allclose(found, truth, atol=1e-3)


def test_the_facts_of_a_leak_as_json(run, leak) -> None:
    path, _ = leak
    for _ in range(2):  # the folder of the first takes the second
        said = run("invert", "--leak", path, *MODEL, "--attacks", "analytic-linear", "--out", "mine", "--json")
        facts = json.loads(said.out)
        assert (said.code, facts["folder"], facts["labels"]) == (0, "mine", [3, 8])
        assert facts["distance"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--attacks", "analytic-linear", "deep-leakage"), "one attack, but 2 are named"),
        ((*MODEL, "--attacks", "analytic-linear", "--batch", "4"), "--batch is about simulated clients"),
        (("--model", "mlp:width=9", "--attacks", "analytic-linear"), "the weights are not those of this model"),
        ((*MODEL, "--attacks", "gradinversion"), "BatchNorm"),
        ((*MODEL, "--attacks", "analytic-linear", "--out", "papers"), "holds other things (thesis.tex)"),
    ],
)
def test_a_leak_that_cannot_be_inverted_writes_nothing(arguments, message: str, run, leak, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.tex").touch()
    said = run("invert", "--leak", leak[0], *arguments, "--workers", "1")
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert not (tmp_path / "runs").exists()
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["thesis.tex"]


# --- trials, studies and reports of leaks ----------------------------------------------------------------------------


def test_a_report_is_written_again_from_its_folder(run, tmp_path: Path) -> None:
    run("invert", *SPARSE)
    said = run("report", "runs/invert", "--out", "pages/mine.html", "--json")
    assert said.code == 0, said.err
    assert [row["defense"] for row in json.loads(said.out)["rows"]] == ["none", "sparsify"]
    assert "sparsify" in (tmp_path / "pages/mine.html").read_text()


def test_a_stored_trial_runs_again(run, tmp_path: Path) -> None:
    recipe = Recipe(model="mlp:width=8", epochs=0, transforms=())
    trial = LeakTrial(data=Digits(train=100), recipe=recipe, attack=InvertingGradients(steps=2), seed=3)
    (tmp_path / "trial.json").write_text(json.dumps(to_json(trial)))
    said = run("trial", "trial.json", "--workers", "1", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["rows"][0]["trials"] == 1
    assert [made["seed"] for made in trials(tmp_path / "runs/trial")] == [3]


STUDY = """
import mithridate as mi

def small():
    recipe = mi.Recipe(model="mlp:width=8", epochs=0, transforms=())
    attack = mi.InvertingGradients(steps=2)
    return [mi.LeakTrial(data=mi.Digits(train=100), recipe=recipe, attack=attack, seed=seed) for seed in range(3)]

def both():
    recipe = mi.Recipe(model="mlp:width=8", epochs=1, transforms=())
    return [
        *small(),
        mi.Trial(data=mi.Digits(train=100), threat=mi.BadNets.threat, attack=mi.BadNets(), learner=recipe),
    ]
"""


def test_a_study_of_leaks_is_run_in_part_and_goes_on(run, tmp_path: Path) -> None:
    (tmp_path / "leaks_of_the_user.py").write_text(STUDY)
    said = run("study", "leaks_of_the_user:small", "--limit", "2", "--workers", "1")
    assert said.code == 0, said.err
    assert "report: runs/leaks-of-the-user-small/report.html" in said.out
    said = run("study", "leaks_of_the_user:small", "--workers", "1", "--plan")
    assert "3 inversions in 1 cell; 2 are finished" in said.out
    said = run("study", "leaks_of_the_user:both", "--workers", "1")
    assert said.code == 2
    assert "a study holds one kind of trials, but here are inversions of leaks and poisoning trials" in said.err
    sys.modules.pop("leaks_of_the_user", None)


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown attack": (["--attacks", "inverting-gradient"], "'inverting-gradient'; did you mean inverting-gradients?"),
    "unknown defence": (["--defenses", "sparsfy"], "'sparsfy'; did you mean sparsify?"),
    "misspelt setting": (["--attacks", "deep-leakage:step=9"], "no setting 'step'; did you mean steps?"),
    "no attacks": (["--attacks"], "no attack is named"),
    "no batch sizes": (["--batch"], "no batch size is named"),
    "random weights and given ones": (["--untrained", "--start-from", "weights.safetensors"], "choose one"),
    "no such weights": (["--start-from", "none.safetensors", "--defenses"], "none.safetensors"),
    "larger than the test set": ([*TINY, "--batch", "900", "--defenses"], "but the test set has 797; use a smaller"),
    "more labels than classes": ([*TINY, "--distinct", "--batch", "11", "--defenses"], "needs 11 classes"),
    "no images": ([*TINY, "--batch", "0"], "batch is 0"),
    "no cases": (["--cases", "0"], "cases is 0; at least one"),
    "no workers": (["--workers", "0"], "workers is 0; at least 1"),
    "defences in the wrong order": (
        [*TINY, "--defenses", "clip-and-noise+local-steps"],
        "before clip-and-noise",
    ),
    "mixing one image": ([*TINY, "--defenses", "mixing"], "use a batch of 2 or more"),
    "an attack that needs BatchNorm": ([*TINY, "--attacks", "gradinversion", "--defenses"], "BatchNorm"),
    "no such leak": (["--leak", "none.safetensors", *TWO_STEPS], "none.safetensors: there is no such file"),
    "no leak": (["--leak", "notes.txt", *TWO_STEPS], "notes.txt cannot be read as safetensors"),
    "unknown model": (["--model", "lenett", *TWO_STEPS], "did you mean lenet?"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name: str, run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    arguments, message = MISTAKES[name]
    said = run("invert", *arguments)
    assert said.code == 2
    assert message in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "runs").exists()
