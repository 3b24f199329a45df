"""Members in worker processes: the same bits as alone, in their order, and an error of one is the error of the fit."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from mithridate.core import members
from mithridate.core.learners import Mixed
from mithridate.core.members import members_by, side_by_side
from mithridate.core.training import Recipe
from mithridate.core.workers import Processes, WorkerDied, processes
from tests.core.training_cases import data, digest, quick


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted:
    """A map that counts its jobs."""

    threads = 1

    def __init__(self) -> None:
        self.jobs: list[int] = []

    def __call__(self, function: Any, items: Any) -> Any:
        items = list(items)
        self.jobs.append(len(items))
        return builtins.map(function, items)


def test_worker_processes_train_the_same_bits_in_the_same_order() -> None:
    sets, seeds = [data(), data(24), data()], [3, 1, 4]
    alone = quick(epochs=2).fit(sets, seeds)
    with members_by(processes(2)):
        together = quick(epochs=2).fit(sets, seeds)
    assert list(map(digest, together.models)) == list(map(digest, alone.models))
    assert together.history == alone.history
    assert together.kept == alone.kept
    assert not any(module.training for module in together.models)


def test_a_mixture_goes_through_the_map_recipe_by_recipe() -> None:
    mixed = Mixed((quick(epochs=1), quick(epochs=1, batch_size=8)))
    alone = mixed.fit([data()] * 4, range(4))
    counted = Counted()
    with members_by(counted):
        together = mixed.fit([data()] * 4, range(4))
    assert list(map(digest, together.models)) == list(map(digest, alone.models))
    assert counted.jobs == [2, 2]


def test_one_member_stays_here_with_the_threads_of_a_worker() -> None:
    torch.set_num_threads(2)
    seen = []
    with members_by(Processes(workers=2, threads=1)):
        assert side_by_side(lambda job: seen.append(torch.get_num_threads()), ["one"], [data()]) == [None]
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_sets_too_large_to_send_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    with members_by(counted):
        assert side_by_side(str, [1, 2], [data()]) == ["1", "2"]
        monkeypatch.setattr(members, "MOST_BYTES", 10)
        assert side_by_side(str, [1, 2], [data()]) == ["1", "2"]
    assert counted.jobs == [2]


def test_a_watched_fit_runs_in_this_process() -> None:
    counted, seen = Counted(), []
    with members_by(counted):
        quick(epochs=2).fit([data()] * 2, [0, 1], watch=lambda member, epoch, _: seen.append((member, epoch)))
    assert counted.jobs == []
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_outside_a_block_and_in_an_inner_one_without_map_nothing_is_sent() -> None:
    assert side_by_side(str, [1], []) is None
    counted = Counted()
    with members_by(counted), members_by(None):
        assert side_by_side(str, [1, 2], []) is None
    assert counted.jobs == []


def test_what_a_worker_raises_is_raised_and_a_dead_one_says_so() -> None:
    bad = Recipe(model="package.nowhere:net", epochs=1)
    with members_by(processes(2)), pytest.raises((ValueError, ImportError), match="nowhere"):
        bad.fit([data()] * 2, [0, 1])

    def dies(function: Any, items: Any) -> list[Any]:
        return [function(items[0]), WorkerDied("the worker process was ended by SIGKILL")]

    with members_by(dies), pytest.raises(WorkerDied, match="SIGKILL"):
        quick(epochs=1).fit([data()] * 2, [0, 1])


def test_what_cannot_be_sent_is_said_before_any_training() -> None:
    local = quick(model=lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes)))
    with members_by(processes(2)), pytest.raises(ValueError, match=r"package.module:function"):
        local.fit([data()] * 2, [0, 1])
