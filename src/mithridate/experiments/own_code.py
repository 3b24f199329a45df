"""Training code of the user's own in an audit: which panels fit around it, and a call with few images before any other.

A recipe is rehearsed in seconds, since one step says what all steps would. Code that nobody can look into is called
once with few images instead: what is wrong with it is then found before anything is trained or crafted.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.learners import TrainFunction
from mithridate.core.states import TrainingState
from mithridate.core.training import Fitted, Learner, Watch, predictor_of
from mithridate.experiments.definitions import where
from mithridate.experiments.panels import Panel
from mithridate.experiments.scenarios import scenario
from mithridate.experiments.trial import WRAPPING

REHEARSED = 1000
"""Images of the first call: more than a batch has, so that code which drops an incomplete one has one."""


def fitting(panels: Iterable[Panel], learner: TrainFunction) -> list[Panel]:
    """Returns the panels that fit around training code, from scratch, with those of their defences that wrap it.

    What is about frozen features is left out, and so are defences that change a recipe.

    >>> from mithridate.experiments.presets import digits_audit
    >>> def train(dataset, seed):
    ...     return None
    >>> [len(panel.defenses) for panel in fitting(digits_audit(), TrainFunction(train))]
    [2, 0]
    """
    return [
        replace(
            panel,
            scenario=scenario("from-scratch", learner),
            defenses=tuple(stack for stack in panel.defenses if all(one.kind in WRAPPING for one in stack)),
        )
        for panel in panels
        if panel.scenario.pretrain is None
    ]


class Rehearsed(Learner):
    """Gives an attack one model, as often as it asks: what training code returned for few images.

    Args:
        learner: The training code.
        data: The training set; `REHEARSED` of its images are used, as far apart as they can be.

    Raises:
        ValueError: The code raised something; the message says what, and in which line.
        TypeError: It returned no module.
    """

    def __init__(self, learner: TrainFunction, data: ImageData) -> None:
        self.learner, self.rows = learner, len(data)
        few = data.select(data.ids[:: -(-len(data) // REHEARSED)])
        start = time.perf_counter()
        self.model = _called(learner, few).models[0]
        self.seconds = (time.perf_counter() - start) * len(data) / len(few)
        """What a call with all images takes, if each takes as long."""

    @property
    def recipe(self) -> None:
        """None: the user's own code trains."""
        return None

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Returns the model once for each seed."""
        models = Ensemble([self.model] * len(seeds))
        return Fitted(models, predictor_of(models), {}, [None] * len(seeds))

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Says that nobody can follow such training.

        Raises:
            TypeError: Always.
        """
        return self.learner.begin(datasets, seeds)


def _called(learner: TrainFunction, data: ImageData) -> Fitted:
    try:
        return learner.fit([data], [0])
    except Exception as error:
        if not _went_through(error, learner.train):  # it returned no model, say: an error of ours, in words of its own
            raise
        raise ValueError(
            f"{learner.name}, called with {len(data):,} training images and a seed: {where(error) or 'it'} raised "
            f"{type(error).__name__}: {error}; MITHRIDATE_DEBUG=1 shows how it came there"
        ) from error


def _went_through(error: Exception, train: str | Callable[..., Any]) -> bool:
    """Whether an error came out of the file that holds the training code."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(train)) if callable(train) else None
    except TypeError:  # an object with __call__
        file = inspect.getsourcefile(type(train))
    return any(frame.filename == file for frame in traceback.extract_tb(error.__traceback__))
