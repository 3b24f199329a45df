"""What a scan leaves on disk, from a scan written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.core.originals import Originals
from mithridate.core.sources import Folder
from mithridate.core.training import Recipe
from mithridate.experiments.suspects import DROP, PAGE, SUMMARY, SUSPECTS, suspects, write_scan
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.scan import Finding, Scan

COUNT = 8


def given() -> Originals:
    images = torch.arange(COUNT * 3 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(COUNT, 3, 8, 8)
    data = ImageData(images, torch.arange(COUNT) % 2, ("cat", "<b>dog</b>"))
    return Originals(data, [f"set/{row}.png" for row in range(COUNT)], [0] * COUNT, Folder("set"))


def finding(name: str, scores: list[float], marked: list[int], expected: list[float], chance: float) -> Finding:
    return Finding(
        name=name,
        reason=f"is odd to {name}",
        scores=torch.tensor(scores, dtype=torch.float64),
        marked=torch.tensor(marked, dtype=torch.bool),
        expected=torch.tensor(expected, dtype=torch.float64),
        chance=chance,
    )


def by_hand() -> Scan:
    """Row 5 stands out to the first filter, row 2 to the second."""
    a = finding("first", [0, 1, 2, 3, 4, 9, 5, 6], [0, 0, 0, 0, 0, 1, 0, 1], [9, 8, 7, 6, 5, 0.1, 4, 3], 2.0)
    b = finding("second", [0, 1, 8, 2, 3, 4, 5, 6], [0, 0, 1, 0, 0, 0, 0, 0], [9, 8, 0.2, 7, 6, 5, 4, 3.5], 0.25)
    value, by = torch.stack([a.expected, b.expected]).min(0)
    return Scan(given().data, (a, b), 2 * value, by)


def test_the_list_says_who_speaks_against_a_row_and_how_loudly() -> None:
    first, second, *others = suspects(by_hand(), given(), allowed=1.0)
    assert (first.row, first.name, first.label, first.expected) == (5, "set/5.png", "<b>dog</b>", 0.2)
    assert (first.reason, first.filters, first.scores) == ("is odd to first", ("first",), (9.0, 4.0))
    assert (second.row, second.reason, second.filters) == (2, "is odd to second", ("second",))
    assert [one.drop for one in (first, second, *others)] == [True, True, *[False] * 6]
    assert [one.rank for one in (first, second, *others)] == list(range(1, 9))
    assert {one.row for one in others} == {0, 1, 3, 4, 6, 7}


def test_the_files_agree_with_the_list(tmp_path: Path) -> None:
    settings = [("filter", SpectralSignatures()), ("model", Recipe())]
    said = write_scan(
        tmp_path, by_hand(), given(), allowed=1.0, top=3, settings=settings, command="mithridate scan set"
    )
    with (tmp_path / SUSPECTS).open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines][:2] == [5, 2]
    assert len(lines) == COUNT
    assert lines[0]["score first"] == "9"
    assert lines[0]["drop"] == "1"
    assert float(lines[1]["expected_false_alarms"]) == pytest.approx(0.4)
    assert (tmp_path / DROP).read_text() == "set/5.png\nset/2.png\n"
    stored = json.loads((tmp_path / SUMMARY).read_text())
    assert stored["suspects"] == said["suspects"] == 2
    assert [(one["filter"], one["marked"], one["marked_by_chance"]) for one in stored["filters"]] == [
        ("first", 2, 2.0),
        ("second", 1, 0.25),
    ]
    page = (tmp_path / PAGE).read_text()
    assert page.count("<img") == 3
    assert page.count('class="chosen"') == 2
    assert "<b>dog</b>" not in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "2 rows of 8 stand out" in page
    assert "mithridate scan set" in page


def test_a_list_without_anybody_on_it(tmp_path: Path) -> None:
    said = write_scan(tmp_path, by_hand(), given(), allowed=0.0, top=60, settings=[], command=None)
    assert said["suspects"] == 0
    assert (tmp_path / DROP).read_text() == ""
    page = (tmp_path / PAGE).read_text()
    assert "None of 8 rows stands out" in page
    assert page.count("<img") == COUNT
