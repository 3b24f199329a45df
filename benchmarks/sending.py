"""Images in memory on their way to workers: with every task, or once for all; the wall is the clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from benchmarks.measure import Arm, Report, Setup, environment, faster_than_straightforward, race
from mithridate.core.data import ImageData
from mithridate.core.engines import Map
from mithridate.core.extras import MissingExtra
from mithridate.core.ray_workers import held, ray_workers
from mithridate.core.sending import Shelf
from mithridate.core.sources import Arrays
from mithridate.core.workers import processes

WORKERS = 2
LEAST = 3.0
"""Times as fast as with a copy in every task, the start of the workers included."""


def run(setup: Setup) -> Report:
    """Let tasks look at images that come with them."""
    count, tasks = (200, 4) if setup.small else (60_000, 24)
    source = _source(count)
    items = [(row, source) for row in range(tasks)]

    def work(map: Map) -> str:
        return str(sum(map(look, items)))

    with _a_cluster() as cluster:
        arms = [
            Arm(name="shared", role="mithridate", work=lambda: work(processes(WORKERS))),
            Arm(name="with every task", role="straightforward", work=lambda: _copied(lambda: work(processes(WORKERS)))),
            Arm(name="starting the processes, no work", role="control", work=_start),
        ]
        if cluster:
            arms.append(Arm(name="on a Ray cluster that runs", role="variant", work=lambda: work(ray_workers())))
        rows = race(
            setup,
            f"{tasks} tasks on {count} images",
            arms,
            unit="tasks per wall second",
            value=lambda seconds: tasks / seconds,
            clock="wall",
            once=setup.small,
        )
    settings = {"images": f"{count} of 32x32x3, synthetic", "tasks": tasks, "workers": WORKERS}
    claims = faster_than_straightforward(rows, None if setup.small else LEAST)
    return Report(name="sending", settings=settings, rows=rows, claims=claims, environment=environment("cpu"))


def look(item: tuple[int, Arrays]) -> int:
    """A task: the sum of one image."""
    row, source = item
    return int(source.train.images[row].sum())


def _source(count: int) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = ImageData(images, torch.arange(count) % 10, tuple("0123456789"))
    return Arrays(data, data.select(torch.arange(100)))


def _start() -> str:
    list(processes(WORKERS)(abs, range(WORKERS)))
    return "see its seconds: no task is done"


def _copied(work: Callable[[], str]) -> str:
    with mock.patch.object(Shelf, "put", return_value=None):
        return work()


@contextlib.contextmanager
def _a_cluster() -> Iterator[bool]:
    """Keeps a Ray cluster for all rounds, where Ray is installed."""
    with held():
        try:
            list(ray_workers()(abs, [1] * WORKERS))
        except MissingExtra:
            yield False
        else:
            yield True
