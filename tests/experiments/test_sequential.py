"""Studies that stop once decided: what runs, what the folder remembers, what the table says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mithridate.experiments.anytime import anytime_paired, anytime_rate
from mithridate.experiments.files import read_json
from mithridate.experiments.report import collect, write_report
from mithridate.experiments.sequential import FIRST_LOOK, run_until_decided
from mithridate.experiments.study import StudyErrors, load_results, run_study
from mithridate.experiments.table import Row, Table, table
from tests.experiments.planted import MIXUP, Planted, planted


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    yield
    Planted.rates, Planted.median, Planted.failing = {}, None, set()
    Planted.ran.clear()


def row(made: Table, attack: str, defense: str = "none") -> Row:
    return next(one for one in made.rows if (one.attack, one.defense) == (attack, defense))


def cases(attack: str, defenses: int = 0) -> int:
    return sum((name, count) == (attack, defenses) for name, count, _ in Planted.ran)


def test_what_is_clear_stops_early_and_is_shown(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 1.0, ("witches-brew", 1): 0.0}
    pairs = run_until_decided(planted(40, MIXUP), tmp_path, progress=False)
    assert FIRST_LOOK <= cases("witches-brew") < 20
    assert cases("witches-brew", 1) < 30  # nothing moves it over its control: given up
    assert len(pairs) == len(Planted.ran) == len(set(Planted.ran))
    made = table(pairs)
    found = row(made, "witches-brew")
    assert found.against is not None
    assert found.against.shown
    assert row(made, "witches-brew", "mixup").versus["undefended"].shown
    hits = list(found.cell.outcomes("success").values())
    misses = [[0.0]] * len(hits)
    assert found.against.paired.p == anytime_paired(hits, misses, 40).p
    assert found.success == anytime_rate(hits)
    assert not found.against.margin_shown


def test_what_is_between_runs_on(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 0.3}
    run_until_decided(planted(14), tmp_path, progress=False)
    assert cases("witches-brew") == cases("random-noise") == 14


def test_the_folder_remembers(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 1.0}
    trials = planted(40)
    pairs = run_until_decided(trials, tmp_path, progress=False)
    assert set(read_json(tmp_path / "study.json")["planned"].values()) == {40}
    for again in (load_results(tmp_path), collect(tmp_path).pairs):
        assert table(again).to_json() == table(pairs).to_json()
    ran = len(Planted.ran)
    assert table(run_until_decided(trials, tmp_path, progress=False)).to_json() == table(pairs).to_json()
    assert len(Planted.ran) == ran
    run_study(trials, tmp_path, progress=False)  # whoever looked once has looked
    found = row(table(load_results(tmp_path)), "witches-brew")
    assert found.trials == 40
    assert found.success == anytime_rate([[1]] * 40)
    assert "at whatever case" in write_report(tmp_path).read_text()


def test_a_study_that_runs_all_is_as_ever(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 1.0}
    made = table(run_study(planted(20), tmp_path, progress=False))
    assert "planned" not in read_json(tmp_path / "study.json")
    found = row(made, "witches-brew").against
    assert found is not None
    assert found.paired.p == 0.5**20
    assert "at whatever case" not in write_report(tmp_path).read_text()


def test_failures_stop_nobody_else(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 1.0}
    Planted.failing = {3}
    with pytest.raises(StudyErrors, match="planted failure") as caught:
        run_until_decided(planted(30), tmp_path, progress=False)
    assert {error["type"] for error in caught.value.errors} == {"RuntimeError"}
    assert len(Planted.ran) == len(set(Planted.ran))
    found = row(table(load_results(tmp_path)), "witches-brew").against
    assert found is not None
    assert found.shown
    assert found.paired.pairs < 20


def test_cells_that_nothing_is_compared_with_run_to_their_end(tmp_path: Path) -> None:
    Planted.rates = {("witches-brew", 0): 1.0}
    run_until_decided(planted(20, controls=False), tmp_path, progress=False)
    assert cases("witches-brew") == 20
