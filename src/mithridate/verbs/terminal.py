"""What all verbs share: the device and its workers, and a line of text."""

from __future__ import annotations

import os
from typing import Literal

import torch
from rich.console import Console

from mithridate.core.devices import check_devices
from mithridate.core.engines import Map, engine, is_local

MOST_WORKERS = 8
"""Worker processes that are started without being asked: each holds a torch of its own in memory."""

Show = Literal["text", "json", "nothing"]
"""What of a table goes to standard output."""


def start_torch(device: str, workers: str | None, gpus: float | None = None, devices: int = 1) -> Map:
    """Checks the device and returns where work runs, by default in one worker process per core.

    Where several devices train each model, one model is trained after the other. This process computes with one thread,
    like every worker: so results do not depend on who computed them.
    """
    asked = engine("local" if workers is None else workers, device=device, gpus=gpus)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); the CPU always can: --device cpu") from error
    check_devices(devices, device)
    if devices > 1 and not is_local(asked):
        raise ValueError(
            f"--devices {devices} trains each model on several devices, and --workers {workers} trains several models "
            "at once; use one of the two"
        )
    torch.set_num_threads(1)
    if devices > 1:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = min(cores, MOST_WORKERS) if device == "cpu" else 1
    return engine(usual) if workers is None else asked


def say(text: str, *, aside: bool = False) -> None:
    """Prints a line as it is, on standard error where standard output is for a program."""
    Console(stderr=aside, highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)
