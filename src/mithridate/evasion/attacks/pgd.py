"""PGD: projected steps of one length."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core.updates import Update
from mithridate.evasion.search import Climb, fixed_steps, radius


@dataclass(frozen=True, kw_only=True)
class PGD(Climb):
    """Steps of one length along the sign of the gradient (L2: along the gradient), each projected into the ball.

    Reference: Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks".
    ICLR 2018. arXiv 1706.06083; their test setting for CIFAR-10: eps 8/255, 20 steps of 2/255.

    >>> PGD().update().high == 2 / 255
    True
    """

    step: float | None = None
    """Length of a step; None: a quarter of eps."""

    def update(self) -> Update:
        length = radius(self) / 4 if self.step is None else self.step
        return fixed_steps(self, length, length)
