"""Private training: clip the gradient of each image, add noise, and count what that gives away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mithridate.core.gradient_rules import PerSample, refuse_second_rule
from mithridate.core.learners import Mixed
from mithridate.core.sampling import Poisson
from mithridate.core.schema import name_of
from mithridate.core.training import Learner, Recipe
from mithridate.poisoning.defense import Defense, Kind, changed


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Train with differential privacy, so that no small number of rows can change much.

    Each step clips the gradient of every image to a norm, sums, and adds Gaussian noise; batches are drawn row by row,
    independently. What this proves about adding or removing a row comes with the fit as epsilon; what epsilon means for
    many poisoned rows is `mithridate.core.privacy.group_privacy`. It costs accuracy, most on small data sets.

    It needs a model that sees each image alone (``convnet:norm=group``, ``lenet``, ``mlp``, or a new head on frozen
    features) and transforms that do not mix images. It sets the sampler, trains in float32, and normalises by fixed
    numbers where the recipe did by the data's. With noise 0 it clips only, and claims nothing. Epsilon is computed by
    dp-accounting (``pip install 'mithridate[dp]'``).

    Reference: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. "Deep Learning with Differential Privacy". CCS
    2016. arXiv 1607.00133. As a defence: Hong et al., arXiv 2002.11497; Ma, Zhu, Hsu, arXiv 1903.09860. Deviations:
    momentum and weight decay are the recipe's; privacy is counted by loss distributions instead of moments.

    Raises:
        ValueError: A setting out of range, a recipe that mixes images or drops rows, or a second rule for the gradient.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = DPSGD(noise=2.0)(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> 0 < fitted.guarantees[0].values["epsilon"] < 10
    True
    """

    kind: ClassVar[Kind] = "gradient rule"
    clip: float = 1.0
    """Largest norm of the gradient of one image."""
    noise: float = 1.0
    """Deviation of the noise on each number of the summed gradient, as a multiple of clip."""
    delta: float = 1e-5
    """Probability that the guarantee may fail with; well below one over the number of rows."""

    def __post_init__(self) -> None:
        self._rule(lot=1)  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        plain = changed(learner, self)
        if isinstance(plain, Mixed):
            return Mixed(tuple(self._private(recipe) for recipe in plain.recipes))
        return self._private(plain)

    def _private(self, recipe: Recipe) -> Recipe:
        refuse_second_rule([recipe], name_of(self))
        return replace(
            recipe,
            gradient=self._rule(lot=recipe.batch_size),
            sampler=Poisson(),
            normalize="fixed" if recipe.normalize == "data" else recipe.normalize,
            precision="fp32",
        )

    def _rule(self, lot: int) -> PerSample:
        return PerSample(clip=self.clip, noise=self.noise, lot=lot, delta=self.delta)
