"""The first sentences of a report say what was shown, and no more."""

from __future__ import annotations

import pytest

from mithridate.experiments import headline, words
from mithridate.experiments.table import table
from tests.experiments import grids, synthetic as made


@pytest.fixture(scope="module")
def rows():
    return table(grids.grid_pairs(targets=6)).rows


def test_one_brief_per_attack_with_static_and_adaptive_apart(rows):
    briefs = headline.briefs(rows)
    assert len(briefs) == 3
    for brief in briefs:
        assert len(brief.sentences) == 3
        assert ": without a defence " in brief.sentences[0]
        assert brief.sentences[1].startswith("Not knowing the defence: ")
        assert brief.sentences[2].startswith("Adapting to the defence: ")


def test_every_defended_cell_is_named_once_with_its_rate_under_its_own_standing(rows):
    said = {brief.sentences[0].split(",")[0]: brief for brief in headline.briefs(rows)}
    for row in rows:
        if not row.control and row.defense != "none":
            sentence = said[row.attack].sentences[2 if row.adaptive else 1]
            parts = [part for part in sentence.split(";") if f"{row.defense} (" in part]
            assert len(parts) == 1, (row.attack, row.defense)
            assert {"shown": "beats its control with", "open": "not shown with"}.get(words.standing(row), "") in parts[
                0
            ]
            assert f"{row.defense} ({words.percent(row.success.share)} %)" in parts[0]


def test_an_attack_never_run_without_a_defence_says_so():
    pairs = []
    for attack in ("witches-brew", "random-noise"):
        settings = made.trial(attack, made.TARGETED, made.MIXUP)
        pairs.append((settings, made.result(settings, [[1]], [[1.0]], [0.6])))
    (brief,) = headline.briefs(table(pairs).rows)
    assert brief.standing == "alone"
    assert brief.sentences[0].endswith(": not run without a defence.")


def test_headline_counts(rows):
    attacks = [row for row in rows if not row.control]
    shown = sum(words.standing(row) == "shown" for row in attacks)
    assert headline.headline(attacks).startswith(f"{shown} of {len(attacks)} attack settings")
