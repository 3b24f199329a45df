"""Worker processes: the signature of map, deaths, errors, and errors before anything starts."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mithridate.core import workers
from mithridate.core.workers import WorkerDied, local, processes
from tests.experiments.fakes import awkward, killed_once, square


def test_results_come_in_order_and_workers_end() -> None:
    before = dict(os.environ)
    assert list(processes(2)(square, range(5))) == list(map(square, range(5)))
    assert not multiprocessing.active_children()
    assert dict(os.environ) == before


def test_one_task_that_kills_its_worker_or_raises_leaves_the_others_alone() -> None:
    found = list(processes(2, threads=2)(awkward, range(5)))
    assert found[0] == found[4] == (2, "2")
    assert isinstance(found[1], WorkerDied)
    assert "exit code 7, 2 times in a row" in str(found[1])
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "two is wrong"
    assert isinstance(found[3], RuntimeError)
    assert "Unpicklable: 1 and 2" in str(found[3])


def test_a_task_whose_worker_is_killed_once_is_done_by_another(tmp_path: Path) -> None:
    marks = [tmp_path / name for name in "abc"]
    for survivor in marks[1:]:
        survivor.touch()
    assert list(processes(2)(killed_once, marks)) == ["a", "b", "c"]
    assert marks[0].read_text() == "died"


def test_without_retries_one_death_is_the_result(tmp_path: Path) -> None:
    (found,) = processes(1, retries=0)(killed_once, [tmp_path / "a"])
    assert isinstance(found, WorkerDied)
    assert str(found) == "the worker process was ended by SIGKILL; the usual reason is too little memory"


def test_a_worker_killed_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([True, False, True])
    start = workers._Worker.__init__

    def killed(self: workers._Worker, *arguments: Any) -> None:
        start(self, *arguments)
        if next(kills, False):
            self.process.kill()

    monkeypatch.setattr(workers._Worker, "__init__", killed)
    assert list(processes(1)(square, [3])) == [9]
    kills = iter([True] * 5)
    with pytest.raises(RuntimeError, match=r"could not start \(it was ended by SIGKILL"):
        list(processes(1)(square, [3]))


def test_stopping_early_ends_the_workers() -> None:
    results = processes(1)(square, range(100))
    assert next(results) == 0
    results.close()
    assert not multiprocessing.active_children()


def test_what_cannot_be_sent_is_an_error_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="the function cannot be sent"):
        processes(1)(lambda x: x, [1])
    with pytest.raises(ValueError, match=r"item 1 cannot be sent .*'package\.module:function"):
        processes(1)(square, [1, lambda: 2])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": 1, "threads": 0}, {"workers": 1, "retries": -1}])
def test_numbers_of_workers(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is (0; at least 1|-1; 0 means)"):
        processes(**settings)


def test_nothing_to_do() -> None:
    assert list(processes(3)(square, [])) == []
    assert list(local(square, [3])) == [9]


def test_a_script_without_a_main_guard_is_told_so(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from mithridate.core.workers import processes
        print(list(processes(1)(abs, [-1])))
    """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]
