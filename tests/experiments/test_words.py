"""Sentences about single rows; sentences about whole tables are tested with the table."""

from __future__ import annotations

import pytest

from mithridate.experiments import words
from mithridate.experiments.statistics import Mean, Rate
from mithridate.experiments.table import table
from tests.experiments.synthetic import RECIPE, hits

WIDE = RECIPE | {"model": "convnet-wide"}


def rows(*groups):
    return table([pair for group in groups for pair in group]).rows


def test_p_values_and_what_holm_makes_of_them():
    assert words.p_texts(0.0004, 0.2) == "p < 0.001, Holm 0.2"
    assert words.p_texts(0.0001, 0.0005) == "p < 0.001, Holm < 0.001"
    assert words.p_texts(0.02, 0.02) == "p = 0.02"
    assert words.bare_p(1.0) == "1"
    assert words.tied("p = 0.1, Holm 0.2") == "p\u00a0=\u00a00.1, Holm\u00a00.2"


def test_spans_of_rates_and_means():
    assert words.span(Rate(3, 20, 20.0, 0.04, 0.36)) == "4 to 36"
    assert words.span(Mean(0.0, -0.01, 0.02, 3), 100, 1) == "−1.0 to 2.0"
    assert words.span(Mean(0.0, None, None, 1)) == ""


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ((hits("witches-brew", [1] * 8), hits("random-noise", [0] * 8)), "shown"),
        ((hits("witches-brew", [1] * 8), hits("no-attack", [0] * 8)), "weak"),
        ((hits("witches-brew", [0] * 8), hits("random-noise", [0] * 8)), "open"),
        ((hits("witches-brew", [1] * 8),), "alone"),
    ],
)
def test_standing_in_a_word(groups, word):
    row = next(row for row in rows(*groups) if not row.control)
    assert words.standing(row) == word


def test_standing_falls_back_to_margins_and_then_to_open_under_holm():
    attack, noise = list(hits("witches-brew", [0] * 6)), list(hits("random-noise", [0] * 6))
    for _, done in attack:
        done["outcome"]["margin"] = [[1.0]]
    row = next(row for row in rows(attack, noise) if not row.control)
    assert words.standing(row) == "margins"
    crowd = rows(attack, noise, *(hits("badnets", [0] * 6, learner=RECIPE | {"epochs": e}) for e in (40, 80)))
    assert {words.standing(row) for row in crowd if row.attack == "witches-brew"} == {"open"}


def test_access_is_named_where_it_varies_or_is_not_the_usual_one():
    plain, black = hits("witches-brew", [1]), hits("witches-brew", [1], surrogate=WIDE)
    noise = hits("random-noise", [0])
    found = rows(plain, black, noise)
    assert [words.where(row, found) for row in found] == ["grey box", "black box", ""]
    found = rows(hits("witches-brew", [1]), hits("poison-frogs", [1], pretrain=RECIPE))
    assert [words.where(row, found) for row in found] == ["from scratch", "transfer"]
    found = rows(hits("poison-frogs", [1], pretrain=RECIPE, knows_features=False))
    assert [words.where(row, found) for row in found] == ["grey box"]
    assert words.place(found[0]) == "transfer, cifar10, convnet"


def test_scenes_of_controls_alone():
    (scene,) = words.scenes(rows(hits("no-attack", [0] * 3)))
    assert [row.attack for row in scene.rows] == ["no-attack"]
