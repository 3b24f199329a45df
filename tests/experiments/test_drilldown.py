"""Trial by trial: every drawn case is there, with its own numbers and its control's in the same case."""

from __future__ import annotations

from statistics import fmean

import pytest

from mithridate.experiments import drilldown
from mithridate.experiments.drilldown import Thumbnails
from mithridate.experiments.table import table
from tests.experiments import grids, synthetic as made


@pytest.fixture(scope="module")
def pairs():
    return made.pairs(targets=20, cases=6)


@pytest.fixture(scope="module")
def drills(pairs, tmp_path_factory):
    return drilldown.drilldown(table(pairs).rows, Thumbnails(tmp_path_factory.mktemp("nothing")))


def _raw(pairs, row):
    settings = {name: value for name, value in row.settings.items() if name not in ("seed", "victims")}
    return {
        trial["seed"]: result
        for trial, result in pairs
        if {name: value for name, value in trial.items() if name not in ("seed", "victims")} == settings
    }


def test_every_trial_has_one_line_with_its_raw_numbers(pairs, drills):
    assert sum(len(drill.lines) for drill in drills) == len(pairs)
    for drill in drills:
        raw = _raw(pairs, drill.row)
        assert sorted(line.seed for line in drill.lines) == sorted(raw)
        for line in drill.lines:
            result = raw[line.seed]
            hits = [value for victim in result["outcome"]["success"] for value in victim]
            margins = [value for victim in result["outcome"]["margin"] for value in victim]
            assert (line.hits, line.of) == (sum(hits), len(hits))
            assert line.margin == pytest.approx(fmean(margins))
            assert line.accuracy == pytest.approx(fmean(result["outcome"]["accuracy"]))
            assert line.poisons == result["poison"]["count"]
            assert line.seconds == sum(result["seconds"].values())


def test_the_margin_beside_is_the_controls_in_the_same_case(pairs, drills):
    drill = next(d for d in drills if d.row.attack == "witches-brew" and d.row.defense == "none")
    assert drill.control == "random-noise"
    noise = {
        trial["seed"]: result["outcome"]["margin"][0][0]
        for trial, result in pairs
        if trial["attack"]["type"] == "random-noise" and trial["threat"] == drill.row.settings["threat"]
        if not trial["defenses"]
    }
    assert {line.seed: line.control for line in drill.lines} == noise


def test_controls_have_no_control_beside(drills):
    assert all(not drill.control for drill in drills if drill.row.control)


def test_successes_come_first_then_margins_from_the_top(drills):
    for drill in drills:
        order = [(-line.hits / line.of, -(line.margin or 0)) for line in drill.lines]
        assert order == sorted(order)


def test_cases_are_named(drills):
    drill = next(d for d in drills if d.row.attack == "witches-brew")
    line = next(line for line in drill.lines if line.seed == 3)
    assert line.case == "<script>alert(1)</script> → bird & co (row 3000)"
    backdoor = next(d for d in drills if d.row.attack == "badnets")
    assert backdoor.lines[0].case == "any → bird & co"


def test_many_targets_and_own_files_are_named_shortly():
    case = {"target_classes": ["cat", "cat"], "intended": ["dog", "dog"], "target_rows": [1, 2, 3, 4, 5]}
    assert drilldown._case(case, "misclassify") == "cat → dog (row 1, 2, 3 and 2 more)"
    assert drilldown._case(case | {"target_files": ["me.png"]}, "misclassify") == "cat → dog (me.png)"


def test_warnings_are_listed_once_and_pointed_to(drills):
    drill = next(d for d in drills if d.row.attack == "witches-brew")
    assert drill.warnings == ["bf16 is slow on this machine; precision=fp32 was used"]
    assert [line.seed for line in drill.lines if line.warnings == [1]] == [3]


def test_long_cells_are_cut_and_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(drilldown, "LONGEST", 5)
    rows = table(grids.transfer_pairs(targets=8)).rows
    for drill in drilldown.drilldown(rows, Thumbnails(tmp_path)):
        assert (len(drill.lines), drill.left_out) == (5, 3)


def test_missing_margins_and_accuracies_are_left_empty(tmp_path):
    settings = made.trial("witches-brew", made.TARGETED)
    rows = table([(settings, made.result(settings, [[1]], [[None]], []))]).rows  # type: ignore[list-item]
    (drill,) = drilldown.drilldown(rows, Thumbnails(tmp_path))
    assert (drill.lines[0].margin, drill.lines[0].accuracy) == (None, None)


def test_a_target_has_one_picture_however_many_cells_aim_at_it(tmp_path):
    grids.write(tmp_path, iter(pairs := list(grids.grid_pairs(targets=3))), poisons=3)
    thumbnails = Thumbnails(tmp_path)
    drills = drilldown.drilldown(table(pairs).rows, thumbnails)
    assert sorted(thumbnails.symbols()) == ["target-1", "target-2", "target-3"]
    for drill in drills:
        names = {line.seed: line.thumbnail for line in drill.lines}
        assert names == ({0: "", 1: "", 2: ""} if drill.row.triggered else {i: f"target-{i + 1}" for i in range(3)})


def test_pictures_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(drilldown, "THUMBNAILS", 2)
    grids.write(tmp_path, iter(pairs := list(grids.transfer_pairs(targets=4))), poisons=4)
    thumbnails = Thumbnails(tmp_path)
    drilldown.drilldown(table(pairs).rows, thumbnails)
    assert len(thumbnails.symbols()) == 2


def test_files_of_the_user_are_told_apart_though_their_rows_are_equal():
    results = [{"case": {"goal": "misclassify", "target_rows": [50], "target_files": [name]}} for name in ("a", "b")]
    assert drilldown._pictured(results[0]) != drilldown._pictured(results[1])
