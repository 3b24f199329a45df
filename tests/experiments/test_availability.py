"""Attacks on accuracy in tables, sentences and pages: models are compared, not cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from mithridate.experiments import epochs
from mithridate.experiments.cautions import cautions
from mithridate.experiments.report import write_report
from mithridate.experiments.statistics import higher
from mithridate.experiments.table import Row, Table, table
from tests.experiments.synthetic import MIXUP, result, trial

THREAT = {
    "goal": {"type": "availability", "tests": 4},
    "ball": {"type": "linf", "eps": 8 / 255},
    "budget": 1.0,
    "relabel": True,  # so that synthetic.trial says "any class"
}
LEFT = {
    ("secure-release", ()): (0.31, 0.35, 0.33),
    ("random-noise", ()): (0.90, 0.88, 0.89),
    ("no-attack", ()): (0.95, 0.94, 0.96),
    ("secure-release", (MIXUP["type"],)): (0.80, 0.84, 0.79),
    ("no-attack", (MIXUP["type"],)): (0.94, 0.95, 0.93),
}


def pairs(models: int = 3) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for (attack, defenses), accuracies in LEFT.items():
        made = trial(attack, THREAT, *[MIXUP for _ in defenses], victims=models) | {"trusted": 0}
        made["threat"] = made["threat"] | {"relabel": False}
        wrong = [[int(i >= round(4 * accuracy)) for i in range(4)] for accuracy in accuracies[:models]]
        margins = [[1.0 if bad else -1.0 for bad in line] for line in wrong]
        found = result(made, wrong, margins, list(accuracies[:models]))
        found["outcome"]["epochs"] = [[0.5, 0.97 * accuracy + 0.1, accuracy] for accuracy in accuracies[:models]]
        found["case"] = found["case"] | {"intended": []}
        yield made, found


def row_of(made: Table, attack: str, defense: str = "none") -> Row:
    return next(row for row in made.rows if (row.attack, row.defense) == (attack, defense))


def test_accuracies_are_compared_by_welchs_test() -> None:
    made = table(pairs())
    row = row_of(made, "secure-release")
    low, high = LEFT["secure-release", ()], LEFT["random-noise", ()]
    assert row.against is not None
    assert not row.against.exact
    expected = stats.ttest_ind(high, low, equal_var=False, alternative="greater").pvalue
    assert row.against.paired.p == pytest.approx(expected)
    assert row.against.worse.p == pytest.approx(1 - expected)
    assert row.against.accuracy.value == pytest.approx(sum(high) / 3)
    helped = row_of(made, "secure-release", "mixup").versus["undefended"]
    assert helped.paired.p == pytest.approx(
        stats.ttest_ind(LEFT["secure-release", (MIXUP["type"],)], low, equal_var=False, alternative="greater").pvalue
    )


def test_success_is_the_share_of_wrong_images_with_an_interval_over_models() -> None:
    row = row_of(table(pairs()), "secure-release")
    assert (row.success.successes, row.success.n, row.success.n_eff) == (9, 12, 3)
    assert row.success.low == row.success.high == pytest.approx(0.75)  # all three models: 3 of 4
    assert row.highest.value == 0.5


def test_of_one_model_each_nothing_is_shown_and_that_is_said() -> None:
    made = table(pairs(models=1))
    row = row_of(made, "secure-release")
    assert (row.success.low, row.success.high) == (0.0, 1.0)
    assert row.against is not None
    assert not row.against.shown
    assert "two models on each side are the fewest that show anything" in made.verdict()[0]
    assert [found.text for found in cautions(made.rows) if found.kind.name == "few-cases"] == [
        "Fewer than 2 models on each side for secure-release (no defence, mixup)."
    ]


def test_sentences_speak_of_accuracy() -> None:
    made = table(pairs())
    bare = made.verdict()[0]
    assert (
        "secure-release left 33.0 % of clean test accuracy (28.0 to 38.0, 3 models, 50.0 % after the best epoch" in bare
    )
    assert "the random-noise control 89.0 %; Welch p < 0.001" in bare
    assert bare.endswith("beats its control.")
    (line,) = made.defenses()
    assert "helps against secure-release (accuracy 25 % → 75 %" in line
    assert "no cost in accuracy shown (−1.0 points" in line  # of unattacked data, not of what the attack took
    text = str(made)
    assert "accuracy, 100 % poison" in text or "accuracy, 2 % poison" in text
    assert "best epoch" in text
    assert "margin vs control" not in text
    assert not [found for found in cautions(made.rows) if found.kind.name in ("loud-control", "costly-defense")]


def test_a_defence_that_leaves_less_accuracy_is_not_said_to_help_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEFT, ("secure-release", (MIXUP["type"],)), (0.05, 0.04, 0.06))
    (line,) = table(pairs()).defenses()
    assert "leaves less accuracy under secure-release (accuracy 25 % → 0 %" in line
    assert "stronger" not in line


def test_welch_needs_two_models_that_differ() -> None:
    assert higher([0.9, 0.8], [0.1, 0.2]).p < 0.025
    assert higher([0.1, 0.2], [0.9, 0.8]).p > 0.975
    assert higher([0.9], [0.1, 0.2]).p == 1.0
    assert higher([0.9, 0.9], [0.1, 0.1]).p == 1.0  # one deterministic fit made twice
    assert (higher([0.9, 0.05], [0.1, 0.2]).wins, higher([0.9, 0.05], [0.1, 0.2]).losses) == (1, 1)


def test_one_deterministic_model_made_three_times_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEFT, ("secure-release", ()), (0.33, 0.33, 0.33))
    row = row_of(table(pairs()), "secure-release")
    assert (row.accuracy.n, row.success.n_eff) == (1, 1.0)
    assert (row.success.low, row.success.high) == (0.0, 1.0)


def test_curves_show_clean_training_first_and_at_most_six_lines(tmp_path: Path) -> None:
    (picture,) = epochs.pictures(table(pairs()).rows, "epochs")
    assert [course.name for course in picture.courses] == [
        "no-attack",
        "secure-release",
        "secure-release, with mixup",
        "random-noise",
        "no-attack, with mixup",
    ]
    assert picture.courses[1].accuracies == pytest.approx((0.5, 0.97 * 0.33 + 0.1, 0.33))
    assert len(picture.pictures) == 2
    many = [replaced for made, found in pairs() for replaced in _doses(made, found)]
    plots = epochs.pictures(table(many).rows, "epochs")
    assert len(plots) > 1
    assert all(len(plot.courses) <= 6 and plot.courses[0].name.startswith("no-attack") for plot in plots)


def _doses(made: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for eps in (4, 8, 16):
        ball = {"type": "linf", "eps": eps / 255}
        yield made | {"threat": made["threat"] | {"ball": ball}}, found | {"trial": f"{found['trial']}-{eps}"}


def test_a_report_holds_the_curves(tmp_path: Path) -> None:
    for made, found in pairs():
        home = tmp_path / "trials" / found["trial"]
        home.mkdir(parents=True)
        (home / "trial.json").write_text(json.dumps(made))
        (home / "result.json").write_text(json.dumps(found))
    page = write_report(tmp_path).read_text()
    assert "Accuracy from epoch to epoch" in page
    assert "Wrong test images" in page
    assert "by Welch's test" in page
    assert "control accuracy 89.0 %" in page
