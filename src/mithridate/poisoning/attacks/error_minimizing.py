"""Error-minimising noise: images that are already easy, so that training on them learns the noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from mithridate.core.balls import Ball
from mithridate.core.classifier import Precision
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.progress import quiet, track
from mithridate.core.states import TrainingState
from mithridate.core.training import Learner
from mithridate.poisoning.alternating import Alternating, PerClass, PerImage, batches_left, rounds_of
from mithridate.poisoning.release import Perturber, Release, augmentation

Noise = Literal["sample-wise", "class-wise"]
ENOUGH: dict[str, float] = {"sample-wise": 0.01, "class-wise": 0.1}
"""Share of the noisy training images that the models may still get wrong when the alternation ends."""


@dataclass(frozen=True, kw_only=True)
class ErrorMinimizing(Release):
    """Lower the training loss of every image by noise that a network learns together with it.

    A few steps of the noise that lower the loss of the images alternate with a few steps of training on them, from
    random weights until the network gets next to no noisy image wrong, or its training is over. Victims find nothing
    left to learn but the noise.

    The alternation is for the sake of its network: what is published of an image is found by descending its loss
    from the image as it is, on the network as it is at the end. So training images and those that come later are
    treated alike.

    Reference: Huang, Ma, Erfani, Bailey, Wang. "Unlearnable Examples: Making Personal Data Unexploitable". ICLR 2021.
    arXiv 2101.04898, eq. (2) and section 3. Deviations: noise comes first, so that the network never sees a clean image
    (a network that has begun to learn from clean ones gives weaker noise); it is rounded to 8-bit pixels after each
    round; training follows the surrogate's recipe; sample-wise noise is found again at the end (see above); a step of
    class-wise noise follows the summed gradient of all images of the class.

    Raises:
        ValueError: If the noise is of neither kind, or a number is not positive.

    >>> ErrorMinimizing(noise="class-wise").batches
    10
    """

    noise: Noise = "sample-wise"
    """sample-wise: noise of its own for each image; class-wise: one pattern for all images of a class."""
    steps: int = 100
    """Sign steps of the descent for each published image; class-wise noise needs none."""
    batches: int = 10
    """Steps of training in each round."""
    inner_steps: int = 20
    """Sign steps of the noise in each round."""
    surrogates: int = 1
    """Networks that learn the noise together; their losses are averaged."""
    step: float = 0.1
    """Length of a sign step as a share of the largest change of a pixel."""
    augment: bool = True
    """Whether the noise is found under the victim's augmentation."""
    precision: Precision = "auto"
    """Number format of the networks; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise is {self.noise!r}; use one of {', '.join(get_args(Noise))}")
        for name in ("batches", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a round needs at least 1")

    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        transforms = augmentation(surrogate, self.augment)
        states = surrogate.begin([train] * self.surrogates, range(self.surrogates))
        work = (PerClass if self.noise == "class-wise" else PerImage)(self, train, ball, transforms)
        self._alternate(states, work, seed)
        return work.perturber(Ensemble([state.module.eval() for state in states]))

    def _alternate(self, states: Sequence[TrainingState], work: Alternating, seed: int) -> None:
        """Trains the networks on noisy images and lowers the noise's loss, round by round."""
        feeds = [batches_left(state) for state in states]
        models, ids = Ensemble([state.module for state in states]), work.train.ids
        for number in track(range(max(rounds_of(state, self.batches) for state in states)), "error-minimising rounds"):
            with quiet():
                work.improve(models, seed, number)
            noisy = work.train.replace(ids, work.images())
            for state, feed in zip(states, feeds, strict=True):
                state.data = noisy
                for batch in islice(feed, self.batches):
                    state.advance(batch)
            if work.error(models) < ENOUGH[self.noise]:
                return
