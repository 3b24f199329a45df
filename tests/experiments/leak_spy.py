"""Small trials of gradient inversion, and an attack that writes down what it is given."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.leaks import LeakTrial
from mithridate.inversion.attack import Inversion, Reconstruction
from mithridate.inversion.client import Client
from mithridate.inversion.leak import Leak

DATA = Digits(train=100)
RECIPE = Recipe(model="mlp:width=16", epochs=0, batch_size=50, transforms=())


@dataclass(frozen=True, kw_only=True)
class Spy(Inversion):
    """Returns noise of the seed, and labels in reverse order."""

    fails: str = ""
    """Raise this."""
    warns: str = ""
    """Warn of this, twice."""
    log: ClassVar[list[tuple[Leak, int]]] = []

    def reconstruct(self, leak: Leak, seed: int) -> Reconstruction:
        Spy.log.append((leak, seed))
        if self.fails:
            raise RuntimeError(self.fails)
        for _ in range(2 if self.warns else 0):
            warnings.warn(self.warns, stacklevel=2)
        assert leak.labels is not None
        noise = torch.rand(leak.count, *leak.shape, generator=stream(seed))
        return Reconstruction(noise, leak.labels.flip(0), 0.25, {"notes": 1.0})


@dataclass(frozen=True, kw_only=True)
class DistinctSpy(Spy):
    """One that cannot tell images of one label apart."""

    distinct_labels: ClassVar[bool] = True


def leak_trial(batch: int = 1, **settings: Any) -> LeakTrial:
    """A trial that takes milliseconds."""
    base: dict[str, Any] = {"data": DATA, "recipe": RECIPE, "attack": Spy(), "client": Client(batch=batch)}
    return LeakTrial(**(base | settings))
