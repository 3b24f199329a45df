"""One model on several devices: who says ``on_devices(2)`` trains every model on two.

It is how a model is trained, never what is trained: it is no setting of a recipe, and no id depends on it. What the
devices share out is in `data_parallel`, the processes that hold them in `crew`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

from mithridate.core.crew import Crew, Epoch
from mithridate.core.data import ImageData
from mithridate.core.engines import Map
from mithridate.core.states import Member

if TYPE_CHECKING:
    from mithridate.core.training import Recipe

PATIENCE = 1800.0
"""Seconds for which a device waits for the others in the middle of a step before it gives up."""


class Devices:
    """How many devices train each model, and the processes, which are started with the first one."""

    def __init__(self, count: int, patience: float = PATIENCE) -> None:
        self.count, self.patience = count, patience
        self._crew: Crew | None = None

    def train(self, recipe: Recipe, data: ImageData, seed: int, *, watched: bool = False) -> Iterator[Epoch | Member]:
        """Trains a model on all devices: yields what is over of it, at last the trained one.

        Args:
            recipe: How.
            data: On what; each device gets all of it. Where it lies, CPU or CUDA, the devices are.
            seed: Of the training.
            watched: Whether the epochs bring the model.

        Raises:
            ValueError: There are fewer GPUs, or the recipe cannot be sent to another process.
            WorkerDied: A process ended in the middle.
            RuntimeError: The processes could not start, or waited for each other in vain.
        """
        kind = data.device.type
        if self._crew is not None and self._crew.kind != kind:
            self.close()
        if self._crew is None:
            check_devices(self.count, str(data.device))
            self._crew = Crew(self.count, kind, self.patience)
        try:
            yield from self._crew.train(recipe, data, seed, watched)
        finally:
            if self._crew.busy:  # whoever is left of them waits for the others
                self.close()

    def close(self) -> None:
        """Ends the processes; the next training starts new ones."""
        if self._crew is not None:
            self._crew.close()
        self._crew = None


_chosen: ContextVar[Devices | None] = ContextVar("devices", default=None)


@contextmanager
def on_devices(count: int, *, patience: float = PATIENCE) -> Iterator[None]:
    """Trains every model of a recipe in this block on so many devices, each with its share of every batch.

    For one model that is too slow on one device. For several models, let workers train one each: nothing has to be sent
    between them. Devices are the GPUs 0, 1, ... where the data lie on a GPU, else processes that share this one's
    threads. The model is the one that a single device would have trained, up to rounding; bits differ. A script that
    uses this needs the usual ``if __name__ == "__main__":``, because each process imports the script.

    Args:
        count: Devices; 1 changes nothing.
        patience: Seconds for which a device waits for the others in the middle of a step before it gives up.

    Raises:
        ValueError: Fewer than one.

    >>> with on_devices(1):
    ...     chosen_devices() is None
    True
    """
    check_devices(count)
    devices = Devices(count, patience) if count > 1 else None
    token = _chosen.set(devices)
    try:
        yield
    finally:
        _chosen.reset(token)
        if devices is not None:
            devices.close()


def chosen_devices() -> Devices | None:
    """Returns what trains models on several devices here; None: one device does."""
    return _chosen.get()


def check_here(map: Map | None) -> None:
    """Makes sure that what trains on several devices is not sent to other processes, which know nothing of them.

    Raises:
        ValueError: A map other than the builtin one, inside `on_devices`.
    """
    devices = _chosen.get()
    if devices is not None and map is not None and map is not builtins.map:
        raise ValueError(
            f"{devices.count} devices train each model together, and workers train several models at once; use one of "
            "the two: the builtin map (--workers local), or one device"
        )


def check_devices(count: int, device: str = "cpu") -> None:
    """Makes sure that so many devices can train a model together.

    Args:
        count: How many.
        device: Where the data lie: cpu, cuda.

    Raises:
        ValueError: Fewer than one; a device of which there are not so many.
    """
    if count < 1:
        raise ValueError(f"devices is {count}; at least 1 is needed")
    kind, _, number = device.partition(":")
    if count == 1 or kind == "cpu":
        return
    if kind != "cuda":
        raise ValueError(f"a model is trained on several GPUs (cuda) or in several processes (cpu), not on {device!r}")
    if int(number or 0):
        raise ValueError(f"{device} names one GPU, and {count} devices are the GPUs from 0 on; write --device cuda")
    if count > torch.cuda.device_count():
        raise ValueError(f"devices is {count}, but this machine has {torch.cuda.device_count()} GPUs; use no more")
