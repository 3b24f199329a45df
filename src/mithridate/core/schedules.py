"""How the learning rate changes over training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from mithridate.core.schema import Choice
from mithridate.core.updates import step_decay


class Schedule(Choice, ABC):
    """A factor of the learning rate as a function of progress, 0..1.

    >>> from mithridate.core.schema import parse
    >>> parse(Schedule, "one-cycle:peak=0.5")(0.25)
    0.5
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Returns the factor at that share of the training."""


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """x 0.1 at 3/8, 5/8 and 7/8 of training, the poisoning literature's usual schedule.

    >>> round(StepDecay()(0.5), 3)
    0.1
    """

    def __call__(self, progress: float) -> float:
        return step_decay(progress)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Falls from one to zero along half a cosine.

    >>> round(Cosine()(0.5), 3)
    0.5
    """

    def __call__(self, progress: float) -> float:
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Rises linearly to one and falls linearly to zero.

    Reference: Smith, Topin. "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
    2018. arXiv 1708.07120.

    Raises:
        ValueError: the peak is not inside the training.

    >>> [OneCycle(peak=0.5)(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 0.0]
    """

    peak: float = 0.25
    """Share of training at which the rate is highest."""

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise ValueError(f"peak is {self.peak}; it is a share of the training between 0 and 1")

    def __call__(self, progress: float) -> float:
        return max(0.0, min(progress / self.peak, (1 - progress) / (1 - self.peak)))
