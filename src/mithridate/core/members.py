"""The members of one fit side by side: who says ``members_by(processes(2))`` trains them in worker processes.

On two CPU cores, two processes of one thread each beat one process of two threads (``python -m benchmarks members``). A
member comes out with the same bits as alone in a process with as many threads, so this is how a model is trained, never
what is trained: it is no setting of a recipe, and no id depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from mithridate.core.data import ImageData
from mithridate.core.devices import check_here
from mithridate.core.engines import Map
from mithridate.core.progress import track
from mithridate.core.ray_workers import held

T = TypeVar("T")

MOST_BYTES = 2**31
"""Largest set of images that is sent to worker processes; members on larger ones are trained one after the other."""
_chosen: ContextVar[Map | None] = ContextVar("members", default=None)


@contextmanager
def members_by(map: Map | None) -> Iterator[None]:
    """Trains the members of every fit in this block through a map, for example ``processes(2)``.

    Only members whose images lie in CPU memory, at most 2 GiB of them, are sent to other processes; others are trained
    here one after the other, with as many threads as a worker has.

    Args:
        map: Has the signature of builtin ``map``; None: one member after the other in this process.

    >>> from mithridate.core.training import Recipe
    >>> with members_by(map):
    ...     sorted(side_by_side(len, ["ab", "c"], []))
    [1, 2]
    """
    check_here(map)
    token = _chosen.set(map)
    try:
        with held():
            yield
    finally:
        _chosen.reset(token)


def side_by_side(function: Callable[[Any], T], jobs: Sequence[Any], datasets: Sequence[ImageData]) -> list[T] | None:
    """Returns ``function(job)`` for each job, through the map of `members_by`; None where there is no such block.

    Args:
        function: Trains one member; it can be sent to another process.
        jobs: What to train.
        datasets: The data inside the jobs.

    Raises:
        Exception: What the first job that failed raised.
    """
    chosen = _chosen.get()
    if chosen is None:
        return None
    here = len(jobs) < 2 or any(data.device.type != "cpu" or data.images.nbytes > MOST_BYTES for data in datasets)
    with _threads(getattr(chosen, "threads", None) if here else None):
        outcomes = list(track((map if here else chosen)(function, jobs), "training", total=len(jobs)))
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Computes with so many threads; None: with as many as now."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
