"""Threat models in words."""

from __future__ import annotations

import pytest

from mithridate.experiments.threats import Budget, bound, threat_sentences
from tests.experiments.synthetic import RECIPE, TARGETED, result, trial

LINF, PATCH = {"type": "linf", "eps": 4 / 255}, {"type": "patch", "area": 0.1}
WIDE = RECIPE | {"model": "convnet-wide"}


def sentences(threat=TARGETED, **settings):
    made = trial("witches-brew", threat, **settings)
    return threat_sentences(made, Budget.of(made, [result(made, [[1]], [[1.0]], [0.9])]))


def test_bounds_of_sums_name_their_parts():
    assert bound({"type": "sum", "balls": [LINF, PATCH]}) == "Linf 4/255 + patch of 10 % of the image"
    may = sentences(TARGETED | {"ball": {"type": "sum", "balls": [LINF, PATCH]}})[0]
    assert "no pixel value by more than 4 (of a range of 0 to 255), and on top of that only inside one rectangle" in may


def test_recolouring_is_said_in_per_cent_of_the_range():
    ball = {"type": "sum", "balls": [{"type": "recolor", "eps": 0.04, "grid": 10, "smoothness": 1.0}, LINF]}
    assert bound(ball) == "colours by 4 % + Linf 4/255"
    assert "the colour of a pixel by at most 4 % of the range" in sentences(TARGETED | {"ball": ball})[0]


def test_warps_are_said_in_pixels_and_triggers_with_their_own_limit():
    warp = {"type": "moved", "pixels": 0.6}
    goal = {"type": "backdoor", "intended": None, "sources": "all", "area": 0.1, "limit": warp}
    assert bound(warp) == "warp by 0.6 pixels"
    may, _, wants = sentences(TARGETED | {"ball": warp, "goal": goal})
    assert "change them only so that a pixel shows what the image has within 0.6 pixels of it (a warp)." in may
    assert "The trigger may change an image only so that a pixel shows" in wants


@pytest.mark.parametrize(
    ("settings", "knows"),
    [
        ({}, "sees the training data and knows the recipe, but not"),
        ({"surrogate": RECIPE | {"epochs": 3}}, "guesses the recipe (convnet), but not"),
        ({"surrogate": WIDE}, "guesses the architecture (convnet-wide), but not"),
        ({"pretrain": RECIPE}, "knows the recipe and the weights that the victim starts from, but not"),
        ({"pretrain": RECIPE, "knows_features": False}, "knows the recipe, but trains the weights it starts from anew"),
        ({"pretrain": RECIPE, "surrogate": WIDE}, "guesses the architecture (convnet-wide), but not"),
        ({"learner": RECIPE | {"start_from": "w"}}, "knows the recipe and the weights that the victim starts from"),
    ],
)
def test_what_the_attacker_knows_is_said(settings, knows):
    assert knows in sentences(**settings)[1]


def test_targets_named_by_hand_are_not_said_to_be_drawn():
    made = trial("witches-brew", TARGETED)
    for case, what in (
        ({"target_rows": [7], "intended": "cat"}, "one image named in advance, classified as cat"),
        ({"target_rows": [], "target_files": ["a.png", "b.png"], "intended": "cat"}, "2 images named in advance"),
    ):
        threat = made["threat"] | {"case": case}
        assert what in threat_sentences(made | {"threat": threat}, Budget(0.02, 0, 0, "", 0))[2]
    assert "one test image, drawn before any training" in sentences()[2]
