"""WITCHcraft: PGD whose step length is drawn anew at every step."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core.updates import Update
from mithridate.evasion.search import Climb, fixed_steps, radius


@dataclass(frozen=True, kw_only=True)
class WITCHcraft(Climb):
    """PGD with a step length drawn uniformly from [low, high] at every step, for each image or for the whole batch.

    With equal ends it is PGD, bit for bit.

    Reference: Chiang, Geiping, Goldblum, Goldstein, Ni, Reich, Shafahi. "WITCHcraft: Efficient PGD Attacks with Random
    Step Size". ICASSP 2020. arXiv 1911.07989. The interval is ours: from 0 to twice PGD's step, which is its mean.

    Raises:
        ValueError: An interval that ends before it begins, or begins below 0.

    >>> WITCHcraft().update().low, WITCHcraft().update().high == 4 / 255
    (0.0, True)
    """

    low: float = 0.0
    """Shortest step."""
    high: float | None = None
    """Longest step; None: half of eps."""
    per_batch: bool = False
    """Whether one length is drawn for all images of a batch."""

    def update(self) -> Update:
        high = radius(self) / 2 if self.high is None else self.high
        if not 0 <= self.low <= high:
            raise ValueError(f"witchcraft draws from {self.low:g} to {high:g}; expected 0 <= low <= high")
        return fixed_steps(self, self.low, high, shared=self.per_batch)
