"""APGD: projected steps that find their own length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mithridate.core.steps import AutoStep
from mithridate.core.updates import Update
from mithridate.evasion.search import Climb


@dataclass(frozen=True, kw_only=True)
class APGD(Climb):
    """Projected ascent with momentum; the step, first twice eps, halves for an image that makes no progress.

    Reference: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
    Attacks". ICML 2020. arXiv 2003.01690. `loss="dlr", targets=9` is its targeted variant.

    >>> APGD(loss="dlr", targets=9).steps
    100
    """

    steps: int = 100
    """Steps of each start."""
    keep: Literal["last", "best"] = "best"
    """Of an image that is not fooled: its last iterate, or the one of the highest loss."""

    def update(self) -> Update:
        return AutoStep(ball=self.ball, steps=self.steps)
