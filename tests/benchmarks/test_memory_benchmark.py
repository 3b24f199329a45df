"""The memory benchmark counts what a process holds of its own, and not what is mapped from a file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.__main__ import main

pytestmark = pytest.mark.skipif(not memory.STATUS.exists(), reason="only Linux says what is anonymous memory")


def test_the_peak_counts_allocations_and_no_mapped_file(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(32 * 2**20,))
    before = memory.anonymous()
    with memory.Peak() as reading:
        mapped.sum()
    with memory.Peak() as writing:
        block = np.ones(256 * 2**20, np.uint8)  # much more than what the system may take from the process meanwhile
        time.sleep(0.1)  # on a busy machine, too, the reading thread gets its turn
        del block
    assert reading.megabytes - before < 16
    assert writing.megabytes - before > 128


def test_synthetic_images_differ_and_stay_the_same() -> None:
    train, test = memory.synthetic(1000, 16)
    images = {train[i][0].tobytes() for i in range(1000)} | {test[i][0].tobytes() for i in range(1000)}
    assert len(images) == 2000
    assert np.array_equal(train[7][0], memory.synthetic(1000, 16)[0][7][0])


def test_arms_measure_in_this_process(tmp_path: Path) -> None:
    for arm in memory.ARMS:
        found = memory._measure(arm, 200, 16, str(tmp_path))
        assert 0 < found.before <= found.peak + 16
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("arm", "holds"), [(memory.ARMS[0], False), (memory.ARMS[1], False), (memory.ARMS[2], True)])
def test_growth_beyond_what_is_allowed_is_a_miss_for_the_cache_alone(arm: str, holds: bool) -> None:
    assert memory._claim(arm, (10, 20), [100.0, 100.0 + memory.ALLOWED + 1]).holds == holds
    assert memory._claim(arm, (10, 20), [100.0, 99.0]).holds


@pytest.mark.slow
def test_it_runs_small(tmp_path: Path) -> None:
    assert main(["memory", "--small", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "memory-cpu.json").read_text(encoding="utf-8"))
    assert len(report["rows"]) == 6
    assert len(report["claims"]) == 3
