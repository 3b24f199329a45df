"""A study as SARIF 2.1.0, for code scanning: one rule per attack and kind of caution, one result per row that fails.

Reference: Static Analysis Results Interchange Format (SARIF) Version 2.1.0. OASIS Standard, 2020, errata 01 of 2023.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mithridate import __version__
from mithridate.core.schema import choices
from mithridate.experiments.cautions import Kind
from mithridate.experiments.entries import Entry
from mithridate.experiments.gates import Breach
from mithridate.experiments.statistics import Mean, Rate
from mithridate.inversion.attack import Inversion
from mithridate.poisoning.attack import Attack

if TYPE_CHECKING:
    from mithridate.experiments.exports import Findings

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
NOT_JUDGED = "not-judged"
"""Rule of conditions that no row could be judged by, and of trials that did not finish."""
_READ = (
    "The report beside this file has all rows with their intervals and controls. A row that fails says what this "
    "attack did at this dose; one that does not is no proof that others fail too."
)


def to_sarif(found: Findings) -> str:
    """Returns the JSON of a study.

    An error is a row for which a condition holds, or a condition that could not be judged. Without conditions, an
    attack that is shown to beat its control is a warning. Cautions are notes.
    """
    rules: dict[str, dict[str, Any]] = {}
    results: list[dict[str, Any]] = []

    def add(rule: dict[str, Any], level: str, text: str, mark: str, entry: Entry | None = None) -> None:
        rules.setdefault(rule["id"], rule)
        number = list(rules).index(rule["id"])
        results.append(_result(rule["id"], number, level, text, mark, entry, _uri(found.page)))

    for entry in found.rows:
        if not entry.control and entry.attack not in rules:
            rules[entry.attack] = _attack_rule(entry)
    for entry in found.rows:
        if breaches := [breach for breach in found.breaches if breach.entry is entry]:
            add(rules[entry.attack], "error", _told(breaches, entry), entry.identity, entry)
        elif not found.conditions and entry.standing == "shown":
            add(rules[entry.attack], "warning", entry.verdict, entry.identity, entry)
    nowhere = [str(breach) for breach in found.breaches if breach.entry is None]
    for text in [*nowhere, *found.unfinished]:
        add(_UNJUDGED, "error", text, text)
    for caution in found.cautions:
        add(_caution_rule(caution.kind), "note", caution.text, re.sub(r"\d[\d.,]*", "N", caution.text))
    return json.dumps(_log(found, list(rules.values()), results), indent=1) + "\n"


def _log(found: Findings, rules: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    driver = {"name": "mithridate", "version": __version__, "semanticVersion": __version__, "rules": rules}
    invocation: dict[str, Any] = {"executionSuccessful": not found.unfinished}
    if found.command:
        invocation["commandLine"] = found.command
    if found.problems:
        invocation["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": text}} for text in found.problems
        ]
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"mithridate/{found.folder.resolve().name}/"},
        "invocations": [invocation],
        "results": results,
        "properties": {"conditions": [condition.text for condition in found.conditions]},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(rule: str, number: int, level: str, text: str, mark: str, entry: Entry | None, uri: str) -> dict[str, Any]:
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}
    if entry:
        place["logicalLocations"] = [{"name": entry.name, "fullyQualifiedName": f"{entry.suite}: {entry.name}"}]
    mark = hashlib.sha256(f"{rule}: {mark}".encode(errors="replace")).hexdigest()[:16]
    made = {
        "ruleId": rule,
        "ruleIndex": number,
        "level": level,
        "message": {"text": text},
        "locations": [place],
        # the first is the name that GitHub looks for; it would make one up from line 1 of the page, the same for all
        "partialFingerprints": {"primaryLocationLineHash": f"{mark}:1", "mithridate/v1": mark},
    }
    return made | ({"properties": _numbers(entry)} if entry else {})


def _told(breaches: Sequence[Breach], entry: Entry) -> str:
    return f"{'. '.join(map(str, breaches))}. {entry.verdict}"


def _numbers(entry: Entry) -> dict[str, Any]:
    """What was measured of a row, as plain numbers."""
    made: dict[str, Any] = {"row": entry.name, "defenses": list(entry.defenses), "standing": entry.standing}
    for name, value in entry.numbers.items():
        if isinstance(value, (Rate, Mean)):
            share = value.share if isinstance(value, Rate) else value.value
            made |= {name: share, f"{name}.low": value.low, f"{name}.high": value.high, f"{name}.n": value.n}
        else:
            made[name] = value
    return made


_FAMILIES: dict[str, tuple[type, str]] = {"poison": (Attack, "Poisoning"), "leak": (Inversion, "Gradient inversion")}


# --- rules -----------------------------------------------------------------------------------------------------------


def _rule(name: str, short: str, full: str, advice: str, level: str) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": advice},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": ["security", "machine-learning"]},
    }


def _attack_rule(entry: Entry) -> dict[str, Any]:
    family, what = _FAMILIES[entry.kind]
    known = choices(family).get(entry.attack)
    about = (inspect.getdoc(known) or "").partition("\n\n")[0].replace("\n", " ") if known else ""
    return _rule(entry.attack, f"{what}: {entry.attack}", about or f"{what} {entry.attack}.", _READ, "error")


def _caution_rule(kind: Kind) -> dict[str, Any]:
    return _rule(f"caution/{kind.name}", f"Read with care: {kind.name}", kind.meaning, kind.action, "note")


_UNJUDGED = _rule(
    NOT_JUDGED,
    "Nothing was measured",
    "A condition that no row could be judged by, or a trial that failed or did not finish.",
    "Run the study to its end (the same command resumes), or look for the condition's row among those of the report.",
    "error",
)


def _uri(page: Path) -> str:
    """The page, relative to where the command runs, which is the repository in a pipeline."""
    whole, here = page.resolve(), Path.cwd()
    return quote(bytes(whole.relative_to(here))) if whole.is_relative_to(here) else whole.as_uri()
