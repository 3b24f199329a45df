"""Gradient shaping: clip each batch's gradient and add noise to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core.gradient_rules import Shaped, refuse_second_rule
from mithridate.core.learners import Mixed
from mithridate.core.schema import name_of
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, changed


@dataclass(frozen=True, kw_only=True)
class GradientShaping(Defense):
    """Clip the norm of each batch's mean gradient and add a little Gaussian noise, so that poison moves a step less.

    It claims nothing: it looks like private training, but what is clipped is the gradient of a batch, and one image can
    turn that. `dp-sgd` clips the gradient of each image and says what this proves.

    Reference: Hong, Chandrasekaran, Kaya, Dumitras, Papernot. "On the Effectiveness of Mitigating Data Poisoning
    Attacks with Gradient Shaping". 2020. arXiv 2002.11497. Deviations: the batch's gradient is clipped instead of each
    image's, as in the comparison of Borgnia et al. (arXiv 2011.09527), from which the defaults are.

    Raises:
        ValueError: A clip that is not positive, negative noise, or a second rule for the gradient.

    >>> from mithridate import Recipe
    >>> GradientShaping(clip=4.0)(Recipe()).gradient.clip
    4.0
    """

    kind: ClassVar[Kind] = "gradient rule"
    clip: float = 1.0
    """Largest norm of a batch's gradient."""
    noise: float = 0.01
    """Deviation of the noise on each number of it, as a multiple of clip."""

    def __post_init__(self) -> None:
        Shaped(clip=self.clip, noise=self.noise)  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        plain = changed(learner, self)
        refuse_second_rule(plain.recipes if isinstance(plain, Mixed) else (plain,), name_of(self))
        return changed(plain, self, gradient=Shaped(clip=self.clip, noise=self.noise))
