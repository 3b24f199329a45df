"""Pipelines as they are written down: the example is a workflow, and every command in it and on its page exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from mithridate import cli
from mithridate.core.schema import choices
from mithridate.experiments.entries import MEASURES
from mithridate.experiments.gates import check_places, conditions
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "examples" / "ci" / "github-actions.yml"
PAGE = ROOT / "docs" / "continuous-integration.md"


def commands(path: Path) -> list[list[str]]:
    """The lines of a file that call the command line, as words."""
    lines = re.findall(r"^\s*mithridate ((?:audit|report|study|invert) .*)$", path.read_text(), re.MULTILINE)
    return [shlex.split(line.partition(" | ")[0]) for line in lines]


ALL = [(path.name, words) for path in (WORKFLOW, PAGE) for words in commands(path)]


def workflow() -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return yaml.safe_load(WORKFLOW.read_text())


def test_there_are_commands() -> None:
    assert [words[0] for words in commands(WORKFLOW)] == ["audit", "report"]
    assert len(commands(PAGE)) >= 3


@pytest.mark.parametrize(("place", "words"), ALL, ids=[f"{place}-{number}" for number, (place, _) in enumerate(ALL)])
def test_every_command_is_understood(place: str, words: list[str]) -> None:
    verb, *rest = words
    options = tyro.cli(cli.VERBS[verb], args=rest, config=(tyro.conf.FlagCreatePairsOff,))
    texts = [text for group in getattr(options, "fail_if", ()) for text in group]
    check_places(conditions(texts, "poison"), choices(Attack), [*choices(Defense), "none"])
    assert all(name in choices(Attack) for name in getattr(options, "attacks", None) or ())
    assert all(name in choices(Defense) for name in getattr(options, "defenses", None) or ())


def test_the_example_is_a_workflow_whose_files_are_those_that_are_written() -> None:
    content = workflow()
    assert content["permissions"]["security-events"] == "write"
    steps = content["jobs"]["audit"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    runs = [step["run"].strip() for step in steps if step.get("run", "").startswith("mithridate")]
    assert [shlex.split(line)[1:] for line in runs] == commands(WORKFLOW)
    folder = commands(WORKFLOW)[1][1]
    uploads = {step["uses"].partition("@")[0]: step for step in steps if "uses" in step}
    assert uploads["github/codeql-action/upload-sarif"]["with"]["sarif_file"] == f"{folder}/report.sarif"
    assert uploads["actions/upload-artifact"]["with"]["path"] == f"{folder}/report.*"
    caches = [uploads[f"actions/cache/{what}"]["with"] for what in ("restore", "save")]
    assert {cache["path"] for cache in caches} == {folder} == {commands(WORKFLOW)[0][-1]}
    assert caches[0]["key"] == caches[1]["key"]
    assert caches[0]["key"].startswith(caches[0]["restore-keys"])


def test_the_page_names_every_measure_format_and_exit_code() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert {name for measures in MEASURES.values() for name in measures} <= named
    assert {"json", "csv", "parquet", "junit", "sarif", "tensorboard"} <= named
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["0", "1", "2", "3", "130"]
