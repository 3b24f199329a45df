"""SARIF: what the standard and code scanning require is there, levels are right, alerts keep their identity."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mithridate.experiments.exports import findings
from mithridate.experiments.gates import conditions
from mithridate.experiments.sarif import to_sarif
from tests.experiments import leak_cases, synthetic as made
from tests.experiments.synthetic import hits
from tests.experiments.test_junit import put


def run_of(folder: Path, *texts: str, kind: str = "poison", page: Path | None = None) -> dict[str, Any]:
    """The one run of the log, checked."""
    text = to_sarif(findings(folder, kind, conditions(texts, kind), page))
    log = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    check(run)
    return run


def check(run: dict[str, Any]) -> None:
    """What SARIF 2.1.0 requires, and what GitHub requires beyond that."""
    assert set(run) <= {"tool", "automationDetails", "invocations", "results", "properties"}
    driver = run["tool"]["driver"]
    assert driver["name"] == "mithridate"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", driver["semanticVersion"])
    rules = driver["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        assert all(rule[part]["text"] for part in ("shortDescription", "fullDescription", "help"))
        assert rule["defaultConfiguration"]["level"] in ("error", "note")
    for invocation in run["invocations"]:
        assert isinstance(invocation["executionSuccessful"], bool)
    assert re.fullmatch(r"mithridate/.+/", run["automationDetails"]["id"])
    marks = []
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert re.fullmatch(r"[\w.:/%~-]+", place["artifactLocation"]["uri"])
        assert place["region"] == {"startLine": 1}
        assert set(result["partialFingerprints"]) == {"primaryLocationLineHash", "mithridate/v1"}
        marks.append(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(set(marks)) == len(marks)


def of_level(run: dict[str, Any], level: str) -> list[dict[str, Any]]:
    return [result for result in run["results"] if result["level"] == level]


def marks(run: dict[str, Any], level: str = "error") -> list[str]:
    return [result["partialFingerprints"]["mithridate/v1"] for result in of_level(run, level)]


def test_a_row_for_which_conditions_hold_is_one_error_with_its_numbers(tmp_path: Path) -> None:
    pairs = [*hits("witches-brew", [1] * 6 + [0] * 4), *hits("witches-brew", [0] * 10, made.MIXUP)]
    pairs += [*hits("random-noise", [1] * 10)]
    run = run_of(put(tmp_path, pairs), "success>0.2", "success.low>0.1")
    (error,) = of_level(run, "error")
    assert error["ruleId"] == "witches-brew"
    assert "success>0.2 holds: witches-brew: success 60 % (29 to 86 %; 6 of 10)" in error["message"]["text"]
    assert "success.low>0.1 holds" in error["message"]["text"]
    assert error["locations"][0]["logicalLocations"][0]["name"] == "witches-brew"
    numbers = error["properties"]
    assert (numbers["success"], numbers["success.n"]) == (0.6, 10)
    assert 0.25 < numbers["success.low"] < 0.35
    assert run["properties"]["conditions"] == ["success>0.2", "success.low>0.1"]


def test_every_attack_is_a_rule_explained_and_controls_are_none(tmp_path: Path) -> None:
    rules = {rule["id"]: rule for rule in run_of(made.make_study(tmp_path))["tool"]["driver"]["rules"]}
    assert [name for name in rules if not name.startswith(("caution/", "not-judged"))] == [
        "witches-brew",
        "badnets",
        "poison-frogs",
    ]
    assert "gradient" in rules["witches-brew"]["fullDescription"]["text"]


def test_cautions_are_notes(tmp_path: Path) -> None:
    folder = made.make_study(tmp_path)
    run = run_of(folder, "success>0.99")
    notes = of_level(run, "note")
    expected = [(f"caution/{kind.name}", text) for text, kind in findings(folder, "poison").cautions]
    assert [(note["ruleId"], note["message"]["text"]) for note in notes] == expected
    assert len(expected) > 5


def test_without_conditions_what_is_shown_is_a_warning(tmp_path: Path) -> None:
    folder = put(tmp_path, [*hits("witches-brew", [1] * 10), *hits("random-noise", [0] * 10)])
    (warning,) = of_level(run_of(folder), "warning")
    assert "beats its control" in warning["message"]["text"]
    assert of_level(run_of(folder), "error") == []
    judged = run_of(folder, "success<0.5")  # whoever sets a limit has said what is too much
    assert of_level(judged, "warning") == of_level(judged, "error") == []


def test_what_was_not_judged_is_an_error(tmp_path: Path) -> None:
    run = run_of(made.make_study(tmp_path, targets=2, cases=2), "badnet: success>0.2")
    texts = [result["message"]["text"] for result in of_level(run, "error")]
    assert {result["ruleId"] for result in of_level(run, "error")} == {"not-judged"}
    assert texts[0].startswith("badnet: success>0.2 cannot be judged: no such row")
    assert len(texts) == 1 + 2
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert [note["message"]["text"] for note in invocation["toolExecutionNotifications"]] == texts[1:]
    assert invocation["commandLine"] == "mithridate audit --data data/cifar10 --preset small"


def test_an_alert_stays_the_same_whatever_numbers_come_out(tmp_path: Path) -> None:
    def study(name: str, won: list[int], extra: list[int]) -> Path:
        pairs = [*hits("witches-brew", won), *hits("badnets", extra, threat=made.BACKDOOR)]
        return put(tmp_path / name, pairs)

    first = run_of(study("a", [1] * 10, [1] * 10), "success>0.2")
    second = run_of(study("b", [1] * 7 + [0] * 5, [0] * 10), "success>0.4", "accuracy<0.1")
    assert len(marks(first)) == 2
    assert marks(second) == marks(first)[:1]
    assert marks(first, "note") == marks(second, "note")


def test_the_page_is_named_from_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uri(folder: Path, page: Path | None = None) -> str:
        (error,) = of_level(run_of(folder, "success>0.2", page=page), "error")
        return error["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]

    folder = put(tmp_path / "runs" / "my audit", hits("witches-brew", [1] * 10))
    assert uri(folder) == (folder / "report.html").as_uri()
    monkeypatch.chdir(tmp_path)
    assert uri(Path("runs/my audit")) == "runs/my%20audit/report.html"
    assert uri(Path("runs/my audit"), Path("pages/mine.html")) == "pages/mine.html"


def test_leaks_and_attacks_of_the_users_own_are_rules_too(tmp_path: Path) -> None:
    run = run_of(leak_cases.make_study(tmp_path / "a", cases=2), "vs none: identified>=0", kind="leak")
    assert {result["ruleId"] for result in of_level(run, "error")} >= {"inverting-gradients", "deep-leakage"}
    run = run_of(put(tmp_path / "b", hits("mine.attacks:Evil", [1] * 10)), "success>0.2")
    assert run["tool"]["driver"]["rules"][0]["fullDescription"]["text"] == "Poisoning mine.attacks:Evil."
