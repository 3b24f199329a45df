"""Transfer grids: every surrogate meets every victim in every scenario, on the same cases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import mithridate as mi
from mithridate.experiments.panels import Panel
from mithridate.experiments.scenarios import scenario
from mithridate.experiments.transfer import plan_transfer, transfer_grid

DATA = mi.Digits(train=120)
NARROW = mi.Recipe(model="convnet:width=4", epochs=1, batch_size=50, transforms=())
WIDE = replace(NARROW, model="convnet:width=6")
ATTACK = mi.BullseyePolytope(steps=1, surrogates=2)
THREAT = mi.ThreatModel(budget=0.05, ball=mi.Linf(eps=0.1), poison_class="intended")


def planned() -> list[mi.Trial]:
    panel = Panel(attack=ATTACK, threat=THREAT, scenario=scenario("from-scratch", NARROW), trials=2, clean_victims=2)
    return plan_transfer(panel, DATA, victims=(NARROW, WIDE))


def model(learner: mi.Learner) -> object:
    assert learner.recipe is not None
    return learner.recipe.model


def test_every_pair_in_every_scenario_on_the_same_cases() -> None:
    attacked = [trial for trial in planned() if trial.attack == ATTACK]
    cells = Counter((t.scenario, model(t.learner), model(t.surrogate or t.learner)) for t in attacked)
    assert len(cells) == 3 * 2 * 2
    assert set(cells.values()) == {2}
    assert {trial.seed for trial in attacked} == {0, 1}


def test_a_victims_own_recipe_is_what_the_scenario_gives_and_another_one_a_black_box() -> None:
    for trial in planned():
        if trial.attack == ATTACK:
            same = trial.surrogate is None
            own = "grey box" if trial.scenario == "from scratch" else "white box"
            assert trial.access == (own if same else "black box")


def test_controls_are_run_once_per_victim_and_scenario_whoever_attacks() -> None:
    noise = [trial for trial in planned() if isinstance(trial.attack, mi.RandomNoise)]
    assert len(noise) == 3 * 2 * 2
    assert len(set(noise)) == len(noise)


def test_one_call_makes_one_heat_map(tmp_path: Path) -> None:
    mixed = mi.Mixed((NARROW, WIDE))
    done = transfer_grid(
        ATTACK,
        (NARROW, WIDE),
        DATA,
        surrogates=(NARROW, mixed),
        scenarios=("from-scratch", "transfer"),
        threat=THREAT,
        trials=1,
        clean_victims=1,
        out=tmp_path,
    )
    page = done.report.read_text()
    assert page.count("Success by surrogate (rows) and victim (columns)") == 1
    grid = page[page.index("From surrogate to victim") :]
    for scene in ("from scratch", "transfer"):
        assert f'<th scope="colgroup" colspan="2">{scene}</th>' in grid
    assert grid.count('<th scope="row">') >= 2


def test_a_grid_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one victim"):
        transfer_grid(ATTACK, (), DATA, out=tmp_path)
    with pytest.raises(ValueError, match="no scenario is called 'from-scrach'"):
        transfer_grid(ATTACK, (NARROW,), DATA, scenarios=("from-scrach",), out=tmp_path)
