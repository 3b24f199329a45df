"""Where work runs, as people type it: local, a number of worker processes, a Ray cluster; or a map of their own."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from typing import Any

from mithridate.core.ray_workers import Ray, ray_workers
from mithridate.core.spelling import nearest
from mithridate.core.workers import Processes, processes

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Has the signature of builtin ``map``; the exception may stand for a result."""
Workers = int | str | Map
"""A number of worker processes (1: this process), what `--workers` takes, or a map."""

KINDS = ("local", "processes:N", "ray", "ray:ADDRESS")


def engine(workers: Workers, *, device: str = "cpu", gpus: float | None = None) -> Map:
    """Returns the map that a number or a text of `--workers` means; a map is returned as it is.

    Args:
        workers: ``local`` or 1: this process. ``processes:N`` or N: worker processes of one thread each. ``ray``: a Ray
            cluster, that of RAY_ADDRESS or one of this machine alone. ``ray:ADDRESS``: host:port, ray://host:port, or
            auto.
        device: Where models run.
        gpus: GPUs of each task on Ray; None: one on a GPU, else none.

    Raises:
        ValueError: None of these; or what does not fit together.

    >>> engine(1) is engine("local") is map
    True
    >>> engine(4) == engine("processes:4") == processes(4)
    True
    >>> engine("ray:head:6379", device="cuda", gpus=0.25)
    Ray(address='head:6379', gpus=0.25, retries=2, threads=1)
    """
    if isinstance(workers, str):
        found = _named(workers.strip(), device, gpus)
    elif isinstance(workers, int):
        found = builtins.map if workers == 1 else processes(workers)
    else:
        return workers
    if gpus is not None and not isinstance(found, Ray):
        raise ValueError(
            "--gpus-per-trial is what each trial takes of a Ray cluster; give it together with --workers ray"
        )
    return found


def _named(text: str, device: str, gpus: float | None) -> Map:
    kind, colon, rest = text.partition(":")
    number = rest if kind == "processes" else text
    if (kind == "processes" or not colon) and number.lstrip("-").isdecimal():
        return builtins.map if text == "1" else processes(int(number))
    if text == "local":
        return builtins.map
    if kind == "processes":
        raise ValueError(f"--workers {text} does not say how many; write processes:4 for four worker processes")
    if kind == "ray" and (rest or not colon):
        if device.partition(":")[2]:
            raise ValueError(
                f"--device {device} with --workers {text}: on Ray a task sees only the GPUs it was given, the first of "
                f"which is its own; write --device {device.partition(':')[0]}"
            )
        return ray_workers(rest or None, gpus=float(device.startswith("cuda")) if gpus is None else gpus)
    raise ValueError(f"--workers {text!r} is no place to run; {nearest(text, KINDS)}, or a number")


def slots(map: Map) -> int:
    """Returns how many tasks a map runs at once, as far as it says.

    >>> slots(processes(3)), slots(map)
    (3, 1)
    """
    if isinstance(map, Ray):
        return map.slots()
    return map.workers if isinstance(map, Processes) else 1


def is_local(map: Map) -> bool:
    """Tells whether a map is this process, one task after the other.

    >>> is_local(map), is_local(processes(1))
    (True, False)
    """
    return map is builtins.map


def described(map: Map) -> str:
    """Returns the words for where work runs.

    >>> described(engine(2)), described(engine(1)), described(engine("ray:auto"))
    ('2 workers', '1 worker', 'Ray at auto')
    """
    if isinstance(map, Ray):
        return "Ray" if map.address is None else f"Ray at {map.address}"
    number = slots(map)
    return f"{number} worker{'s' * (number > 1)}"
