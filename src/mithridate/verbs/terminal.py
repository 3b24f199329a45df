"""What all verbs share: the device and its workers, and a line of text."""

from __future__ import annotations

import os
from typing import Literal

import torch
from rich.console import Console

MOST_WORKERS = 8
"""Worker processes that are started without being asked: each holds a torch of its own in memory."""

Show = Literal["text", "json", "nothing"]
"""What of a table goes to standard output."""


def start_torch(device: str, workers: int | None) -> int:
    """Checks the device and returns the number of worker processes, by default one per core.

    This process computes with one thread, like every worker: so results do not depend on who computed them.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); the CPU always can: --device cpu") from error
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or (min(cores, MOST_WORKERS) if device == "cpu" else 1)


def say(text: str, *, aside: bool = False) -> None:
    """Prints a line as it is, on standard error where standard output is for a program."""
    Console(stderr=aside, highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)
