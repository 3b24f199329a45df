"""The leaderboard: entries from a study, a validator with one planted fault each, a page that sorts in a browser."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mithridate.experiments.leaderboard import (
    LARGEST,
    Entry,
    check_entry,
    check_file,
    entries_of,
    identity,
    place,
    read_entries,
    write_entries,
)
from mithridate.experiments.leaderboard_page import write_leaderboard
from mithridate.experiments.study import load_results
from mithridate.experiments.table import table
from studies import leaderboard as script
from tests.experiments import grids
from tests.experiments.test_browser import BROWSER, browse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "study"
    return grids.write(path, iter(grids.grid_pairs(targets=4)))


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[Entry]:
    return list(entries_of(folder, source="here", submitted_by="me"))


def test_every_attacked_row_has_an_entry_with_the_numbers_of_its_table(folder: Path, entries: list[Entry]) -> None:
    rows = [row for row in table(load_results(folder)).rows if not row.control]
    assert len(entries) == len(rows) > 3
    for row, entry in zip(rows, entries, strict=True):
        assert entry["success"]["share"] == row.success.share
        assert (entry["success"]["low"], entry["success"]["n"]) == (row.success.low, row.success.n)
        assert entry["accuracy"]["value"] == row.accuracy.value
        assert [one["type"] for one in entry["defenses"]] == [one["type"] for one in row.cell.defenses]
        assert (entry["control"] is None) == (row.against is None)
        assert check_entry(json.loads(json.dumps(entry))) == []
    assert len({identity(entry) for entry in entries}) == len(entries)


def test_entries_are_written_read_in_order_and_found_by_what_they_hold(entries: list[Entry], tmp_path: Path) -> None:
    paths = write_entries(entries, tmp_path)
    assert all(check_file(path) == [] for path in paths)
    read = read_entries(tmp_path)
    assert sorted(map(identity, read)) == sorted(map(identity, entries))
    keys = [(place(entry), -entry["success"]["share"]) for entry in read]
    assert keys == sorted(keys)
    assert [path.name for path in write_entries(entries, tmp_path)] == [path.name for path in paths]


FAULTS: dict[str, tuple[Any, str]] = {
    "a key too many": (lambda e: e.update(date="today"), "date is not known"),
    "a key too few": (lambda e: e.pop("command"), "command is missing"),
    "another type": (lambda e: e.update(adaptive="no"), "adaptive is a str; expected bool"),
    "a number for text": (lambda e: e.update(goal=3), "goal is a int; expected str"),
    "another schema": (lambda e: e.update(schema=9), "schema is 9; this version reads 1"),
    "an unknown attack": (lambda e: e["attack"].update(type="witchs-brew"), "'witchs-brew' is no attack"),
    "an unknown defence": (lambda e: e.update(defenses=[{"type": "hope"}]), "'hope' is no defence"),
    "another goal": (lambda e: e.update(goal="fame"), "goal is 'fame'; it is one of"),
    "no command": (lambda e: e.update(command="  "), "command is empty"),
    "a setting too few": (lambda e: e["setting"].pop("train"), "setting.train is missing"),
    "no number": (lambda e: e["success"].update(low=None), "success.low is None"),
    "an interval beside its share": (lambda e: e["success"].update(low=0.999, high=1.0), "expected 0 <= low <= share"),
    "a share above one": (lambda e: e["success"].update(share=1.5), "expected 0 <= low <= share <= high <= 1"),
    "more independent outcomes than outcomes": (lambda e: e["success"].update(n_eff=1e6), "0 < n_eff <= n"),
    "parts of an outcome": (lambda e: e["success"].update(n=4, n_eff=4.0, share=0.3, cases=4), "no whole number"),
    "too narrow an interval": (
        lambda e: e["success"].update(share=0.5, n=4, n_eff=4.0, cases=4, low=0.45, high=0.55),
        "narrower than 4 independent outcomes allow",
    ),
    "a p above one": (lambda e: e.update(control={"share": 0.1, "p_holm": 2.0}), "control.p_holm is 2.0"),
    "shown without a test": (
        lambda e: e.update(control={"share": 0.1, "p_holm": 0.4, "shown": True}),
        "control.shown is true with an adjusted p of 0.4",
    ),
    "accuracy in percent": (lambda e: e["accuracy"].update(value=91.0), "accuracy.value is 91.0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(entries: list[Entry], name: str) -> None:
    fault, message = FAULTS[name]
    entry = copy.deepcopy(entries[0])
    fault(entry)
    problems = check_entry(entry)
    assert any(message in problem for problem in problems), problems


def test_files_that_are_no_entries(entries: list[Entry], tmp_path: Path) -> None:
    (path,) = write_entries(entries[:1], tmp_path)
    wrong = path.rename(tmp_path / "mine.json")
    assert check_file(wrong) == [f"it is called mine.json; by what it holds it should be {identity(entries[0])}.json"]
    wrong.write_text("[1, 2")
    assert "it is no JSON" in check_file(wrong)[0]
    wrong.write_text("[" * 90_000)
    assert "it is no JSON" in check_file(wrong)[0]
    wrong.write_text(" " * (LARGEST + 1))
    assert "an entry has at most 100,000" in check_file(wrong)[0]
    assert check_file(tmp_path / "none.json") == ["there is no such file"]
    assert "it is a list; an entry is an object" in check_entry([])[0]
    with pytest.raises(ValueError, match=r"it is no JSON|at most"):
        read_entries(tmp_path)
    with pytest.raises(ValueError, match="is no results folder"):
        list(entries_of(tmp_path))
    with pytest.raises(ValueError, match="there are no entries"):
        write_leaderboard([], tmp_path / "page.html")


def test_the_script_checks_and_adds_entries(
    folder: Path, entries: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(script, "BOARD", tmp_path)
    assert script.main(["from", str(folder), "me"]) == 0
    paths = sorted(map(str, (tmp_path / script.THEIRS).glob("*.json")))
    assert len(paths) == len(entries)
    assert script.main(["check", *paths]) == 0
    broken = json.loads(Path(paths[0]).read_text()) | {"goal": "fame"}
    Path(paths[0]).write_text(json.dumps(broken))
    assert script.main(["check", *paths]) == 1
    said = capsys.readouterr().out
    assert "goal is 'fame'" in said
    assert f"{len(paths) - 1} of {len(paths)} entries are in order" in said
    assert script.main([]) == 2


def test_making_the_board_keeps_what_others_submitted(folder: Path, entries: list[Entry], tmp_path: Path) -> None:
    results, board = tmp_path / "results", tmp_path / "board"
    results.mkdir()
    (results / "one").symlink_to(folder, target_is_directory=True)
    write_entries([entries[0] | {"source": "elsewhere"}], board / script.THEIRS)
    assert script.make(board, results) == len(entries) + 1
    assert script.make(board, results) == len(entries) + 1


@pytest.mark.skipif(not script.RESULTS.is_dir(), reason="stored results are in the repository, not in an sdist")
def test_the_committed_board_is_made_of_the_committed_results(tmp_path: Path) -> None:
    """One folder entry by entry, and the page from all entries."""
    for entry in entries_of(script.RESULTS / "backdoors-cleansed", source="studies/results/backdoors-cleansed"):
        stored = json.loads((script.BOARD / script.OURS / f"{identity(entry)}.json").read_text())
        assert stored == json.loads(json.dumps(entry | {"submitted_by": "mithridate"}))
    page = write_leaderboard(read_entries(script.BOARD), tmp_path / "index.html").read_text()
    assert page == (script.BOARD / "index.html").read_text()


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")
def test_a_browser_sorts_filters_and_loads_nothing(entries: list[Entry], tmp_path: Path) -> None:
    page = write_leaderboard(entries, tmp_path / "index.html")
    dom, console, asked = browse(page, tmp_path, "--dump-dom")
    assert console == []
    assert asked == []
    assert f"{len(entries)} of {len(entries)} entries" in dom
    clicks = (
        "const b = [...document.querySelectorAll('thead button')].find((one) => one.textContent === 'Success');"
        "b.click(); {again}"
        "const f = document.querySelector('[data-filter=defense]'); f.value = '{defense}';"
        "f.dispatchEvent(new Event('change'));"
    )
    text = page.read_text(encoding="utf-8")
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    shares = {}
    for name, again in (("ascending", ""), ("descending", "b.click();")):
        code = clicks.replace("{again}", again).replace("{defense}", "none")
        driven = tmp_path / f"{name}.html"
        driven.write_text(free.replace("</body>", f"<script>{{{code}}}</script></body>"), encoding="utf-8")
        dom, console, _ = browse(driven, tmp_path, "--dump-dom")
        assert console == []
        assert f'aria-sort="{name}"' in dom
        rows = re.findall(r"<tr role=\"row\" data-place.*?</tr>", dom, re.DOTALL)
        assert len(rows) == len(entries)
        shown = [row for row in rows if 'hidden=""' not in row.split(">", 1)[0]]
        assert all('data-defense="none"' in row for row in shown)
        assert 0 < len(shown) < len(rows)
        shares[name] = [float(re.findall(r'data-label="Success" data-value="([\d.e-]+)"', row)[0]) for row in rows]
    assert shares["ascending"] == sorted(shares["ascending"])
    assert shares["descending"] == sorted(shares["descending"], reverse=True)
    assert shares["ascending"] != shares["descending"]


def test_without_scripts_it_is_a_plain_table(entries: list[Entry], tmp_path: Path) -> None:
    text = write_leaderboard(entries, tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<div id="controls" hidden>' in text
    assert text.count('<tr role="row" data-place') == len(entries)
    assert "http" not in re.sub(r"http-equiv", "", text)
