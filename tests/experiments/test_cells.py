"""Scenario and access of a trial's JSON against the trial itself; cells, their controls and counterparts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mithridate.core.learners import Mixed, TrainFunction
from mithridate.core.schema import to_json
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments import cells as grid
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from tests.experiments.synthetic import MIXUP, RECIPE, TARGETED, hits, result, trial

VICTIM = Recipe(model="convnet")
OTHER = Recipe(model="resnet18")
GIVEN = replace(VICTIM, start_from=Path("weights.safetensors"))
BOTH = Mixed((VICTIM, OTHER))


def _train(dataset: Any, seed: int) -> Any:
    raise AssertionError("never called")


OWN = TrainFunction(_train)


@pytest.mark.parametrize(
    "settings",
    [
        {"learner": VICTIM},
        {"learner": VICTIM, "surrogate": replace(VICTIM, epochs=3)},
        {"learner": VICTIM, "surrogate": OTHER},
        {"learner": VICTIM, "surrogate": BOTH},
        {"learner": VICTIM, "surrogate": Mixed((VICTIM, VICTIM))},
        {"learner": BOTH},
        {"learner": BOTH, "surrogate": Mixed((OTHER, VICTIM))},
        {"learner": OWN},
        {"learner": OWN, "surrogate": VICTIM},
        {"learner": VICTIM, "pretrain": VICTIM},
        {"learner": VICTIM, "pretrain": VICTIM, "knows_features": False},
        {"learner": VICTIM, "pretrain": VICTIM, "tuned": "all"},
        {"learner": VICTIM, "pretrain": VICTIM, "tuned": "all", "surrogate": OTHER, "knows_features": False},
        {"learner": VICTIM, "pretrain": VICTIM, "surrogate": OTHER},
        {"learner": GIVEN},
        {"learner": replace(GIVEN, trainable="head")},
        {"learner": GIVEN, "surrogate": replace(GIVEN, start_from=Path("others.safetensors"))},
        {"learner": GIVEN, "surrogate": VICTIM},
        {"learner": Mixed((GIVEN, GIVEN))},
    ],
)
def test_scenario_and_access_of_json_are_those_of_the_trial(settings):
    made = Trial(data=Digits(), threat=WitchesBrew.threat, attack=WitchesBrew(), **settings)
    written = to_json(made)
    assert grid.scenario_of(written) == made.scenario
    assert grid.access_of(written) == made.access
    assert made.scenario in grid.SCENARIOS
    assert made.access in grid.ACCESSES


def test_trials_from_before_these_settings_are_understood():
    old = trial("witches-brew", TARGETED)
    assert (grid.scenario_of(old), grid.access_of(old)) == ("from scratch", "grey box")
    old = trial("poison-frogs", TARGETED, pretrain=RECIPE)
    assert (grid.scenario_of(old), grid.access_of(old)) == ("transfer", "white box")


def test_the_recipes_of_wrapped_and_mixed_learners_are_found():
    wrapped = {"type": "filtered", "learner": {"type": "mixed", "recipes": [RECIPE, RECIPE | {"model": "vgg11"}]}}
    assert [recipe["model"] for recipe in grid.recipes_of(wrapped)] == ["convnet", "vgg11"]
    assert grid.recipes_of(None) == [{}]
    assert grid.scenario_of({"learner": {"type": "voting", "learner": RECIPE | {"start_from": "w"}}}) == "fine-tuning"


def made_cells(*pairs):
    return grid.cells([pair for group in pairs for pair in group])


def test_an_attackers_means_do_not_count_for_controls_but_do_for_the_undefended_cell():
    wide = RECIPE | {"model": "convnet-wide"}
    grey = {"pretrain": RECIPE, "knows_features": False}
    found = made_cells(
        hits("poison-frogs", [1], pretrain=RECIPE),
        hits("poison-frogs", [1], **grey),
        hits("poison-frogs", [0], MIXUP, **grey),
        hits("poison-frogs", [0], MIXUP, **grey, adaptive=True),
        hits("poison-frogs", [0], MIXUP, **grey, surrogate=wide),
        hits("random-noise", [0], pretrain=RECIPE, knows_features=True),
        hits("no-attack", [0], MIXUP, pretrain=RECIPE),
    )
    attacks = [cell for cell in found if not cell.control]
    for cell in attacks:
        noise, nothing = (grid.control_of(cell, found, name) for name in grid.CONTROLS)
        assert (noise is None) == bool(cell.defenses)
        assert (nothing is None) != bool(cell.defenses)
    bare = {
        (cell.access, bool(cell.setting.get("adaptive"))): grid.undefended(cell, found)
        for cell in attacks
        if cell.defenses
    }
    assert bare["grey box", False] is bare["grey box", True]
    undefended = bare["grey box", False]
    assert undefended is not None
    assert (undefended.access, undefended.defenses) == ("grey box", [])
    assert bare["black box", False] is None


def test_the_undefended_cell_is_the_static_one_where_both_exist():
    found = made_cells(
        hits("witches-brew", [1], adaptive=True), hits("witches-brew", [1]), hits("witches-brew", [1], MIXUP)
    )
    defended = next(cell for cell in found if cell.defenses)
    bare = grid.undefended(defended, found)
    assert bare is not None
    assert not bare.setting["adaptive"]


@pytest.mark.parametrize(
    "other",
    [
        {"threat": TARGETED | {"budget": 0.5}},
        {"surrogate": RECIPE | {"model": "resnet18"}},
        {"surrogate_seed": 3},
        {"trusted": 10},
        {"learner": RECIPE | {"epochs": 2}},
    ],
)
def test_the_adaptive_cell_differs_in_knowing_the_defences_alone(other):
    static, twin = hits("witches-brew", [1], MIXUP), hits("witches-brew", [1], MIXUP, adaptive=True)
    found = made_cells(static, twin)
    first, second = sorted(found, key=lambda cell: cell.setting["adaptive"])
    assert grid.adaptive_of(first, found) is second
    assert grid.adaptive_of(second, found) is None
    found = made_cells(hits("witches-brew", [1], MIXUP), hits("witches-brew", [1], MIXUP, adaptive=True, **other))
    first = next(cell for cell in found if not cell.setting["adaptive"])
    assert grid.adaptive_of(first, found) is None


def test_undefended_attacks_and_controls_have_no_adaptive_cell():
    found = made_cells(
        hits("witches-brew", [1]),
        hits("witches-brew", [1], adaptive=True),
        hits("no-attack", [0], MIXUP),
        hits("no-attack", [0], MIXUP, adaptive=True),
    )
    assert [grid.adaptive_of(cell, found) for cell in found] == [None] * 4


def test_missing_settings_and_their_defaults_make_one_cell():
    old = trial("witches-brew", TARGETED)
    new = trial("witches-brew", TARGETED, seed=1, tuned="head", knows_features=True)
    other = trial("witches-brew", TARGETED, seed=1, knows_features=False)
    pairs = [(made, result(made, [[1]], [[1.0]], [0.9])) for made in (old, new, other)]
    assert sorted(len(cell.trials) for cell in grid.cells(pairs)) == [1, 2]


def test_data_that_were_moved_between_two_runs_are_the_same_data() -> None:
    pairs = list(hits("witches-brew", [0, 1]))
    moved = [(pairs[1][0] | {"data": pairs[1][0]["data"] | {"path": "/mnt/cifar10"}}, pairs[1][1])]
    (cell,) = grid.cells([pairs[0], *moved])
    assert list(cell.trials) == [0, 1]
    other = moved[0][1] | {"data": moved[0][1]["data"] | {"fingerprint": "another"}}
    assert len(grid.cells([pairs[0], (moved[0][0], other)])) == 2
