"""Defense: a learner made from a learner, and the wrapping learners that filters, purifications and guards build."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.batch import BatchTransform
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble, features_and_logits
from mithridate.core.learners import Mixed
from mithridate.core.memory import in_chunks
from mithridate.core.schema import Choice, name_of
from mithridate.core.seeds import derive
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Fitted, Learner, Prediction, Predictor, Recipe, Watch, Wrapper, predictor_of
from mithridate.poisoning.voting import Voting

Kind = Literal["transform", "gradient rule", "sampler", "row rule", "filter", "vote", "purification", "guard"]


class Defense(Choice, ABC):
    """Makes a learner out of a learner. Adding a file with a subclass to `poisoning/defenses/` adds the defence.

    Defences stack: each is given what the one before it made. Those that change the recipe come first, those that wrap
    come after them. A defence sees training data and seeds; never the test set, the targets or which rows are poisoned.

    >>> from mithridate import Recipe
    >>> class LargeBatches(Defense):
    ...     kind = "transform"
    ...
    ...     def __call__(self, learner):
    ...         return changed(learner, self, batch_size=512)
    >>> LargeBatches()(Recipe()).batch_size
    512
    """

    home: ClassVar[str] = "mithridate.poisoning.defenses"
    kind: ClassVar[Kind]
    """What it does; the first four change the recipe, the others wrap the learner."""
    needs_trusted: ClassVar[bool] = False
    """Whether it cannot work without clean rows that are held out for it."""

    @abstractmethod
    def __call__(self, learner: Learner) -> Learner:
        """Returns the defended learner.

        Raises:
            TypeError: If this defence cannot come after what made `learner`.
        """

    def seen_by_attacker(self, learner: Learner) -> Learner:
        """Returns what an adaptive attacker, who knows the defence, crafts through.

        An attacker has no trusted rows, so what needs them cannot be part of it.
        """
        return self(learner)


def changed(learner: Learner, defense: Defense, **settings: Any) -> Recipe | Mixed:
    """Returns the recipe (or the mixture of recipes) with other settings, on behalf of a defence that changes recipes.

    Raises:
        TypeError: If the learner is not a plain recipe; names the right order.
    """
    if isinstance(learner, Recipe):
        return dataclasses.replace(learner, **settings)
    if isinstance(learner, Mixed):
        return learner.changed(**settings)
    name = name_of(defense)
    if learner.recipe is None:
        raise TypeError(
            f"{name} changes the training recipe, but {name_of(learner)} trains with code of its own; make the change "
            "there, or take a defence that wraps it: a filter, vote, purification or guard"
        )
    raise TypeError(
        f"{name} changes the training recipe, so it comes before what wraps a learner ({name_of(learner)}); "
        f"put {name} first in the list of defences"
    )


def augmented(learner: Learner, defense: Defense, transform: BatchTransform) -> Recipe | Mixed:
    """Returns the recipe with one more batch transform after its own.

    Raises:
        TypeError: If the learner is not a plain recipe; names the right order.
    """
    own = () if learner.recipe is None else learner.recipe.transforms
    return changed(learner, defense, transforms=(*own, transform))


class Augmentation(Defense):
    """A defence that adds one batch transform, made of its own settings, after those of the recipe."""

    kind: ClassVar[Kind] = "transform"

    def __post_init__(self) -> None:
        self.transform()  # says what is wrong with a setting before any training

    @abstractmethod
    def transform(self) -> BatchTransform:
        """Returns what is added to the recipe."""

    def __call__(self, learner: Learner) -> Learner:
        return augmented(learner, self, self.transform())


# --- filters ---------------------------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """What one trained model makes of its own training rows, in eval mode and without augmentation."""

    features: Tensor
    """[n, D] float: input of the last Linear."""
    logits: Tensor
    """[n, K] float."""
    labels: Tensor
    """[n] int64."""


class Judgement(NamedTuple):
    """What a filter says of these rows."""

    scores: Tensor
    """[n] float64, finite: the larger, the more suspicious."""
    marked: Tensor
    """[n] bool: which rows to drop; never all of a class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter(Defense):
    """A defence that fits, says how suspicious each row is, drops the worst and fits again."""

    kind: ClassVar[Kind] = "filter"
    reason: ClassVar[str]
    """Why a row is suspicious to it: half a sentence that begins with a verb."""

    contamination: float
    """Share of the training set that the defender expects to be poisoned."""

    def __post_init__(self) -> None:
        if not 0 < self.contamination < 1:
            raise ValueError(
                f"contamination is {self.contamination:g}; it is the fraction of the training set expected to be "
                "poisoned, so use for example 0.01 for 1 %"
            )

    def __call__(self, learner: Learner) -> Learner:
        return Filtered(learner, self)

    @abstractmethod
    def judge(self, evidence: Evidence) -> Judgement:
        """Says how suspicious each row is, and which ones to drop; the evidence is finite."""

    def evidence(
        self, learner: Learner, datasets: Sequence[ImageData], seeds: Sequence[int], *, trusted: ImageData | None
    ) -> list[Evidence]:
        """Trains one model for each data set and seed, and asks it about the rows of that set.

        Raises:
            ValueError: If the model has no final Linear to take features from, or says what is not finite.
        """
        fitted = learner.fit(datasets, seeds, trusted=trusted)
        return [evidence_of(model, data) for model, data in zip(fitted.models, datasets, strict=True)]


def evidence_of(model: nn.Module, data: ImageData) -> Evidence:
    """Asks a model about the rows of a data set, in their order.

    Raises:
        ValueError: If the model has no final Linear, or a feature or logit is not finite.
    """
    width = 0

    def ask(rows: Tensor) -> Tensor:
        nonlocal width
        found, logits = features_and_logits(model, data.floats(rows))
        width = found.shape[1]
        return torch.cat([found, logits], 1)

    with torch.no_grad():
        both = in_chunks(ask, data.ids, EVALUATION_BATCH)
    if odd := int((~both.isfinite()).any(1).sum()):
        raise ValueError(
            f"features or logits of {odd} of {len(both)} rows are not finite: the model has diverged; train it at a "
            "lower learning rate"
        )
    return Evidence(both[:, :width], both[:, width:], data.labels_of(data.ids))


@dataclasses.dataclass(frozen=True)
class Filtered(Wrapper):
    """Fit, mark suspicious rows, drop them, fit again.

    The second fit has the same seed: the two differ in their data alone. `watch` sees the second fit. What a recipe
    proves does not survive the first fit, which sees every row, so `guarantees` stays empty.
    """

    learner: Learner
    """Trains both times."""
    filter: Filter
    """Says which rows to drop."""

    def __post_init__(self) -> None:
        if isinstance(self.learner, Voting):
            raise TypeError(
                "a filter looks at the features of one model per fit and cannot filter for a vote as a whole; "
                "put the filter before partition-vote: each part is then filtered on its own"
            )
        if isinstance(self.learner, Purified | Guarded):
            later = "purification" if isinstance(self.learner, Purified) else "guard"
            raise TypeError(f"a {later} works on the models of the last fit; put the filter before the {later}")

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains twice; `kept` holds the rows of the second fit.

        Raises:
            ValueError: If the model has no final Linear to take features from, or a feature is not finite.
        """
        evidence = self.filter.evidence(self.learner, datasets, seeds, trusted=trusted)
        kept = [self._kept(*pair) for pair in zip(evidence, datasets, strict=True)]
        filtered = [data.select(rows) for data, rows in zip(datasets, kept, strict=True)]
        second = self.learner.fit(filtered, seeds, trusted=trusted, watch=watch)
        inner = [rows if later is None else later for rows, later in zip(kept, second.kept, strict=True)]
        return second._replace(kept=inner, guarantees=())

    def _kept(self, evidence: Evidence, data: ImageData) -> Tensor:
        """Row ids that are not suspicious, in the order of the data."""
        return data.ids[~self.filter.judge(evidence).marked.to(data.ids.device)]


# --- purifications ---------------------------------------------------------------------------------------------------

Purification = Callable[[nn.Module, Recipe | None, ImageData, ImageData | None, int], nn.Module]
"""A copy of a trained model to change, the recipe (None: the user's own code trained), the training rows that were
used, the trusted rows (None: there are none) and a seed -> the purified model."""


@dataclasses.dataclass(frozen=True)
class Purified(Wrapper):
    """Fit, then change the weights of each model.

    `watch` sees the fit, not what comes after it; history and kept rows are those of the fit. What a recipe proves does
    not cover the change, so `guarantees` stays empty.
    """

    learner: Learner
    """Trains the models."""
    purify: Purification
    """Changes one model."""
    needs_trusted: bool = False
    """Whether to refuse a fit without trusted rows."""

    def __post_init__(self) -> None:
        if isinstance(self.learner, Voting):
            raise TypeError(
                "a purification changes the weights of one model per fit and cannot purify a vote as a whole; "
                "put the purification before partition-vote: each part is then purified on its own"
            )
        if isinstance(self.learner, Guarded):
            raise TypeError("a guard is calibrated on the final weights; put the purification before the guard")

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains and purifies.

        Raises:
            ValueError: If the purification needs trusted rows and there are none.
        """
        if self.needs_trusted and trusted is None:
            raise ValueError(
                "this purification works on clean rows, but none are held out for it; set trusted= of the trial, for "
                "example trusted=100"
            )
        fitted = self.learner.fit(datasets, seeds, trusted=trusted, watch=watch)
        models = [
            self.purify(copy.deepcopy(model), self.recipe, _used(data, kept), trusted, derive(seed, "purification"))
            for model, data, kept, seed in zip(fitted.models, datasets, fitted.kept, seeds, strict=True)
        ]
        ensemble = Ensemble([model.eval() for model in models])
        return fitted._replace(models=ensemble, predictor=predictor_of(ensemble), guarantees=())


def _used(data: ImageData, kept: Tensor | None) -> ImageData:
    return data if kept is None else data.select(kept)


# --- guards ----------------------------------------------------------------------------------------------------------

Rejection = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in [0, 1] -> [M, B] bool: which answers to refuse."""

Guard = Callable[[Predictor, ImageData, int], Rejection]
"""A predictor of M models, clean rows to calibrate on, and a seed -> what to refuse."""


@dataclasses.dataclass(frozen=True)
class Guarded(Wrapper):
    """Fit, then refuse to answer for images that a guard rejects.

    The guard is calibrated for each member on the trusted rows, or, where there are none, on the rows that the member
    was trained on. `watch` sees the fit without the guard; history and kept rows are those of the fit. A refusal
    depends on rows that no certificate counts, so `guarantees` stays empty and no radius is given.
    """

    learner: Learner
    """Trains the models."""
    guard: Guard
    """Says what to reject."""

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains, and calibrates a guard for each member."""
        fitted = self.learner.fit(datasets, seeds, trusted=trusted, watch=watch)
        guarded = []
        for member, (data, kept, seed) in enumerate(zip(datasets, fitted.kept, seeds, strict=True)):
            alone = self._alone(fitted, member, len(datasets))
            clean = _used(data, kept) if trusted is None else trusted
            guarded.append(_guarded(alone, self.guard(alone, clean, derive(seed, "guard"))))
        return fitted._replace(predictor=_side_by_side(guarded), guarantees=())

    def _alone(self, fitted: Fitted, member: int, members: int) -> Predictor:
        """The predictor of one member; of votes and guards inside, all members are asked, which only costs time."""
        if members == 1:
            return fitted.predictor
        if len(fitted.models) == members and not isinstance(self.learner, Guarded):
            return predictor_of(fitted.models[member : member + 1])

        def predict(images: Tensor) -> Prediction:
            scores, abstained, _ = fitted.predictor(images)
            return Prediction(scores[member : member + 1], abstained[member : member + 1], None)

        return predict


def _guarded(predictor: Predictor, rejected: Rejection) -> Predictor:
    def predict(images: Tensor) -> Prediction:
        answer = predictor(images)
        return Prediction(answer.scores, answer.abstained | rejected(images), None)

    return predict


def _side_by_side(predictors: Sequence[Predictor]) -> Predictor:
    def predict(images: Tensor) -> Prediction:
        answers = [predictor(images) for predictor in predictors]
        scores, abstained = (torch.cat(parts) for parts in zip(*(answer[:2] for answer in answers), strict=True))
        return Prediction(scores, abstained, None)

    return predict
