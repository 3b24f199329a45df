"""Job: what a study runs many of: a poisoning trial, the inversion of a leak, or any other measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mithridate.core.sources import DataSource

if TYPE_CHECKING:
    from mithridate.experiments.store import Store


class Result(Protocol):
    """What a job leaves: the content of ``result.json``."""

    def to_json(self) -> dict[str, Any]: ...


class Job(ABC):
    """One piece of work, as settings. Members are frozen dataclasses; everything random follows from their seeds."""

    kind: ClassVar[str]
    """What it measures: "poison", "leak" or "measurement". A results folder holds one kind."""
    data: DataSource | None
    """Where the images come from; None: it takes none."""
    seed: int
    """Draws the case; equal seeds pair the jobs of different cells."""

    @abstractmethod
    def label(self) -> str:
        """Returns a few words for progress lines."""

    @abstractmethod
    def work(self, fingerprint: str) -> dict[str, Any]:
        """Returns the settings that the result depends on: all of them, with the content of the data for its place."""

    @abstractmethod
    def shared_work(self, fingerprint: str) -> Any:
        """Returns the settings of what it shares with other jobs and the first of them makes; None: nothing, or
        something so common that it should be made at once."""

    @abstractmethod
    def run(self, store: Store, device: str = "cpu", *, keep_models: bool = False) -> Result:
        """Carries it out. What it shares is taken from the store and put there; the result itself is not."""
