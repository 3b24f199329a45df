"""A study for other programs: JSON, CSV and parquet hold the table, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mithridate import __version__
from mithridate.experiments.exports import FORMATS, TEXTS, Findings, export, findings, is_text, place_of
from mithridate.experiments.gates import conditions
from tests.experiments import leak_cases, synthetic as made
from tests.experiments.test_junit import put

CONDITIONS = ("success>0.5", "recall<0.1", "badnet: success>0.1")


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = made.make_study(tmp_path_factory.mktemp("study"))
    return findings(folder, "poison", conditions(CONDITIONS, "poison"))


@pytest.fixture(scope="module")
def leak(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = leak_cases.make_study(tmp_path_factory.mktemp("leaks"), cases=2)
    return findings(folder, "leak", conditions(["identified>0.5"], "leak"))


@pytest.fixture(params=["poison", "leak"])
def found(request: pytest.FixtureRequest) -> Findings:
    return request.getfixturevalue(request.param)


def test_findings_are_what_the_report_says(poison: Findings, leak: Findings) -> None:
    assert (poison.kind, leak.kind) == ("poison", "leak")
    assert poison.command == "mithridate audit --data data/cifar10 --preset small"
    assert {type(entry.control) for entry in poison.rows} == {bool}
    assert len(poison.rows) == len(poison.table.rows) == 21
    assert [len(found.unfinished) for found in (poison, leak)] == [2, 2]
    assert any(caution.kind.name == "static-only" for caution in poison.cautions)
    assert any(caution.kind.name == "static-only" for caution in leak.cautions)


def test_a_study_without_its_study_json_has_a_problem_but_no_trial_less(tmp_path: Path) -> None:
    folder = made.make_study(tmp_path, targets=2, cases=2)
    (folder / "study.json").unlink()
    found = findings(folder, "poison")
    assert found.command is None
    assert len(found.problems) == len(found.unfinished) + 1 == 3


def test_json_has_every_number_and_how_conditions_were_judged(found: Findings) -> None:
    content = json.loads(
        str(FORMATS["json"].made(found)), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert (content["schema"], content["mithridate"], content["kind"]) == (1, __version__, found.kind)
    table = json.loads(json.dumps(found.table.to_json()))
    assert {name: content[name] for name in table} == table
    assert content["problems"] == found.problems
    assert [(c["kind"], c["text"]) for c in content["cautions"]] == [(k.name, text) for text, k in found.cautions]
    assert [judged["condition"] for judged in content["conditions"]] == [c.text for c in found.conditions]


def test_json_tells_what_holds_from_what_could_not_be_judged(poison: Findings) -> None:
    success, recall, nowhere = json.loads(str(FORMATS["json"].made(poison)))["conditions"]
    assert [row["row"] for row in success["broken"]] == [
        "badnets, from scratch",
        "badnets vs mixup, from scratch",
        "poison-frogs, transfer",
    ]
    assert all(row["value"] > 0.5 for row in success["broken"])
    assert recall["broken"] == []
    assert [(row["row"], row["value"]) for row in nowhere["broken"]] == [(None, None)]


def test_csv_and_parquet_have_the_same_columns_and_numbers(found: Findings) -> None:
    lines = list(csv.DictReader(io.StringIO(str(FORMATS["csv"].made(found)))))
    stored = pq.read_table(pa.BufferReader(FORMATS["parquet"].made(found)))
    assert stored.column_names == list(lines[0])
    assert stored.num_rows == len(lines) == len(found.rows)
    for name in stored.column_names:
        for text, value in zip((line[name] for line in lines), stored[name].to_pylist(), strict=True):
            if isinstance(value, float):
                assert float(text) == value
            else:
                assert text == ("" if value is None else str(value))


def test_parquet_is_typed_and_says_which_version_its_columns_have(found: Findings) -> None:
    schema = pq.read_schema(pa.BufferReader(FORMATS["parquet"].made(found)))
    kinds = {"attack": pa.string(), "adaptive": pa.bool_(), "trials": pa.int64()}
    kinds |= {"success": pa.float64()} if found.kind == "poison" else {"psnr q1": pa.float64(), "batch": pa.int64()}
    assert {name: schema.field(name).type for name in kinds} == kinds
    assert schema.metadata[b"mithridate.schema"] == b"1"
    assert schema.metadata[b"mithridate.kind"] == found.kind.encode()
    assert schema.metadata[b"mithridate.command"] == (found.command or "").encode()


def test_the_types_of_columns_do_not_hang_on_what_was_measured(found: Findings) -> None:
    """Every column whose values are text is named as such, and no other is."""
    for record in found.table.records():
        for name, value in record.items():
            if value is not None:
                assert isinstance(value, str) == (name in TEXTS), name


def test_a_study_without_a_finished_trial_is_written_too(tmp_path: Path) -> None:
    place = tmp_path / "trials" / "a"
    place.mkdir(parents=True)
    (place / "trial.json").write_text(json.dumps(made.trial("badnets", made.BACKDOOR)))
    found = findings(tmp_path, "poison", conditions(["success>0.2"], "poison"))
    for name in FORMATS:
        assert export(found, name, tmp_path / f"out.{name}").stat().st_size
    assert json.loads((tmp_path / "out.json").read_text())["conditions"][0]["broken"][0]["row"] is None
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_names_that_are_no_text_are_held_as_well_as_can_be(tmp_path: Path) -> None:
    nasty = {"type": 'evil"<&>,\n\ud800 name'}
    folder = put(tmp_path, made.hits("witches-brew", [1, 1, 1], nasty))
    found = findings(folder, "poison", conditions(["success>0.2"], "poison"))
    for name in FORMATS:
        export(found, name, tmp_path / f"out.{name}").read_bytes()
    told = 'evil"<&>,\n? name'
    (line,) = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text()))
    assert line["defense"] == pq.read_table(tmp_path / "out.parquet")["defense"][0].as_py() == told


def test_files_go_beside_the_report_and_are_whole_or_absent(
    poison: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FORMATS:
        path = export(poison, name, place_of(name, tmp_path / "new"))
        assert path.read_bytes()
        assert is_text(name) == (name != "parquet")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"report.json", "report.csv", "report.parquet", "report.junit.xml", "report.sarif"}
    before = (tmp_path / "new/report.csv").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        export(poison, "csv", tmp_path / "new/report.csv")
    assert (tmp_path / "new/report.csv").read_bytes() == before
