"""Measurement: any other study of a model or of data, stored, resumed and tabled like the rest."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch

from mithridate.core.schema import SCHEMA, Choice, name_of
from mithridate.core.seeds import seeded
from mithridate.core.sources import DataSource
from mithridate.experiments.facts import caught_warnings, check_resumable, data_facts, environment, peak_memory_mb
from mithridate.experiments.job import Job
from mithridate.experiments.store import NO_DATA, Store

Value = float | int | bool | str | None | Sequence["Value"]
"""What may be measured: a number, an answer, or a list of them; text and None are stored and not averaged."""


@dataclass(frozen=True, kw_only=True)
class Measurement(Choice, Job, ABC):
    """Something to measure, as settings; a study is a list of them, and equal settings but the seed make one row.

    Subclass it in a file of your own: a results folder names it as `module:Class`, and `mithridate study`, `trial` and
    `report` work as for the attacks of this package. A path among the settings counts by what is in the file.

    >>> import mithridate as mi
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Accuracy(Measurement):
    ...     data: mi.DataSource = mi.Digits(train=100)
    ...     recipe: mi.Recipe = mi.Recipe(epochs=1)
    ...
    ...     def measure(self, store, device):
    ...         data = store.data(self.data, device)
    ...         model = self.recipe.fit([data.train], [self.seed]).models[0]
    ...         rows = data.test.ids[:50]
    ...         right = model(data.test.floats(rows)).argmax(1) == data.test.labels_of(rows)
    ...         return {"right": right.tolist()}
    >>> len(Accuracy().run(Store("runs/example")).outcome["right"])
    50
    """

    home: ClassVar[str] = "mithridate.experiments.measured"
    kind: ClassVar[str] = "measurement"
    data: DataSource | None = None
    """Where images come from; None: from nowhere, or from files that settings name."""
    seed: int = 0
    """Of everything drawn; rows average over it."""

    @abstractmethod
    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        """Measures once.

        Args:
            store: Gives data (`store.data`) and keeps fits (`Stored(recipe, store)`), which others then find.
            device: Where models run.

        Returns:
            What was measured, by name: numbers (the table gives their mean over seeds), True and False or lists of them
            (it gives rates; lists of equal length are taken to be about the same cases in the same order), and anything
            else that JSON holds.
        """

    def label(self) -> str:
        return f"{name_of(self).rpartition(':')[2]}, seed {self.seed}"

    def work(self, fingerprint: str) -> dict[str, Any]:
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return settings | {"data": fingerprint, "kind": self.kind, "type": name_of(self)}

    def shared_work(self, fingerprint: str) -> Any:
        return None

    def run(self, store: Store, device: str = "cpu", *, keep_models: bool = False) -> MeasurementResult:
        """Carries it out.

        Raises:
            TypeError: Something was measured that JSON does not hold.
        """
        start = time.perf_counter()
        with caught_warnings() as messages, seeded(torch.device(device), self.seed):
            fingerprint, facts = NO_DATA, {}
            if self.data is not None:
                data = store.data(self.data, device)
                fingerprint, facts = data.fingerprint, data_facts(data.fingerprint, data.train, data.test, None)
            check_resumable(self.work(fingerprint))
            loaded = time.perf_counter()
            outcome = {name: _plain(name, value) for name, value in self.measure(store, device).items()}
        return MeasurementResult(
            trial=store.identity(self.work(fingerprint)),
            outcome=outcome,
            data=facts,
            seconds={"load": round(loaded - start, 3), "measure": round(time.perf_counter() - loaded, 3)},
            peak_memory_mb=peak_memory_mb(),
            threads=torch.get_num_threads(),
            environment=environment(device),
            warnings=list(dict.fromkeys(str(message.message) for message in messages)),
        )


@dataclass(frozen=True, kw_only=True)
class MeasurementResult:
    """Raw outcome of one measurement."""

    trial: str
    """Id of the measurement."""
    outcome: dict[str, Any]
    """What was measured, by name."""
    data: dict[str, Any]
    """Fingerprint, sizes, class names, shape; empty where no data set was taken."""
    seconds: dict[str, float]
    """Time of each phase."""
    peak_memory_mb: float | None
    """Largest resident memory of the process so far; None where the system does not say."""
    threads: int
    """Torch threads."""
    environment: dict[str, str]
    """Versions and machine."""
    warnings: list[str] = field(default_factory=list)
    """Python warnings, each once."""
    kind: str = Measurement.kind
    schema: int = SCHEMA
    """Version of this format."""

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``result.json``."""
        return asdict(self)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON holds it.

    Raises:
        TypeError: JSON does not hold it.
    """
    if hasattr(value, "tolist"):  # a tensor, an array, a scalar of either
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(name, one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; measure numbers, True or False, text, or lists of them")
