"""FGSM: one step of full length."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core.updates import Update
from mithridate.evasion.search import Climb, fixed_steps, radius


@dataclass(frozen=True, kw_only=True)
class FGSM(Climb):
    """One step along the sign of the gradient; from a random start a quarter longer than eps, then back into the ball.

    Reference: Goodfellow, Shlens, Szegedy. "Explaining and Harnessing Adversarial Examples". ICLR 2015. arXiv
    1412.6572; random start: Wong, Rice, Kolter. "Fast is Better than Free: Revisiting Adversarial Training". ICLR 2020.
    arXiv 2001.03994.

    >>> FGSM().steps, FGSM(random_start=True).update().high == 1.25 * 8 / 255
    (1, True)
    """

    steps: int = 1
    """One."""
    random_start: bool = False
    """Whether the step begins at a random place of the ball."""

    def update(self) -> Update:
        length = (1.25 if self.random_start else 1.0) * radius(self)
        return fixed_steps(self, length, length)
