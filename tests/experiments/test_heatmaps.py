"""Heat maps hold every cell once, at its place, with its numbers; what was not run is empty."""

from __future__ import annotations

import pytest

from mithridate.experiments import heatmaps
from mithridate.experiments.table import table
from tests.experiments import grids, synthetic as made


@pytest.fixture(scope="module")
def pairs():
    return list(grids.grid_pairs(targets=6))


@pytest.fixture(scope="module")
def rows(pairs):
    return table(pairs).rows


def _share(pairs, attack, defense, adaptive):
    """Straight from the raw outcomes."""
    hits = [
        value
        for trial, result in pairs
        if trial["attack"]["type"] == attack
        and [d["type"] for d in trial["defenses"]] == ([] if defense == "none" else [defense])
        and trial["adaptive"] == adaptive
        for victim in result["outcome"]["success"]
        for value in victim
    ]
    return sum(hits) / len(hits) if hits else None


def test_every_box_has_the_rate_of_its_raw_outcomes(pairs, rows):
    (found,) = heatmaps.heatmaps(rows)
    assert [line.defense for line in found.lines] == ["none", *sorted(d["type"] for d in grids.DEFENSES)]
    assert [head.attack for head in found.heads] == ["witches-brew", "badnets", "poison-frogs"]
    assert all(head.both for head in found.heads)
    seen = 0
    for line in found.lines:
        places = iter(line.slots)
        for head in found.heads:
            for adaptive in (False,) if line.defense == "none" else (False, True):
                slot, expected = next(places), _share(pairs, head.attack, line.defense, adaptive)
                assert slot.width == (2 if line.defense == "none" else 1)
                assert [box.row.success.share for box in slot.boxes] == ([] if expected is None else [expected])
                seen += len(slot.boxes)
        assert next(places, None) is None
    assert seen == sum(not row.control for row in rows)


def test_what_was_not_run_is_empty_and_not_zero(rows):
    (found,) = heatmaps.heatmaps(rows)
    empty = sum(not slot.boxes for line in found.lines for slot in line.slots)
    assert empty == len(grids.UNRUN)


def test_boxes_lead_to_their_own_cells(rows):
    named = heatmaps.anchors(rows)
    assert len(set(named.values())) == len(rows)
    (found,) = heatmaps.heatmaps(rows)
    for line in found.lines:
        for slot in line.slots:
            assert all(box.anchor == named[id(box.row)] for box in slot.boxes)


def test_accuracy_is_that_of_unattacked_models(rows):
    (found,) = heatmaps.heatmaps(rows)
    assert found.places == ["from scratch", "transfer"]
    for line in found.lines:
        for place, accuracy in zip(found.places, line.accuracies, strict=True):
            assert accuracy is not None
            assert (accuracy.row.attack, accuracy.row.scenario) == ("no-attack", place)
            assert accuracy.row.defense == line.defense
    vote = next(line for line in found.lines if line.defense == "partition-vote")
    assert [accuracy.tone for accuracy in vote.accuracies if accuracy] == [3, 3]  # 16 points


@pytest.mark.parametrize(
    "share, expected", [(0.0, 0), (0.049, 0), (0.05, 1), (0.2, 2), (0.4, 3), (0.6, 4), (0.8, 5), (1, 5)]
)
def test_tones(share, expected):
    assert heatmaps.tone(share) == expected


def test_without_adaptive_cells_there_is_one_column_per_attack():
    (found,) = heatmaps.heatmaps(table(grids.grid_pairs(targets=2, adaptive=False)).rows)
    assert not found.both
    assert found.columns == 3
    assert all(slot.width == 1 for line in found.lines for slot in line.slots)


def test_too_many_columns_give_each_scene_its_own_map(rows, monkeypatch):
    monkeypatch.setattr(heatmaps, "WIDEST", 5)
    found = heatmaps.heatmaps(rows)
    assert [len(one.heads) for one in found] == [1, 1, 1]
    assert len({one.title for one in found}) == 3


def test_controls_alone_make_no_map():
    settings = made.trial("no-attack", made.TARGETED)
    assert heatmaps.heatmaps(table([(settings, made.result(settings, [[0]], [[0.0]], [0.6]))]).rows) == []


def test_transfer_grid_has_each_surrogate_and_victim():
    pairs = list(grids.transfer_pairs(targets=6))
    (found,) = heatmaps.transfer_grids(table(pairs).rows)
    assert found.scenarios == [("from scratch", ["convnet", "convnet-wide"])]
    assert "from scratch" in found.title
    assert [surrogate for surrogate, _ in found.lines] == ["convnet", "convnet-wide"]
    for surrogate, slots in found.lines:
        for victim, slot in zip(found.scenarios[0][1], slots, strict=True):
            hits = [
                result["outcome"]["success"][0][0]
                for trial, result in pairs
                if trial["attack"]["type"] == "witches-brew"
                and trial["learner"]["model"] == victim
                and (trial["surrogate"] or trial["learner"])["model"] == surrogate
            ]
            (box,) = slot.boxes
            assert box.row.success.share == sum(hits) / 6


def test_scenarios_stand_side_by_side_in_one_transfer_grid():
    scratch = list(grids.transfer_pairs(targets=3))
    tuned = []
    for trial, result in scratch:
        moved = trial | {"pretrain": made.RECIPE, "tuned": "head"}
        tuned.append((moved, result | {"trial": made.name_of(moved)}))
    (found,) = heatmaps.transfer_grids(table(scratch + tuned).rows)
    both = ["convnet", "convnet-wide"]
    assert found.scenarios == [("from scratch", both), ("transfer", both)]
    assert "scratch" not in found.title
    for _, slots in found.lines:
        assert [slot.boxes[0].row.scenario for slot in slots] == ["from scratch"] * 2 + ["transfer"] * 2
        assert [slot.boxes[0].row.model for slot in slots] == both * 2


def test_one_surrogate_and_one_victim_need_no_transfer_grid(rows):
    assert heatmaps.transfer_grids(rows) == []
