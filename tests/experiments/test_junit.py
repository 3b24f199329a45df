"""JUnit XML: well-formed whatever names are in it, valid under both schemas in use, with the right tests in red."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

from mithridate.experiments.exports import findings
from mithridate.experiments.gates import conditions
from mithridate.experiments.junit import to_junit
from tests.experiments import leak_cases, synthetic as made
from tests.experiments.synthetic import TARGETED, hits, name_of, result, trial

SUITE = ("name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time")
"""Attributes of a suite that the schema of Ant requires; that of Jenkins knows all of them."""


def put(folder: Path, pairs) -> Path:
    for settings, done in pairs:
        place = folder / "trials" / name_of(settings)
        place.mkdir(parents=True)
        (place / "trial.json").write_text(json.dumps(settings))
        if done is not None:
            (place / "result.json").write_text(json.dumps(done))
    return folder


def xml(folder: Path, *texts: str, kind: str = "poison") -> ET.Element:
    return ET.fromstring(to_junit(findings(folder, kind, conditions(texts, kind))))


def outcomes_of(root: ET.Element) -> dict[str, list[str]]:
    """What became of each test."""
    return {test.attrib["name"]: [child.tag for child in test] for test in root.iter("testcase")}


def check(root: ET.Element) -> None:
    """What the schemas of Ant and of Jenkins both ask for."""
    assert (root.tag, root.attrib) == ("testsuites", {})
    names = []
    for number, suite in enumerate(root):
        assert suite.tag == "testsuite"
        assert tuple(suite.attrib) == SUITE
        assert suite.attrib["id"] == str(number)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        tests = suite.findall("testcase")
        assert [c.tag for c in suite] == ["properties", *["testcase"] * len(tests), "system-out", "system-err"]
        assert all(p.tag == "property" and list(p.attrib) == ["name", "value"] and not len(p) for p in suite[0])
        for test in tests:
            assert list(test.attrib) == ["classname", "name", "time"]
            names.append((test.attrib["classname"], test.attrib["name"]))
            assert float(test.attrib["time"]) >= 0
            assert [child.tag for child in test] in ([], ["failure"], ["error"], ["skipped"])
            for child in test:
                assert set(child.attrib) == ({"message"} if child.tag == "skipped" else {"message", "type"})
        counts = [sum(test.find(tag) is not None for test in tests) for tag in ("failure", "error", "skipped")]
        assert [int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")] == [len(tests), *counts]
        for name in (suite.attrib["name"], *(p.attrib["name"] for p in suite[0]), *sum(names, ())):
            assert name == " ".join(name.split()) != ""
    assert len(set(names)) == len(names)


def test_a_row_fails_where_a_condition_holds_and_passes_elsewhere(tmp_path: Path) -> None:
    pairs = [
        *hits("witches-brew", [1] * 3 + [0] * 7),
        *hits("witches-brew", [0] * 10, made.MIXUP),
        *hits("random-noise", [1] * 10),
    ]
    root = xml(put(tmp_path, pairs), "success>0.2", "success.high>0.5")
    check(root)
    assert outcomes_of(root) == {"witches-brew": ["failure"], "witches-brew vs mixup": [], "random-noise": []}
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.attrib["type"] == "condition holds"
    both = [
        "success>0.2 holds: witches-brew: success 30 % (8 to 62 %; 3 of 10)",
        "success.high>0.5 holds: witches-brew",
    ]
    for text in both:
        assert text in failure.attrib["message"]
        assert text in str(failure.text)
    assert "exact paired p" in str(failure.text)


def test_suites_are_attacks_and_say_every_number_with_its_interval(tmp_path: Path) -> None:
    root = xml(made.make_study(tmp_path))
    check(root)
    backdoor = next(suite for suite in root if suite.attrib["name"].startswith("badnets"))
    assert [test.attrib["name"] for test in backdoor.iter("testcase")] == [
        "badnets, from scratch",
        "badnets vs spectral-signatures, from scratch",
        "badnets vs mixup, from scratch",
        "badnets vs partition-vote, from scratch",
    ]
    told = {p.attrib["name"]: p.attrib["value"] for p in backdoor.iter("property")}
    assert told["command"] == "mithridate audit --data data/cifar10 --preset small"
    assert told["badnets vs spectral-signatures, from scratch: recall"].startswith("78 % (")
    assert told["conditions"] == "none"
    assert sum(float(test.attrib["time"]) for test in backdoor.iter("testcase")) == float(backdoor.attrib["time"]) > 100


def test_what_was_not_measured_is_skipped_or_if_it_was_asked_for_red(tmp_path: Path) -> None:
    settings = trial("witches-brew", TARGETED)
    folder = put(tmp_path, [(settings, result(settings, [[]], [[]], []))])
    assert outcomes_of(xml(folder)) == {"witches-brew": ["skipped"]}
    assert outcomes_of(xml(folder, "success>0.2")) == {"witches-brew": ["failure"]}


def test_what_nothing_could_be_judged_by_and_missing_trials_are_outcomes_of_their_own(tmp_path: Path) -> None:
    root = xml(made.make_study(tmp_path, targets=2, cases=2), "badnet: success>0.2")
    check(root)
    *_, nowhere, missing = root
    assert (nowhere.attrib["name"], nowhere.attrib["failures"]) == ("conditions", "1")
    assert outcomes_of(nowhere) == {"badnet: success>0.2": ["failure"]}
    assert (missing.attrib["name"], missing.attrib["errors"]) == ("trials that are not finished", "2")
    messages = " ".join(error.attrib["message"] for error in missing.iter("error"))
    assert "loss is <nan> after 3 epochs" in messages
    assert "not finished" in messages


def test_names_that_xml_cannot_hold_are_held_as_well_as_can_be(tmp_path: Path) -> None:
    nasty = {"type": 'evil"<&>]]>\x00\x1b\ud800\n  name'}
    pairs = [(settings, done) for settings, done in hits("witches-brew", [1, 1, 1], nasty)]
    root = xml(put(tmp_path, pairs), "success>0.2")
    check(root)
    (name,) = outcomes_of(root)
    assert name.startswith('witches-brew vs evil"<&>]]>\ufffd')
    assert name.endswith(" name")


def test_leaks_are_tests_too(tmp_path: Path) -> None:
    root = xml(leak_cases.make_study(tmp_path, cases=2), "deep-leakage vs none: identified>=0.5", kind="leak")
    check(root)
    red = [name for name, tags in outcomes_of(root).items() if tags == ["failure"]]
    assert "deep-leakage, single images" in red
    assert not [name for name in red if not name.startswith("deep-leakage")]
