"""A disk without room stops a study at once, in a sentence; what was finished stays, and half a file is no result."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mithridate.cli import main
from mithridate.core.workers import processes
from mithridate.experiments import files
from mithridate.experiments.files import DiskFull, clear, no_room, read_json, write_json
from mithridate.experiments.study import load_errors, load_results, run_study
from tests.experiments.crashing import ROOT, raw
from tests.experiments.fakes import noise_trial
from tests.experiments.full_disk import meets_it, too_large


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*partial*"), *folder.rglob("*.lock")]


def test_the_study_stops_at_the_first_trial_that_meets_it(tmp_path: Path) -> None:
    with pytest.raises(
        DiskFull, match=r"nothing more can be written .*; 1 of 5 trials are finished and stay: free some"
    ):
        run_study(meets_it(), tmp_path, progress=False)
    assert len(load_results(tmp_path)) == 1
    assert load_errors(tmp_path) == []
    assert leftovers(tmp_path) == []


def test_a_worker_that_meets_it_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="1 of 5 trials are finished"):
        run_study(meets_it(), tmp_path, map=processes(1), progress=False)
    assert load_errors(tmp_path) == []


@pytest.mark.parametrize("writes", range(1, 9))
def test_any_write_may_be_the_one_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """study.json, trial.json, result.json, notes of a fit or a poison: then the same again, with room."""
    trials, real, left = [noise_trial(0), noise_trial(1)], os.fsync, writes

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            run_study(trials, tmp_path / "a", progress=False)
    assert leftovers(tmp_path) == []
    finished = len(load_results(tmp_path / "a"))
    assert finished < 2
    again = run_study(trials, tmp_path / "a", progress=False)
    assert raw(again) == raw(run_study(trials, tmp_path / "b", progress=False))


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_file_that_the_system_cuts_off(tmp_path: Path) -> None:
    """safetensors, not Python, meets the limit here."""
    pytest.importorskip("resource")
    arguments = [sys.executable, "-m", "tests.experiments.full_disk", str(tmp_path / "a"), "60000"]
    path = os.pathsep.join([str(Path(files.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "nothing more can be written" in done.stderr.splitlines()[-1]
    assert load_errors(tmp_path / "a") == []
    finished = len(load_results(tmp_path / "a"))
    assert finished < 3
    assert leftovers(tmp_path) == []
    again = run_study(too_large(), tmp_path / "a", progress=False)
    assert raw(again) == raw(run_study(too_large(), tmp_path / "b", progress=False))


def test_the_command_line_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "out"
    arguments = ["study", "tests.experiments.fakes:definition", "--workers", "local", "--out", str(out)]
    real = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "result.json" and list(out.glob("trials/*/result.json")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    try:
        code = main(arguments)
    finally:
        torch.set_num_threads(threads)
    assert code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: nothing more can be written")
    assert error.endswith("1 of 2 trials are finished and stay: free some room, and run the same again to go on")


def test_half_a_file_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EDQUOT, "quota")))
    with pytest.raises(OSError, match="quota") as caught:
        write_json(path, {"a": 2})
    assert caught.value.filename == str(path)
    assert read_json(path) == {"a": 1}
    assert leftovers(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path: Path) -> None:
    for name in ("result.json.17.partial", "study.json.17.partial", "result.json"):
        (tmp_path / name).touch()
    clear(tmp_path, "study.json.*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.json.17.partial"]
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_which_errors_are_a_full_disk() -> None:
    found = RuntimeError("while saving")
    found.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert no_room(found)
    assert no_room(RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"))
    assert not no_room(RuntimeError("I/O error: Permission denied (os error 13)"))
    assert not no_room(ValueError("28"))
