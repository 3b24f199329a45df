"""The benchmarks run in small form and write what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import (
    attacks,
    crafting,
    crafting_memory,
    defenses,
    inversion,
    members,
    sending,
    startup,
    training,
    trial,
)
from benchmarks.__main__ import OTHERS, SPEED, main
from benchmarks.measure import Report, Setup, Timing

SMALL = Setup(small=True, models=("convnet",))


def check(report: Report) -> None:
    """No arm failed, every case has mithridate in it, and there are claims."""
    assert [row.note for row in report.rows if row.note.startswith("failed")] == []
    cases = {row.case for row in report.rows}
    assert {row.case for row in report.rows if row.role == "mithridate"} == cases
    assert report.claims


def test_training_compares_all_ways_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["training", "--small", "--models", "convnet", "resnet18", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "training-cpu.json").read_text(encoding="utf-8"))
    for model in ("convnet", "resnet18"):
        rows = [row for row in report["rows"] if row["case"] == f"training {model}"]
        assert [row["role"] for row in rows[:3]] == ["mithridate", "straightforward", "variant"]
        assert rows[-1]["arm"] == "ceiling"
        assert all(row["value"] > 0 and row["ceiling_share"] > 0 for row in rows)
    assert {"cpu", "cores", "threads", "torch", "device"} <= set(report["environment"])
    shown = capsys.readouterr().out
    assert "small form" in shown
    assert "times faster" in shown
    assert not (tmp_path / "table-cpu.json").exists()  # which is made of all of them


def test_images_of_a_training_round_are_whole_batches() -> None:
    for device in ("cpu", "cuda"):
        setup = Setup(device=device)
        assert all(training._images(setup, model) % training._batch(setup) == 0 for model in setup.models)
    assert all(training._images(SMALL, model) % training._batch(SMALL) == 0 for model in SMALL.models)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_crafting_runs_small() -> None:
    report = crafting.run(SMALL)
    check(report)
    losses = [float(row.note.split()[-1]) for row in report.rows if row.role != "control"]
    assert len(losses) >= 5
    assert max(losses) - min(losses) < 0.1  # all ways lower the same loss


def test_attacks_run_small() -> None:
    report = attacks.run(SMALL)
    check(report)
    assert {row.case for row in report.rows} == {case.name for case in attacks.CASES}


def test_inversion_runs_small() -> None:
    report = inversion.run(SMALL)
    check(report)
    assert {row.case for row in report.rows} == {case.name for case in inversion.CASES}


def test_defenses_run_small() -> None:
    report = defenses.run(SMALL)
    check(report)
    assert {row.case for row in report.rows} == {f"training with {case.name}" for case in defenses.CASES}
    assert all(row.by_round for row in report.rows)
    costs = [claim.claim for claim in report.claims if "times the cost of plain training" in claim.claim]
    assert len(costs) == len(defenses.CASES)
    assert any("straightforward" in row.role for row in report.rows)


def test_a_trial_runs_small() -> None:
    report = trial.run(SMALL)
    check(report)
    assert len(report.claims) == 3  # the small one beside the plain flow, the large one against its two bars


@pytest.mark.slow  # worker processes start slowly
def test_members_run_small() -> None:
    report = members.run(SMALL)
    failed = {row.arm for row in report.rows if row.note.startswith("failed")}
    assert failed == {"one after another, one CUDA graph per step", "a stream each"}
    by_arm = {row.arm: row.note for row in report.rows}
    assert by_arm["2 processes of one thread"] == by_arm["one after another, 1 thread"]


@pytest.mark.slow  # worker processes, and a Ray cluster where there is Ray
def test_sending_runs_small() -> None:
    report = sending.run(SMALL)
    assert not [row.note for row in report.rows if row.note.startswith("failed")]
    sums = {row.note for row in report.rows if row.role != "control"}
    assert len(sums) == 1
    assert sums.pop().isdecimal()


def test_ways_of_a_gpu_run_small_on_a_cpu() -> None:
    data, school = members.data_of(SMALL, 20), members.Schooling(epochs=1, batch_size=10)
    arms = {arm.name: arm for arm in members._gpu_arms(SMALL, data, school)}
    for name in ("fit", "one after another, plain fp32 NCHW", "one after another, by hand", "stacked, vmap"):
        note = arms[name].work()
        assert isinstance(note, str)
        assert note.count(",") == members.MEMBERS - 1
    for name in ("one after another, one CUDA graph per step", "a stream each"):
        with pytest.raises(RuntimeError, match="CUDA"):
            arms[name].work()


@pytest.mark.skipif(not crafting_memory.CLEAR.exists(), reason="only Linux can forget earlier peaks")
def test_peak_memory_counts_what_a_step_allocates() -> None:
    before = crafting_memory._reset_peak("cpu")
    block = torch.ones(16 * 2**18)
    del block
    assert crafting_memory._peak("cpu") - before >= 15


@pytest.mark.slow
def test_memory_and_startup_run_small(tmp_path: Path) -> None:
    names = ["crafting_memory", "startup"]
    assert main([*names, "--small", "--models", "convnet", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}-cpu.json" for name in names]


@pytest.mark.slow
def test_the_table_is_written_where_all_of_it_was_run(tmp_path: Path) -> None:
    assert main(["--small", "--models", "convnet", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table-cpu.json").read_text(encoding="utf-8"))
    assert table["benchmarks"] == list(SPEED)
    works = [line["work"] for line in table["lines"]]
    assert len(works) == len(set(works)) >= 12
    assert not set(SPEED) & set(OTHERS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said_plainly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["--device", "cuda", "--small"])
    assert main(["attacks", "--device", "cuda", "--or-small", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("this PyTorch sees no CUDA device: the small form runs on the CPU")
    assert json.loads((tmp_path / "attacks-cpu.json").read_text(encoding="utf-8"))["setup"]["small"]


@pytest.mark.gpu
def test_everything_runs_small_on_a_gpu(tmp_path: Path) -> None:
    assert main(["--device", "cuda", "--small", "--models", "convnet", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table-cuda.json").read_text(encoding="utf-8"))
    assert [line["note"] for line in table["lines"] if line["note"]] == []


def test_extra_seconds_are_differences_within_rounds() -> None:
    found = {"import torch": [Timing(1, 1.0), Timing(1, 2.0)], "ours": [Timing(1, 1.2), Timing(1, 2.1)]}
    claim = startup._beyond("ours", found, "ours", 0.1)
    assert claim.value == pytest.approx(0.15)
    assert not claim.holds
