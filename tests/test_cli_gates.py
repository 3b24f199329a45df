"""The command line in a pipeline: conditions close the gate with exit code 3, reports go to other programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest

from mithridate.experiments.trial import Trial
from tests.experiments import leak_cases, synthetic as made

TINY = ("--model", "convnet:width=4", "--epochs", "1", "--workers", "1")
AUDIT = ("audit", "--attacks", "badnets", "--defenses", "--trials", "2", "--clean-victims", "1", *TINY)
INVERT = ("invert", "--model", "mlp:width=8", "--attacks", "inverting-gradients:steps=2", "--workers", "1")
LEAKS = (*INVERT, "--epochs", "0", "--cases", "1", "--batch", "1", "--defenses")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A study of which nothing is missing."""
    folder = made.make_study(tmp_path / "whole", targets=8, cases=3)
    for path in folder.glob("trials/*"):
        if not (path / "result.json").exists():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    return Path("whole")


# --- gates -----------------------------------------------------------------------------------------------------------


def test_an_audit_ends_with_3_where_a_condition_holds_and_with_0_where_none_does(run) -> None:
    said = run(*AUDIT, "--fail-if", "success>=0", "accuracy>99%", "--fail-if", "vs none: success.high<0.01")
    assert said.code == 3
    judged = [line for line in said.err.splitlines() if line.startswith(("failed", "passed"))]
    assert len(judged) == 3
    assert judged[0].startswith("failed: success>=0 holds: badnets: success ")
    assert judged[1] == "passed: accuracy>99% holds for none of 1 row"
    assert judged[2].startswith("passed: vs none: success.high<0.01")
    assert "report: runs/audit/report.html" in said.out
    said = run(*AUDIT, "--fail-if", "accuracy>99%", "--json")
    assert said.code == 0
    assert {row["attack"] for row in json.loads(said.out)["rows"]} == {"badnets", "random-noise", "no-attack"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("succes>0.2", "did you mean success?"),
        ("success>20", "write 20% or 0.2"),
        ("success", "write it in quotes"),
        ("badnet: success>0.2", "no attack 'badnet' is run here; did you mean badnets? known: badnets\n"),
        ("vs mixup: success>0.2", "no defence 'mixup' is run here; known: none\n"),
        (None, "--fail-if names no condition"),
    ],
)
def test_a_condition_that_cannot_be_is_a_mistake_before_anything_is_trained(
    text: str | None, message: str, run, tmp_path: Path
) -> None:
    said = run(*AUDIT, "--fail-if", *([text] if text else []))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "runs").exists()


def test_failed_trials_are_told_before_any_condition_is_judged(run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trial.run

    def sometimes(trial, *rest, **settings):
        if trial.seed == 1:
            raise RuntimeError("no space left")
        return real(trial, *rest, **settings)

    monkeypatch.setattr(Trial, "run", sometimes)
    said = run(*AUDIT, "--fail-if", "success>=0")
    assert said.code == 1
    assert "holds" not in said.err
    said = run("report", "runs/audit", "--fail-if", "accuracy>99%")
    assert said.code == 3
    assert "passed: accuracy>99% holds for none of 1 row" in said.err
    assert said.err.count("failed: not measured: ") == 3
    assert "badnets, seed 1" in said.err


STUDY = """
import mithridate as mi

def backdoors():
    recipe = mi.Recipe(model="mlp:width=8", epochs=1, transforms=())
    return [mi.Trial(data=mi.Digits(train=100), threat=mi.BadNets.threat, attack=mi.BadNets(), learner=recipe)]

def leaks():
    recipe = mi.Recipe(model="mlp:width=8", epochs=0, transforms=())
    return [mi.LeakTrial(data=mi.Digits(train=100), recipe=recipe, attack=mi.InvertingGradients(steps=2))]
"""


def test_a_study_is_judged_by_what_its_trials_measure(run, tmp_path: Path) -> None:
    (tmp_path / "gated_studies.py").write_text(STUDY)
    assert run("study", "gated_studies:backdoors", "--workers", "1", "--fail-if", "badnets: success>=0").code == 3
    assert run("study", "gated_studies:leaks", "--workers", "1", "--fail-if", "psnr<99").code == 3
    said = run("study", "gated_studies:leaks", "--workers", "1", "--fail-if", "success>0.2")
    assert (said.code, said.out) == (2, "")
    assert "nothing measured is called 'success'" in said.err
    sys.modules.pop("gated_studies", None)


def test_an_inversion_is_judged(run) -> None:
    said = run(*LEAKS, "--fail-if", "psnr<99")
    assert said.code == 3
    assert "failed: psnr<99 holds: inverting-gradients, single images: psnr " in said.err
    assert run(*LEAKS, "--fail-if", "psnr>99").code == 0
    assert "no attack 'badnets' is run here" in run(*LEAKS, "--fail-if", "badnets: psnr>9").err


def test_one_leak_of_the_users_own_has_nothing_to_judge(run) -> None:
    said = run(*INVERT, "--leak", "none.safetensors", "--fail-if", "psnr>20")
    assert said.code == 2
    assert "--fail-if is about simulated clients" in said.err


def test_a_report_is_judged_as_it_stands(run, whole: Path) -> None:
    said = run("report", whole, "--fail-if", "badnets vs mixup: success>0.5")
    assert said.code == 3
    assert "failed: badnets vs mixup: success>0.5 holds: badnets vs mixup, from scratch: success 9" in said.err
    assert run("report", whole, "--fail-if", "vs partition-vote: success>0.5").code == 0
    said = run("report", whole, "--fail-if", "badnet: success>0.5")
    assert said.code == 3
    assert "badnet: success>0.5 cannot be judged: no such row; there are: witches-brew" in said.err


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_go_beside_the_page_and_gates_are_judged_after_they_are_written(run, whole: Path) -> None:
    said = run("report", whole, "--format", "json", "csv", "parquet", "junit", "sarif", "--fail-if", "success>0.5")
    assert said.code == 3
    assert said.out.splitlines()[-6:] == [
        "report: whole/report.html",
        "json: whole/report.json",
        "csv: whole/report.csv",
        "parquet: whole/report.parquet",
        "junit: whole/report.junit.xml",
        "sarif: whole/report.sarif",
    ]
    rows = json.loads((whole / "report.json").read_text())["rows"]
    assert len(list(csv.DictReader(io.StringIO((whole / "report.csv").read_text())))) == len(rows) == 21
    assert pq.read_table(whole / "report.parquet").num_rows == 21
    broken = said.err.count("failed: ")
    assert len(list(ET.parse(whole / "report.junit.xml").iter("failure"))) == broken == 3
    log = json.loads((whole / "report.sarif").read_text())["runs"][0]["results"]
    errors = [result for result in log if result["level"] == "error"]
    assert len(errors) == 3
    assert {e["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for e in errors} == {"whole/report.html"}


@pytest.mark.parametrize("name", ["json", "csv", "junit", "sarif"])
def test_one_format_is_all_there_is_on_standard_output(name: str, run, whole: Path) -> None:
    said = run("report", whole, "--format", name, "--out", "-", "--fail-if", "success>0.99")
    assert said.code in (0, 3)
    assert "report: whole/report.html" in said.err
    readers = {"json": json.loads, "sarif": json.loads, "junit": lambda text: ET.fromstring(text.encode())}
    assert readers.get(name, lambda text: list(csv.DictReader(io.StringIO(text))))(said.out)
    assert not (whole / "report.csv").exists()


def test_out_names_the_file_of_one_format_and_the_folder_of_several(run, whole: Path) -> None:
    assert run("report", whole, "--format", "sarif", "--out", "results/mine.sarif").code == 0
    assert json.loads(Path("results/mine.sarif").read_text())["version"] == "2.1.0"
    assert (whole / "report.html").exists()
    assert run("report", whole, "--format", "csv", "--out", "results").code == 0
    assert run("report", whole, "--format", "csv", "junit", "--out", "pages").code == 0
    assert {path.name for path in Path("results").iterdir()} == {"mine.sarif", "report.csv"}
    assert {path.name for path in Path("pages").iterdir()} == {"report.html", "report.csv", "report.junit.xml"}
    assert run("report", whole, "--out", "pages/other.html").code == 0
    assert Path("pages/other.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "-"), "--out - prints one format that is text: json, csv, junit or sarif"),
        (("--format", "parquet", "--out", "-"), "--out - prints one format that is text"),
        (("--format", "csv", "json", "--out", "-"), "--out - prints one format that is text"),
        (("--format", "csv", "--out", "-", "--json"), "--out - prints one format that is text"),
        (("--format", "csv", "json", "--out", "file"), "file is a file; 2 formats need a folder"),
        (("--fail-if", "succes>0.2"), "did you mean success?"),
    ],
)
def test_a_mistake_writes_nothing(arguments: tuple[str, ...], message: str, run, whole: Path) -> None:
    Path("file").touch()
    said = run("report", whole, *arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert not (whole / "report.html").exists()


def test_json_with_a_format_stays_the_table(run, whole: Path) -> None:
    plain = run("report", whole, "--json")
    said = run("report", whole, "--json", "--format", "csv")
    assert said.out == plain.out
    assert "csv: whole/report.csv" in said.err


def test_leaks_have_the_same_formats(run, tmp_path: Path) -> None:
    leak_cases.make_study(tmp_path / "leaks", cases=2)
    said = run("report", "leaks", "--format", "json", "csv", "parquet", "junit", "sarif", "--fail-if", "identified>0.9")
    assert said.code == 3  # one trial failed, one did not finish
    assert said.err.count("failed: not measured: ") == 2
    assert json.loads(Path("leaks/report.json").read_text())["kind"] == "leak"


def test_tensorboard_is_a_folder(run, whole: Path) -> None:
    pytest.importorskip(
        "tensorboard", reason="needs tensorboard: pip install 'mithridate[track]'", exc_type=ImportError
    )
    said = run("report", whole, "--format", "tensorboard", "--out", "logs")
    assert said.code == 0
    assert "tensorboard: logs" in said.out
    assert len(list(Path("logs/trials").glob("*/seed */events.out.tfevents.*"))) == len(list(whole.glob("trials/*")))


# --- results of other versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "todo"), [(0, "read them with mithridate 0.0.9, or run"), (2, "update mithridate")])
def test_results_of_another_schema_are_refused_in_one_line(schema: int, todo: str, run, whole: Path) -> None:
    for path in whole.glob("trials/*/result.json"):
        content = json.loads(path.read_text())
        content |= {"schema": schema, "environment": content["environment"] | {"mithridate": "0.0.9"}}
        path.write_text(json.dumps(content))
    said = run("report", whole, "--format", "csv")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert f"whole holds results of schema {schema}, written by mithridate 0.0.9; this version" in said.err
    assert todo in said.err
    assert not (whole / "report.csv").exists()
