"""The command line: help without torch, mistakes answered in one line, and tiny audits from end to end."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mithridate
from mithridate import cli
from mithridate.core.schema import choices, to_json
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defense import Defense

SOURCES = str(Path(mithridate.__file__).parents[1])
TINY = ["--model", "convnet:width=4", "--epochs", "1", "--workers", "1"]
BADNETS = ["--attacks", "badnets", "--defenses", "--trials", "3", "--clean-victims", "1", *TINY]
BREW = ["--attacks", "witches-brew:steps=2,surrogates=1", "--defenses", "--trials", "2", "--clean-victims", "1", *TINY]


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCES, "COLUMNS": "100", **environment},
    )


def image(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def folder_of(place: Path, counts: dict[str, int], first: int = 0, size: int = 8) -> Path:
    """Writes an image folder with so many random images of each class."""
    for number, (name, count) in enumerate(counts.items()):
        (place / name).mkdir(parents=True)
        for index in range(count):
            (place / name / f"{index}.png").write_bytes(image(first + 1000 * number + index, size))
    return place


# --- the verbs -------------------------------------------------------------------------------------------------------


NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch was imported")

sys.meta_path.insert(0, NoTorch())
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where importing torch is an error."""
    return in_new_process(f"{NO_TORCH}from mithridate.cli import main\nsys.exit(main({list(arguments)}))")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_verbs_are_listed_without_torch(arguments: tuple[str, ...]) -> None:
    done = without_torch(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in cli.VERBS:
        assert re.search(rf"^  {verb} +\w.+\.$", done.stdout, re.MULTILINE)


def test_the_version_is_told_without_torch() -> None:
    assert without_torch("--version").stdout == f"mithridate {mithridate.__version__}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_its_options_without_torch(verb: str) -> None:
    done = without_torch(verb, "--help")
    assert done.returncode == 0
    assert f"usage: mithridate {verb}" in done.stdout
    described = [line for line in re.split(r"│ --", done.stdout)[1:] if not re.search(r"[\w)]\.", line)]
    assert described == []
    assert "{None}" not in done.stdout


@pytest.mark.parametrize(("family", "hidden"), [(Attack, {"random-noise", "no-attack"}), (Defense, set())])
def test_the_help_of_audit_names_every_method(family: type, hidden: set[str], run) -> None:
    shown = re.sub(r"[\s│]+", " ", run("audit", "--help").out)
    assert [name for name in choices(family) if name not in hidden and name not in shown] == []


def test_an_unknown_verb_is_answered_with_the_nearest() -> None:
    done = without_torch("audti")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no verb is called 'audti'; did you mean audit?")
    assert done.stdout == ""


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    done = without_torch("audit", "--trails", "3")
    assert done.returncode == 2
    assert "--trials" in done.stderr


def test_the_module_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mithridate.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert done.stdout.startswith("mithridate ")


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "budget above 1": (["audit", *BADNETS, "--budget", "1.5"], "budget is 1.5; it is a fraction of the training set"),
    "budget of no row": (["audit", *BREW, "--budget", "1e-10"], "is 0 rows; use at least 0.001"),
    "budget of 0": (["audit", *BREW, "--budget", "0"], "budget is 0; it is a fraction of the training set"),
    "budget beyond a class": (["audit", *BREW, "--budget", "0.5"], "use a budget of at most"),
    "eps of 8": (["audit", *BREW, "--eps", "8"], "eps is 8; pixels lie in [0, 1], so write 8/255"),
    "eps no number": (["audit", *BREW, "--eps", "8/x"], "--eps"),
    "unknown attack": (["audit", "--attacks", "witches-brw"], "'witches-brw'; did you mean witches-brew?"),
    "unknown defence": (["audit", "--defenses", "mixupp"], "'mixupp'; did you mean mixup?"),
    "misspelt setting": (["audit", "--attacks", "witches-brew:step=9"], "no setting 'step'; did you mean steps?"),
    "setting no number": (["audit", "--attacks", "witches-brew:steps=many"], "'many' is not a number"),
    "defences in the wrong order": (
        ["audit", "--attacks", "badnets", "--defenses", "partition-vote+mixup", *TINY],
        "put mixup first",
    ),
    "wrong goal": (["audit", "--attacks", "badnets:clean_label=maybe"], "neither true nor false"),
    "no attacks": (["audit", "--attacks"], "no attack to audit"),
    "unknown scenario": (["audit", "--scenarios", "trasnfer"], "did you mean transfer?"),
    "unknown preset": (["audit", "--preset", "smal"], "did you mean small?"),
    "a preset without its data": (["audit", "--preset", "small"], "--data PATH/TO/cifar10"),
    "unknown model": (["audit", "--model", "convnt"], "convnet"),
    "unknown option of a model": (["audit", "--model", "convnet:widht=4"], "width"),
    "no trials": (["audit", "--trials", "0"], "trials is 0; at least 1"),
    "no workers": (["audit", "--workers", "0"], "workers is 0; at least 1"),
    "no device": (["audit", "--device", "gpu"], "device 'gpu' cannot be used"),
    "no such data": (["audit", "--data", "nowhere"], "no data at 'nowhere'"),
    "limits on digits": (["audit", "--per-class", "5"], "digits takes neither per_class nor size"),
    "several doses for one poison": (["craft", "--eps", "0.1", "0.2"], "one eps and one budget"),
    "no trial file": (["trial", "none.json"], "none.json: No such file or directory"),
    "no study module": (["study", "nowhere:small"], "no module 'nowhere'"),
    "no study function": (["study", "json:smal"], "json has no 'smal'"),
    "a study that is no name": (["study", "studies"], "write package.module:name"),
    "a study of nothing": (["study", "json:loads", "--limit", "0"], "limit is 0"),
    "no results": (["report", "."], "is no results folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name: str, run, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    said = run(*arguments)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    if "mithridate audit --help" not in said.err:  # tyro draws a box
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_large_eps_is_warned_about(run) -> None:
    said = run("audit", *BREW, "--eps", "0.3", "--plan")
    assert said.code == 0
    assert said.err.startswith("warning: eps is 0.300 (more than 64/255)")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 4}, "at least two"),
        ({}, "no"),
    ],
)
def test_a_folder_needs_images_of_two_classes(counts: dict[str, int], message: str, run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", counts)
    (tmp_path / "pets").mkdir(exist_ok=True)
    said = run("audit", "--data", "pets", *BADNETS)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert "pets" in said.err
    assert message in said.err


def test_a_class_without_test_images_is_named(run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets" / "train", {"cat": 9, "dog": 9, "owl": 9})
    folder_of(tmp_path / "pets" / "test", {"cat": 5, "dog": 5}, first=50)
    said = run("audit", "--data", "pets", *BREW, "--budget", "0.05")
    assert (said.code, said.out) == (2, "")
    assert "no test image of class 'owl'" in said.err


def test_a_corrupt_image_is_named(run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", {"cat": 6, "dog": 6})
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(image(1)[:60])
    said = run("audit", "--data", "pets", *BADNETS)
    assert said.code == 2
    assert "3.png" in said.err


def test_images_of_different_sizes_are_answered_with_the_option(run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", {"cat": 6, "dog": 6})
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(image(1, size=12))
    said = run("audit", "--data", "pets", *BADNETS)
    assert said.code == 2
    assert "size=" in said.err


def test_a_label_outside_the_classes_is_named(run, tmp_path: Path) -> None:
    columns = {"image": [{"bytes": image(i), "path": None} for i in range(12)], "label": [0, 1, 2] * 3 + [0, 1, 7]}
    names = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}
    file = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(file, tmp_path / "train.parquet")
    said = run("audit", "--data", "train.parquet", *BADNETS)
    assert said.code == 2
    assert "label 7" in said.err


MODELS = """
import torch

def wrong_width(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(classes + 1))

def headless(classes):
    return torch.nn.Sequential(torch.nn.Conv2d(1, classes, 8), torch.nn.Flatten())
"""


@pytest.mark.parametrize(
    ("model", "attack", "message"),
    [
        ("wrong_width", "badnets", "11"),
        ("headless", "poison-frogs", "no final Linear"),
        ("headles", "badnets", "did you mean headless?"),
    ],
)
def test_a_model_that_cannot_serve_is_found_before_training(
    model: str, attack: str, message: str, run, tmp_path: Path
) -> None:
    (tmp_path / "models_of_the_user.py").write_text(MODELS)
    said = run("audit", "--attacks", attack, *TINY, "--model", f"models_of_the_user:{model}")
    sys.modules.pop("models_of_the_user", None)
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "runs").exists()


def test_a_study_that_returns_something_else_is_a_mistake(run, tmp_path: Path) -> None:
    (tmp_path / "studies_of_the_user.py").write_text("def numbers():\n    return [1]\n\ndef none():\n    return []\n")
    assert "returned int where a list of Trial was expected" in run("study", "studies_of_the_user:numbers").err
    assert "returned no trials" in run("study", "studies_of_the_user:none").err


def test_a_damaged_trial_file_is_a_mistake(run, tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text("{")
    assert "trial.json is damaged" in run("trial", "trial.json").err
    (tmp_path / "trial.json").write_text('{"sead": 1}')
    assert "no setting 'sead'; did you mean seed?" in run("trial", "trial.json").err


def test_a_traceback_is_there_for_who_wants_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITHRIDATE_DEBUG", "1")
    with pytest.raises(ValueError, match=r"budget is 1\.5"):
        run("audit", *BADNETS, "--budget", "1.5")


# --- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_would_run_and_runs_nothing(run, tmp_path: Path) -> None:
    said = run("audit", *BADNETS, "--plan")
    assert said.code == 0
    assert "9 trials (0 finished), 9 poisons (0 made), 1 shared fits, 6 poisoned victims" in said.out
    assert re.search(r"minute|second", said.out)
    assert "3 paired targets can show nothing" in said.out
    assert not (tmp_path / "runs").exists()


# --- from end to end -------------------------------------------------------------------------------------------------


def test_an_audit_prints_its_table_and_where_the_report_is(run, tmp_path: Path) -> None:
    said = run("audit", *BADNETS, "--keep-models")
    assert said.code == 0
    for words in ("badnets", "random-noise", "no-attack", "exact paired p"):
        assert words in said.out
    command = f"mithridate audit {' '.join(BADNETS)} --keep-models"
    assert said.out.splitlines()[-3:] == [
        "report: runs/audit/report.html",
        "models: runs/audit/load_model.py loads them",
        f"again:  {command}",
    ]
    assert (tmp_path / "runs/audit/report.html").is_file()
    assert json.loads((tmp_path / "runs/audit/study.json").read_text())["command"] == command
    fits = next(iter(runpy.run_path("runs/audit/load_model.py")["VICTIMS"].values()))
    assert (tmp_path / "runs/audit/fits" / fits[0] / "weights.safetensors").is_file()


def test_json_is_all_there_is_on_standard_output(run) -> None:
    said = run("audit", *BADNETS, "--json")
    rows = json.loads(said.out)["rows"]
    assert [(row["attack"], row["trials"]) for row in rows] == [("badnets", 3), ("random-noise", 3), ("no-attack", 3)]
    assert "report: runs/audit/report.html" in said.err


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, runs = Trial.run, []

    def interrupted(trial, *rest, **settings):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(trial)
        return real(trial, *rest, **settings)

    monkeypatch.setattr(Trial, "run", interrupted)
    said = run("audit", *BADNETS)
    assert said.code == 130
    assert "2 of 9 trials are finished in runs/audit" in said.err
    assert said.err.splitlines()[-1].endswith(f"mithridate audit {' '.join(BADNETS)}")
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/audit/trials/*/result.json")}
    assert len(done) == 2

    monkeypatch.setattr(Trial, "run", real)
    assert run("audit", *BADNETS).code == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(tmp_path.glob("runs/audit/trials/*/result.json"))) == 9


def test_failed_trials_are_listed_and_the_others_stay(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Trial.run

    def sometimes(trial, *rest, **settings):
        if trial.seed == 1:
            raise RuntimeError("no space left")
        return real(trial, *rest, **settings)

    monkeypatch.setattr(Trial, "run", sometimes)
    said = run("audit", *BADNETS)
    assert said.code == 1
    assert "error: 3 of 9 trials failed; 6 are finished in runs/audit" in said.err
    assert "badnets, seed 1" in said.err
    assert "RuntimeError: no space left" in said.err
    assert (tmp_path / "runs/audit/report.html").is_file()


def test_a_folder_with_results_of_other_data_is_left_alone(run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", {"cat": 30, "dog": 30})
    assert run("audit", *BADNETS, "--trials", "1", "--out", "here").code == 0
    before = (tmp_path / "here/study.json").read_text()
    said = run("audit", "--data", "pets", *BADNETS, "--trials", "1", "--out", "here")
    assert said.code == 2
    assert "here holds results on data" in said.err
    assert "--out" in said.err
    assert (tmp_path / "here/study.json").read_text() == before


def test_a_folder_of_another_schema_is_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/study.json").write_text('{"schema": 99, "fingerprints": [], "versions": {}}')
    said = run("audit", *BADNETS, "--out", "here")
    assert said.code == 2
    assert "schema 99" in said.err


def test_a_folder_of_other_things_is_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/thesis.tex").touch()
    said = run("audit", *BADNETS, "--out", "here")
    assert said.code == 2
    assert "holds other things (thesis.tex)" in said.err


def test_images_of_the_user_are_audited(run, tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", {"cat": 30, "dog": 30})
    said = run("audit", "--data", "pets", *BREW, "--budget", "0.1", "--eps", "8/255", "--json")
    assert said.code == 0
    settings = [row["cell"]["settings"] for row in json.loads(said.out)["rows"]]
    assert {s["threat"]["ball"]["eps"] for s in settings if s["attack"]["type"] != "no-attack"} == {8 / 255}
    assert {(s["data"]["path"], s["threat"]["budget"]) for s in settings} == {("pets", 0.1)}


def test_a_preset_keeps_its_dose_for_an_attack_named_alone(run) -> None:
    from mithridate.experiments.presets import digits_audit
    from mithridate.verbs.pipelines import audit_panels

    by_attack = {type(panel.attack).__name__: panel for panel in digits_audit()}
    (named,), _ = audit_panels(cli.AuditOptions(attacks=("witches-brew",)))
    assert named == by_attack["WitchesBrew"]
    (changed,), _ = audit_panels(cli.AuditOptions(attacks=("witches-brew:steps=7",), trials=3))
    assert (changed.attack.steps, changed.trials) == (7, 3)
    assert changed.threat == by_attack["WitchesBrew"].threat
    (clean,), _ = audit_panels(cli.AuditOptions(attacks=("badnets:clean_label=yes",)))
    assert (clean.threat.relabel, clean.threat.poison_class) == (False, "intended")
    assert clean.threat.budget == by_attack["BadNets"].threat.budget


def test_craft_says_where_the_poison_is(run) -> None:
    from mithridate.poisoning.poison import Poison

    said = run("craft", "--attack", "witches-brew:steps=2,surrogates=1", *TINY[:4], "--budget", "0.003")
    assert said.code == 0
    folder = Path(said.out.split(" in ")[-1].strip())
    assert len(Poison.load(folder)) == 3
    assert "matching loss" in said.out
    again = run("craft", "--attack", "witches-brew:steps=2,surrogates=1", *TINY[:4], "--budget", "0.003", "--json")
    assert json.loads(again.out)["folder"] == str(folder)


def test_a_stored_trial_runs_again(run, tmp_path: Path) -> None:
    recipe = Recipe(model="convnet:width=4", epochs=1, transforms=())
    trial = Trial(data=Digits(train=100), threat=BadNets.threat, attack=BadNets(), learner=recipe, seed=3)
    (tmp_path / "trial.json").write_text(json.dumps(to_json(trial)))
    said = run("trial", "trial.json", "--json")
    assert said.code == 0
    assert json.loads(said.out)["rows"][0]["cell"]["seeds"] == [3]


STUDY = """
import mithridate as mi

def small():
    recipe = mi.Recipe(model="convnet:width=4", epochs=1, transforms=())
    return [
        mi.Trial(data=mi.Digits(train=100), threat=mi.BadNets.threat, attack=mi.BadNets(), learner=recipe, seed=seed)
        for seed in range(3)
    ]
"""


def test_a_study_of_the_user_is_run_in_part_and_reported(run, tmp_path: Path) -> None:
    (tmp_path / "study_of_the_user.py").write_text(STUDY)
    said = run("study", "study_of_the_user:small", "--limit", "2", "--workers", "1")
    assert said.code == 0
    assert "report: runs/study-of-the-user-small/report.html" in said.out
    said = run("report", "runs/study-of-the-user-small", "--out", "pages/mine.html", "--json")
    assert json.loads(said.out)["rows"][0]["trials"] == 2
    assert (tmp_path / "pages/mine.html").is_file()
    said = run("study", "study_of_the_user:small", "--workers", "1", "--plan")
    assert "3 trials (2 finished)" in said.out
    sys.modules.pop("study_of_the_user", None)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_a_real_ctrl_c_stops_the_workers_too(tmp_path: Path) -> None:
    arguments = ["audit", *BADNETS, "--epochs", "10", "--trials", "20", "--workers", "2", "--out", "here"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mithridate.cli", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
        start_new_session=True,
    )
    results = tmp_path / "here" / "trials"
    while process.poll() is None and not list(results.glob("*/result.json")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "trials are finished in here" in said.splitlines()[-1]
    finished = len(list(results.glob("*/result.json")))
    time.sleep(1)
    assert len(list(results.glob("*/result.json"))) == finished
