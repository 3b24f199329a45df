"""A study as JUnit XML: one suite per attack, one test per row, which fails where a condition holds for it.

What is written is valid under both schemas in use, that of Apache Ant and the looser one of Jenkins. Neither lets a
test have properties, so those of a row stand with its suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from mithridate import __version__
from mithridate.experiments.entries import Entry
from mithridate.experiments.gates import Breach

if TYPE_CHECKING:
    from mithridate.experiments.exports import Findings

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def to_junit(found: Findings) -> str:
    """Returns the XML of a study.

    Rows without an outcome are skipped, unless a condition is about them. A condition that no row could be judged by,
    and a trial that failed or did not finish, are tests of their own.
    """
    root = ET.Element("testsuites")
    suites: dict[str, list[Entry]] = {}
    for entry in found.rows:
        suites.setdefault(entry.suite, []).append(entry)
    shared = {"mithridate": __version__, "command": found.command or "", "study": found.folder.as_posix()}
    shared["conditions"] = "; ".join(condition.text for condition in found.conditions) or "none"
    for name, rows in suites.items():
        tests = [_row(entry, [b for b in found.breaches if b.entry is entry]) for entry in rows]
        facts = {f"{e.name}: {measure}": e.text(measure) for e in rows for measure in e.numbers}
        root.append(_suite(len(root), name, tests, shared | facts, _when(found), [entry.verdict for entry in rows]))
    nowhere = [_test("conditions", b.condition.text, "failure", str(b)) for b in found.breaches if b.entry is None]
    unfinished = [_test("trials", problem, "error", problem) for problem in found.unfinished]
    for name, tests in (("conditions", nowhere), ("trials that are not finished", unfinished)):
        if tests:
            root.append(_suite(len(root), name, tests, shared, _when(found), []))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(
    number: int, name: str, tests: Sequence[ET.Element], facts: dict[str, str], when: str, said: Iterable[str]
) -> ET.Element:
    counts = {tag: str(sum(test.find(tag) is not None for test in tests)) for tag in ("failure", "error", "skipped")}
    suite = ET.Element(
        "testsuite",
        name=_token(name),
        package="mithridate",
        id=str(number),
        timestamp=when,
        hostname="localhost",
        tests=str(len(tests)),
        failures=counts["failure"],
        errors=counts["error"],
        skipped=counts["skipped"],
        time=f"{sum(float(test.attrib['time']) for test in tests):.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in facts.items():
        ET.SubElement(properties, "property", name=_token(key), value=_clean(value))
    suite.extend(tests)
    ET.SubElement(suite, "system-out").text = _clean("\n".join(said))
    ET.SubElement(suite, "system-err")
    return suite


def _row(entry: Entry, breaches: Sequence[Breach]) -> ET.Element:
    """The test of a row: failed, skipped or passed."""
    measured = bool({"success", "identified"} & entry.numbers.keys())
    if breaches:
        kind = "condition holds" if any(breach.measured for breach in breaches) else "not judged"
        text = "\n".join([*map(str, breaches), entry.verdict])
        made = _test(entry.label, entry.name, "failure", text, kind, entry.seconds)
        made[0].set("message", _clean("; ".join(map(str, breaches))))
        return made
    if not measured:
        return _test(entry.label, entry.name, "skipped", "no outcome was measured", seconds=entry.seconds)
    return _test(entry.label, entry.name, seconds=entry.seconds)


def _test(
    group: str, name: str, tag: str | None = None, text: str = "", kind: str = "not judged", seconds: float = 0.0
) -> ET.Element:
    classname = f"mithridate.{group.replace('.', '_')}"  # a dot ends the name of a package
    made = ET.Element("testcase", classname=_token(classname), name=_token(name), time=f"{seconds:.3f}")
    if tag == "skipped":
        ET.SubElement(made, tag, message=_clean(text))
    elif tag is not None:
        ET.SubElement(made, tag, message=_clean(text), type=kind).text = _clean(text)
    return made


def _when(found: Findings) -> str:
    """When the last trial finished."""
    times = [path.stat().st_mtime for path in found.folder.glob("trials/*/result.json")]
    return datetime.fromtimestamp(max(times, default=0.0), UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def _token(text: str) -> str:
    """A name: no line breaks, no double spaces."""
    return " ".join(_clean(text).split()) or "-"
