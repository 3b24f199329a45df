"""Dose-responses of studies: a planted dose is found, rows are grouped rightly, pictures and words agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from mithridate import BadNets, WitchesBrew
from mithridate.core.balls import Linf
from mithridate.experiments.audit import dose
from mithridate.experiments.dose_pictures import pictures
from mithridate.experiments.doses import DoseResponse
from mithridate.experiments.panels import Panel, stepped
from mithridate.experiments.presets import digits_audit
from mithridate.experiments.report import write_report
from mithridate.experiments.study import run_study
from mithridate.experiments.table import Table, table
from mithridate.poisoning.threat import ThreatModel
from tests.experiments.fakes import Brighten, recipe
from tests.experiments.planted import DATA, MIXUP, Planted, planted

BUDGETS = (0.002, 0.004, 0.008, 0.016, 0.032)


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    Planted.median = 0.006
    yield
    Planted.median = None
    Planted.ran.clear()


@pytest.fixture
def study(tmp_path: Path) -> Table:
    return table(run_study(planted(24, MIXUP, budgets=BUDGETS), tmp_path, progress=False))


def test_a_planted_dose_is_found_with_and_without_a_defence(study: Table) -> None:
    (found,) = study.doses()
    assert (found.attack, found.of, found.train) == ("witches-brew", "budget", 1000)
    assert found.doses == (2, 4, 8, 16, 32)
    bare, mixed = found.series
    assert (bare.defense, mixed.defense) == ("none", "mixup")
    assert bare.half.low <= 6 <= bare.half.high
    assert mixed.half.low <= 12 <= mixed.half.high
    assert bare.half.targets == 24
    assert "half move at" in found.sentences()[0]
    assert "of 1,000 images" in found.sentences()[0]


def test_a_dose_that_is_not_reached_is_said_to_be_larger(tmp_path: Path) -> None:
    Planted.median = 1.0
    (found,) = table(run_study(planted(12, budgets=BUDGETS), tmp_path, progress=False)).doses()
    assert found.series[0].half.dose is None
    assert (
        "half do not move at the largest dose, 32 of 1,000 images (3.2 %) (12 targets, 5 doses" in found.sentences()[0]
    )
    assert str(found.series[0].half).startswith("> 32 ")


def test_defences_that_shift_the_dose_are_told_from_those_that_do_not(study: Table, tmp_path: Path) -> None:
    few = table(run_study(planted(5, MIXUP, budgets=BUDGETS), tmp_path / "few", progress=False)).doses()[0]
    assert "not shown to differ" in few.sentences()[1]
    (many,) = study.doses()
    low, high = many.series[1].half.low, many.series[0].half.high
    assert low > high
    assert f"at least {low / high:.2g} times the dose" in many.sentences()[1]


def test_two_doses_are_no_curve(tmp_path: Path) -> None:
    assert not table(run_study(planted(4, budgets=BUDGETS[:2]), tmp_path, progress=False)).doses()


def test_eps_is_a_dose_too(tmp_path: Path) -> None:
    trials = [
        dataclasses.replace(trial, threat=dataclasses.replace(trial.threat, ball=Linf(eps=eps / 255)))
        for eps in (2, 4, 8)
        for trial in planted(5, budgets=BUDGETS[:3])
    ]
    found = table(run_study(trials, tmp_path, progress=False)).doses()
    assert [one.of for one in found] == ["budget"] * 3 + ["eps"] * 3
    assert [one.fixed for one in found[:3]] == ["Linf 2/255", "Linf 4/255", "Linf 8/255"]
    assert found[3].doses == (2.0, 4.0, 8.0)
    assert "eps 8/255" in found[3].sentences()[0]


def test_json_has_what_the_plot_has(study: Table) -> None:
    (found,) = study.to_json()["doses"]
    (first, second) = found["series"]
    assert first["doses"] == [2, 4, 8, 16, 32]
    assert [rate["n"] for rate in first["success"]] == [24] * 5
    assert first["half_dose"]["low"] < first["half_dose"]["dose"] < first["half_dose"]["high"]
    assert second["defense"] == "mixup"


def test_the_plot_shows_every_series_and_the_report_begins_with_it(study: Table, tmp_path: Path) -> None:
    (picture,) = pictures(study.doses(), "doses")
    assert [line.name for line in picture.lines] == ["no defence", "with mixup"]
    wide, narrow = picture.pictures
    assert wide != narrow
    for color in ("var(--l0)", "var(--l1)"):
        assert color in wide
    page = write_report(tmp_path).read_text()
    assert page.index("How much poison it takes") < page.index("What was shown")
    assert picture.sentences[0][:40] in page


def test_many_defences_make_several_plots(study: Table) -> None:
    (found,) = study.doses()
    bare, mixed = found.series
    others = tuple(dataclasses.replace(mixed, defense=f"d{i}") for i in range(8))
    many: DoseResponse = dataclasses.replace(found, series=(bare, *others))
    made = pictures([many], "doses")
    assert [len(picture.lines) for picture in made] == [6, 4]
    assert all(picture.lines[0].name == "no defence" for picture in made)
    assert len({picture.pictures[0] for picture in made}) == 2
    assert [len(picture.sentences) for picture in made] == [9, 0]


# --- ladders ---------------------------------------------------------------------------------------------------------


def _panel(attack: object, threat: ThreatModel) -> Panel:
    return dataclasses.replace(digits_audit()[0], attack=attack, threat=threat)


def test_ladders_end_at_the_panels_own_dose() -> None:
    panel = _panel(WitchesBrew(), ThreatModel(budget=0.04, ball=Linf(eps=16 / 255)))
    assert [step.threat.budget for step in stepped(panel, levels=3)] == [0.01, 0.02, 0.04]
    by_eps = stepped(panel, "eps", levels=3, factor=4)
    assert [round(255 * step.threat.ball.eps, 6) for step in by_eps] == [1, 4, 16]  # type: ignore[attr-defined]
    assert {step.threat.budget for step in by_eps} == {0.04}


@pytest.mark.parametrize(("levels", "factor"), [(2, 2.0), (5, 1.0)])
def test_what_is_no_ladder_is_refused(levels: int, factor: float) -> None:
    with pytest.raises(ValueError, match="no ladder"):
        stepped(digits_audit()[0], "budget", levels, factor)


def test_attacks_without_eps_say_so() -> None:
    with pytest.raises(ValueError, match="badnets changes images by no eps"):
        stepped(_panel(BadNets(), digits_audit()[0].threat), "eps")


def test_one_call_makes_a_curve(tmp_path: Path) -> None:
    attack = Brighten()
    done = dose(
        recipe(), DATA, attacks=[attack], of="eps", levels=3, eps=32 / 255, budget=0.05, trials=2, clean_victims=1,
        out=tmp_path,
    )  # fmt: skip
    (found,) = done.table.doses()
    assert (found.of, found.doses, found.series[0].half.targets) == ("eps", (8.0, 16.0, 32.0), 2)
    assert done.report.exists()
