"""MI-FGSM: sign steps along a sum of gradients."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.core.balls import Linf
from mithridate.core.schema import name_of
from mithridate.core.steps import MomentumSign
from mithridate.core.updates import Update
from mithridate.evasion.search import Climb, radius


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Climb):
    """Steps along the sign of a running sum of normalised gradients, from the image itself.

    Reference: Dong, Liao, Pang, Su, Zhu, Hu, Li. "Boosting Adversarial Attacks with Momentum". CVPR 2018. arXiv
    1710.06081.

    >>> round(255 * MIFGSM().update().step, 6)
    0.8
    """

    steps: int = 10
    """Steps of each start."""
    random_start: bool = False
    """Whether a search begins at a random place of the ball."""
    step: float | None = None
    """Length of a step; None: eps divided by the steps."""
    decay: float = 1.0
    """What is kept of the sum at every step."""

    def update(self) -> Update:
        if not isinstance(self.ball, Linf):
            raise TypeError(f"mi-fgsm knows the ball linf, and not {name_of(self.ball)}")
        return MomentumSign(step=radius(self) / self.steps if self.step is None else self.step, decay=self.decay)
