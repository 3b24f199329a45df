"""The command line at several doses, and until it is decided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import Run
from tests.test_cli import BADNETS, TINY


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")]


def test_doses_double_up_to_the_attacks_own(run: Run, tmp_path: Path) -> None:
    said = run("dose", *BADNETS, "--levels", "3", "--json")
    assert said.code == 0, said.err
    (found,) = json.loads(said.out)["doses"]
    assert (found["of"], found["train"], found["attack"]) == ("budget", 1000, "badnets")
    assert found["series"][0]["doses"] == [5, 10, 20]
    assert {result["poison"]["count"] for result in results(tmp_path / "runs/dose")} == {0, 5, 10, 20}
    assert "How much poison it takes" in (tmp_path / "runs/dose/report.html").read_text()
    again = run("report", "runs/dose")
    assert "badnets (patch of 10 % of the image), no defence: " in again.out


def test_as_many_cases_as_the_doses_ask_for(run: Run) -> None:
    """Nine poisons show a backdoor in an audit of seven settings, but not among twenty."""
    said = run("dose", "--attacks", "badnets", "--plan")
    assert said.code == 0, said.err
    assert said.out.startswith("290 trials"), said.out
    assert "can show nothing" not in said.out + said.err
    assert run("dose", "--attacks", "badnets", "--trials", "9", "--plan").out.startswith("261 trials")


def test_a_plan_counts_the_cases_of_attacks_on_images_alone(run: Run) -> None:
    said = run("audit", "--attacks", "class-wise-noise", "--defenses", "jpeg", "--plan")
    assert said.code == 0, said.err
    assert "Attacks on accuracy are judged by models, 3 on each side" in said.out
    assert "paired target" not in said.out


def test_doses_of_ones_own(run: Run, tmp_path: Path) -> None:
    said = run("dose", *BADNETS, "--budget", "0.01", "0.02", "0.05", "--out", "mine")
    assert said.code == 0, said.err
    assert {result["poison"]["count"] for result in results(tmp_path / "mine")} == {0, 10, 20, 50}


def test_what_has_no_such_dose_is_left_out_or_refused(run: Run) -> None:
    said = run("dose", "--plan", *TINY, "--trials", "1", "--levels", "3")
    assert said.code == 0, said.err
    assert "left out: poison-frogs at 1, 1, 1 of 1,000 images" in said.err
    for command, says in (
        (
            ["--attacks", "poison-frogs"],
            "poison-frogs at 1, 1, 1, 1, 1 of 1,000 images: these doses are not all",
        ),
        (["--attacks", "badnets", "--of", "eps"], "badnets changes images by no eps"),
        (["--attacks", "badnets", "--budget", "0.01", "0.02"], "two doses make no curve"),
        (["--attacks", "badnets", "--levels", "2"], "are no ladder"),
    ):
        said = run("dose", *command, *TINY)
        assert said.code == 2
        assert says in said.err


def test_an_audit_until_it_is_decided(run: Run, tmp_path: Path) -> None:
    said = run("audit", *BADNETS, "--trials", "10", "--until", "decided", "--json")
    assert said.code == 0, said.err
    study = json.loads((tmp_path / "runs/audit/study.json").read_text())
    assert set(study["planned"].values()) == {10}
    rows = json.loads(said.out)["rows"]
    assert {row["attack"] for row in rows} == {"badnets", "random-noise", "no-attack"}
    assert all(row["trials"] <= 10 for row in rows)
    assert "at whatever case" in (tmp_path / "runs/audit/report.html").read_text()


def test_leaks_are_not_compared_case_by_case(run: Run) -> None:
    said = run("study", "studies.inverting_gradients:defenses", "--until", "decided")
    assert said.code == 2
    assert "compares poisoning trials case by case" in said.err


@pytest.mark.parametrize("verb", ["audit", "study"])
def test_help_says_what_decided_means(run: Run, verb: str) -> None:
    said = run(verb, "--help")
    assert "--until" in said.out
    assert "hardly will" in said.out
