"""Rows of both kinds of tables as entries: names that tell them apart, the numbers of the table, stable identities."""

from __future__ import annotations

import math

import pytest

from mithridate.experiments.entries import MEASURES, entries
from mithridate.experiments.leak_table import leak_table
from mithridate.experiments.statistics import Mean, Rate
from mithridate.experiments.table import table
from tests.experiments import leak_cases, synthetic as made
from tests.experiments.synthetic import MIXUP, TARGETED, hits, result, trial


def leaks(cases: int = 3):
    return leak_table([(settings, done) for settings, done, _ in leak_cases.realistic(cases)])


@pytest.mark.parametrize("found", [table(made.pairs()), leaks()], ids=["poison", "leak"])
def test_every_row_is_an_entry_with_a_name_and_an_identity_of_its_own(found) -> None:
    rows = entries(found)
    assert [entry.label for entry in rows] == [row.attack for row in found.rows]
    assert len({entry.name for entry in rows}) == len({entry.identity for entry in rows}) == len(rows) > 10
    assert {entry.kind for entry in rows} <= MEASURES.keys()
    for entry in rows:
        assert entry.numbers.keys() <= MEASURES[entry.kind].keys()
        assert all(entry.text(name) for name in entry.numbers)


def test_numbers_are_those_of_the_table() -> None:
    found = table(made.pairs())
    row, entry = next(
        (row, entry)
        for row, entry in zip(found.rows, entries(found), strict=True)
        if (row.attack, row.defense) == ("badnets", "spectral-signatures")
    )
    assert entry.numbers["success"] is row.success
    assert row.detection is not None
    assert row.against is not None
    assert entry.numbers["recall"] is row.detection.recall
    assert entry.numbers["holm"] == row.against.holm
    assert entry.numbers["cost"] is row.cost
    assert (entry.attack, entry.defenses, entry.control) == ("badnets", ("spectral-signatures",), False)
    assert entry.name == "badnets vs spectral-signatures, from scratch"
    assert entry.verdict in found.verdict()


def test_what_was_not_measured_is_no_number() -> None:
    settings = trial("witches-brew", TARGETED)
    (entry,) = entries(table([(settings, result(settings, [[]], [[]], []))]))
    assert entry.numbers == {}
    assert "no outcome was measured" in entry.verdict


def test_controls_of_two_panels_are_told_apart_by_what_they_control() -> None:
    names = [entry.name for entry in entries(table(made.pairs())) if entry.label == "random-noise"]
    assert "random-noise, from scratch, chosen targets, 2 % poison, Linf 16/255" in names
    assert "random-noise, from scratch, backdoor, 2 % poison, patch of 10 % of the image" in names


def test_the_same_attack_has_the_same_identity_whatever_came_out_and_however_victims_trained() -> None:
    def of(won, *defenses, attack="witches-brew", **more):
        return entries(table(hits(attack, won, *defenses, **more)))[0].identity

    once = of([1, 0, 0])
    assert of([0, 0, 0, 1]) == once
    assert of([1, 0, 0], learner=made.RECIPE | {"epochs": 10}) == once
    others = {
        of([1, 0, 0], MIXUP),
        of([1, 0, 0], MIXUP, adaptive=True),
        of([1, 0, 0], attack="poison-frogs"),
        of([1, 0, 0], threat=TARGETED | {"budget": 0.01}),
        of([1, 0, 0], learner=made.RECIPE | {"model": "resnet18"}),
        once,
    }
    assert len(others) == 6


def test_rows_that_only_a_recipe_tells_apart_have_identities_of_their_own() -> None:
    longer = made.RECIPE | {"epochs": 80}
    rows = entries(table([*hits("witches-brew", [1, 0]), *hits("witches-brew", [1, 1], learner=longer)]))
    assert len(rows) == 2
    assert rows[0].identity != rows[1].identity
    assert rows[0].name != rows[1].name


def test_an_interval_in_words_stays_inside_what_can_be_measured() -> None:
    accuracy, psnr = MEASURES["poison"]["accuracy"], MEASURES["leak"]["psnr"]
    assert accuracy.text(Mean(0.97, 0.9, 1.04, 3)) == "97.0 % (90.0 to 100.0 %; mean of 3)"
    assert accuracy.text(Rate(1, 4, 4.0, 0.01, 0.7)) == "25 % (1 to 70 %; 1 of 4)"
    assert psnr.text(Mean(-3.25, -5.0, 1.5, 2)) == "-3.25 dB (-5 to 1.5; mean of 2)"
    assert MEASURES["poison"]["p"].text(0.125) == "0.125"
    assert MEASURES["leak"]["epsilon"].range == (0.0, math.inf)
