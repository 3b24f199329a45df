"""Worker processes: the signature of map, deaths, errors, and errors before anything starts."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap

import pytest

from mithridate.core.workers import WorkerDied, local, processes
from tests.experiments.fakes import awkward, square


def test_results_come_in_order_and_workers_end() -> None:
    before = dict(os.environ)
    assert list(processes(2)(square, range(5))) == list(map(square, range(5)))
    assert not multiprocessing.active_children()
    assert dict(os.environ) == before


def test_one_task_that_kills_its_worker_or_raises_leaves_the_others_alone() -> None:
    found = list(processes(2, threads=2)(awkward, range(5)))
    assert found[0] == found[4] == (2, "2")
    assert isinstance(found[1], WorkerDied)
    assert "exit code 7" in str(found[1])
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "two is wrong"
    assert isinstance(found[3], RuntimeError)
    assert "Unpicklable: 1 and 2" in str(found[3])


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


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": 1, "threads": 0}])
def test_at_least_one(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
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
