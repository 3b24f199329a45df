"""Kill -9 at any moment: what was finished stays, the next run does exactly the rest, and the results are the same."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mithridate.experiments.study import load_results, run_study
from tests.experiments.crashing import Run, killed_at_random, raw, small, stamps

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the study comes to here, in one go."""
    return raw(run_study(small(), tmp_path_factory.mktemp("whole"), progress=False))


@pytest.fixture(scope="module")
def seconds_of(tmp_path_factory: pytest.TempPathFactory, uninterrupted: bytes) -> Callable[[str], float]:
    """Runs the study in one go somewhere else and returns what it took."""

    def seconds(where: str) -> float:
        folder = tmp_path_factory.mktemp("timed")
        run = Run(folder, where)
        begin = time.monotonic()
        assert run.end() == 0
        assert raw(load_results(folder)) == uninterrupted
        return time.monotonic() - begin

    return seconds


@pytest.mark.parametrize(("where", "whom"), [("local", "group"), ("processes:2", "main")])
def test_killed_after_the_first_result(tmp_path: Path, where: str, whom: str, uninterrupted: bytes) -> None:
    """Workers whose main process is gone end by themselves; the next run may meet them."""
    run = Run(tmp_path, where)
    run.until(lambda: stamps(tmp_path))
    assert run.kill(whom, random.Random(0))
    run.end()
    before = stamps(tmp_path)
    assert 0 < len(before) < len(small())
    assert raw(run_study(small(), tmp_path, progress=False)) == uninterrupted
    after = stamps(tmp_path)
    assert {path: after[path] for path in before} == before
    run.sweep()
    assert not list(tmp_path.glob("*/*partial*"))


def test_two_runs_at_once_share_the_work(tmp_path: Path, uninterrupted: bytes) -> None:
    log = tmp_path / "log"
    runs = [Run(tmp_path / "out", "local", log) for _ in range(2)]
    assert [run.end() for run in runs] == [0, 0]
    assert raw(load_results(tmp_path / "out")) == uninterrupted
    assert sorted(log.read_text().splitlines()) == sorted(trial.label() for trial in small())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "kinds"), [("local", ("main", "group")), ("processes:2", ("main", "group", "worker"))]
)
def test_ten_random_kills(
    tmp_path: Path, where: str, kinds: tuple[str, ...], uninterrupted: bytes, seconds_of: Callable[[str], float]
) -> None:
    assert len(killed_at_random(tmp_path, where, kinds, 10, seconds_of(where))) == 10
    assert {raw(load_results(folder)) for folder in tmp_path.iterdir()} == {uninterrupted}


@pytest.mark.slow
def test_three_random_kills_on_ray(tmp_path: Path, uninterrupted: bytes, seconds_of: Callable[[str], float]) -> None:
    pytest.importorskip("ray.exceptions", reason="Ray is not installed (extra ray)")
    seconds = seconds_of("ray")
    for whom in ("main", "group", "worker"):
        assert killed_at_random(tmp_path / whom, "ray", (whom,), 1, seconds) == [whom]
        assert {raw(load_results(folder)) for folder in (tmp_path / whom).iterdir()} == {uninterrupted}
