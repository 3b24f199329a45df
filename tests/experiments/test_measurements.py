"""Measurements: run, stored, resumed, tabled, written in every format, refused where they do not fit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from mithridate import cli
from mithridate.core.schema import to_json
from mithridate.core.sources import Digits
from mithridate.experiments.exports import content_of, findings
from mithridate.experiments.measurement_report import collect_measurements, write_measurement_report
from mithridate.experiments.measurement_table import measurement_table, words
from mithridate.experiments.statistics import Mean, Rate
from mithridate.experiments.store import Store
from mithridate.experiments.study import StudyErrors, kind_of, load_results, read_trial, run_study
from tests.experiments.fakes import trial
from tests.experiments.measuring import Answer, Thing, answers

STUDY = "tests.experiments.measuring:answers"


def test_results_are_read_back_and_not_measured_twice(tmp_path: Path) -> None:
    found = run_study(answers(), tmp_path, progress=False)
    assert [read_trial(settings) for settings, _ in found] == answers()
    assert kind_of(answers()) == "measurement"
    first = found[1][1]
    assert first["outcome"]["curve"] == [0.0, 1.0, 2.0]
    assert first["outcome"]["whole"] is True
    assert run_study(answers(), tmp_path, progress=False) == found
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    run_study(answers(), tmp_path, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_rows_are_settings_and_average_over_seeds(tmp_path: Path) -> None:
    (group,) = measurement_table(run_study(answers(), tmp_path, progress=False)).groups
    assert [row.settings["scale"] for row in group.rows] == [2.0, 10.0]
    small, large = group.rows
    assert isinstance(large.found["value"], Mean)
    assert large.found["value"].value == pytest.approx(10)
    assert large.found["value"].n == 3
    assert small.values("value") == {0: 0.0, 1: 2.0, 2: 4.0}
    right = small.found["right"]
    assert isinstance(right, Rate)
    assert (right.successes, right.n) == (5, 9)
    assert right.n_eff == pytest.approx(3, abs=2)  # three cases, three seeds each
    whole = small.found["whole"]
    assert isinstance(whole, Rate)
    assert (whole.successes, whole.n) == (1, 3)
    assert words(small.found["unknown"]) == "7 (n = 1)"
    assert {"curve", "words"}.isdisjoint(small.found)
    assert small.name == "scale 2"


def test_content_of_files_counts_and_not_their_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    names = []
    for place, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / place).write_text(content)
        names.append(Answer(file=tmp_path / place).run(store).trial)
    assert names[0] == names[1] != names[2]


def test_data_are_those_of_the_study(tmp_path: Path) -> None:
    ((_, result),) = run_study([Answer(data=Digits(train=60))], tmp_path, progress=False)
    assert result["outcome"] == {"rows": 60}
    assert result["data"]["train"] == 60
    with pytest.raises(ValueError, match="holds results on data"):
        run_study([Answer()], tmp_path, progress=False)


def test_what_json_does_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyErrors, match="thing is a object; measure numbers"):
        run_study([Thing()], tmp_path, progress=False)


def test_a_folder_holds_one_kind(tmp_path: Path) -> None:
    run_study([Answer()], tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds measurements, and these are poisoning trials"):
        run_study([trial()], tmp_path, progress=False)
    with pytest.raises(ValueError, match="one kind of trials"):
        kind_of([Answer(), trial()])


def test_settings_of_several_kinds_make_several_tables(tmp_path: Path) -> None:
    pairs = run_study(answers(), tmp_path, progress=False)
    other = [(settings | {"type": "elsewhere:Other"}, result) for settings, result in pairs]
    assert [group.name.rpartition(":")[2] for group in measurement_table([*pairs, *other]).groups] == [
        "Other",
        "Answer",
    ]


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    """Choices in lists by their names; what a choice does not have is not said of it."""
    linf = {"type": "linf", "eps": 8 / 255}
    trials = [
        {
            "type": "x:Y",
            "seed": 0,
            "attack": {"type": "pgd", "step": 2.0, "ball": linf},
            "transforms": [{"type": "flip"}],
        },
        {"type": "x:Y", "seed": 0, "attack": {"type": "fgsm", "ball": linf}, "transforms": []},
        {"type": "x:Y", "seed": 0, "attack": {"type": "fgsm", "ball": linf}, "transforms": [{"type": "flip"}]},
    ]
    (group,) = measurement_table([(one, {"outcome": {"value": 1}}) for one in trials]).groups
    assert sorted(row.name for row in group.rows) == [
        "fgsm, flip",
        "fgsm, transforms none",
        "pgd, flip",
    ]
    assert group.common["attack.ball.eps"] == 8 / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_study(answers(), tmp_path / "runs", progress=False, command="mithridate study x:y")
    return tmp_path / "runs"


def test_the_page_shows_every_number(folder: Path) -> None:
    page = write_measurement_report(folder).read_text()
    for text in ("Answer", "scale 10", "10 (-14.8 to 34.8; n = 3)", "56 %", "mithridate study x:y", "6 measurements"):
        assert text in page
    assert page.count("<svg") >= 2


def test_what_cannot_be_read_is_listed_and_the_rest_shown(folder: Path) -> None:
    broken, odd, *_ = sorted((folder / "trials").iterdir())
    (broken / "result.json").write_text("{")
    content = json.loads((odd / "result.json").read_text())
    (odd / "result.json").write_text(json.dumps(content | {"outcome": None}))
    found = collect_measurements(folder)
    assert len(found.pairs) == 4
    assert len(found.problems) == 2
    assert "Not in this report" in write_measurement_report(folder).read_text()


def test_formats(folder: Path) -> None:
    found = findings(folder, "measurement")
    (group,) = json.loads(content_of(found, "json"))["groups"]
    assert group["rows"][1]["measured"]["value"]["n"] == 3
    lines = list(csv.DictReader(io.StringIO(content_of(found, "csv").decode())))
    assert {line["settings"] for line in lines} == {"scale 2", "scale 10"}
    assert float(next(line["value"] for line in lines if line["measured"] == "value")) == 2
    assert content_of(found, "parquet")[:4] == b"PAR1"
    for name in ("junit", "sarif"):
        with pytest.raises(ValueError, match=f"{name} says which attacks succeed"):
            content_of(found, name)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert cli.main(["study", STUDY, "--out", str(out), "--plan"]) == 0
    assert "6 measurements, of which 0 are finished; 6 would run" in capsys.readouterr().out
    assert cli.main(["study", STUDY, "--out", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["groups"][0]["rows"]) == 2
    assert cli.main(["report", str(out), "--format", "csv", "--out", "-"]) == 0
    assert capsys.readouterr().out.startswith("measurement,settings,measured")
    assert cli.main(["report", str(out)]) == 0
    assert "n = 3" in capsys.readouterr().out
    one = tmp_path / "one.json"
    one.write_text(json.dumps(to_json(answers()[0])))
    assert cli.main(["trial", str(one), "--out", str(tmp_path / "one")]) == 0
    assert "value" in capsys.readouterr().out


def test_conditions_are_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", STUDY, "--out", str(tmp_path / "runs"), "--fail-if", "success>0.2"]) == 2
    assert "a study of measurements has none" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_finished_is_reported_when_something_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "tests.experiments.measuring:none", "--out", str(tmp_path)]) != 0
    assert "no luck" in capsys.readouterr().err
    assert len(load_results(tmp_path)) == 1
    assert "no luck" in (tmp_path / "report.html").read_text()
