"""A measurement that does nothing but answer, for tests of all around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mithridate.core.sources import DataSource
from mithridate.experiments.measurements import Measurement, Value
from mithridate.experiments.store import Store


@dataclass(frozen=True, kw_only=True)
class Answer(Measurement):
    """Numbers that follow from its settings."""

    data: DataSource | None = None
    scale: float = 1.0
    file: Path | None = None
    fails: str | None = None

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        if self.fails:
            raise ValueError(self.fails)
        if self.data is not None:
            return {"rows": len(store.data(self.data, device).train)}
        return {
            "value": self.scale * self.seed,
            "right": [self.seed > 0, True, False],
            "whole": torch.tensor(self.seed == 1),
            "curve": torch.arange(3.0),
            "words": "as they are",
            "unknown": None if self.seed else 7,
        }


@dataclass(frozen=True, kw_only=True)
class Thing(Measurement):
    """Measures what is no number."""

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        return {"thing": object()}  # type: ignore[dict-item]


def answers() -> list[Measurement]:
    """Two settings, three seeds."""
    return [Answer(scale=scale, seed=seed) for scale in (10.0, 2.0) for seed in range(3)]


def none() -> list[Measurement]:
    """One that fails."""
    return [Answer(), Answer(fails="no luck")]
