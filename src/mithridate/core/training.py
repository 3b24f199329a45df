"""The training engine: a recipe says how a model is trained; everything is written for one model and one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core import models
from mithridate.core.batch import BatchTransform, GradientRule, RowRule, Sampler
from mithridate.core.classifier import Classifier, Precision, is_bf16, load_weights, mean_and_std
from mithridate.core.data import ImageData
from mithridate.core.data_parallel import divisible
from mithridate.core.devices import Devices, chosen_devices
from mithridate.core.ensemble import Ensemble
from mithridate.core.gradient_rules import Mean
from mithridate.core.guarantees import Guarantee, weakest
from mithridate.core.members import side_by_side
from mithridate.core.progress import track
from mithridate.core.sampling import Shuffled
from mithridate.core.schedules import Schedule, StepDecay
from mithridate.core.schema import Choice, name_of
from mithridate.core.states import Member, Stage, TrainingState, stages
from mithridate.core.transforms import Flip, Shift


class Prediction(NamedTuple):
    """What M predictors say of B images.

    >>> from mithridate import Digits
    >>> train, test = Digits(train=100).load()
    >>> said = Recipe(model="mlp", epochs=1).fit([train], seeds=[0]).predictor(test.floats(test.ids[:5]))
    >>> said.scores.shape, bool(said.abstained.any()), said.radius
    (torch.Size([1, 5, 10]), False, None)
    """

    scores: Tensor
    """[M, B, K]: logits, votes or probabilities; the largest wins."""
    abstained: Tensor
    """[M, B] bool: the predictor refused to answer."""
    radius: Tensor | None
    """[M, B] int64: how many rows may be inserted or deleted without changing the answer; None: no certificate."""


Predictor = Callable[[Tensor], Prediction]
"""Images [B, C, H, W] in [0, 1] -> Prediction."""

Watch = Callable[[int, int, Predictor], None]
"""Called after each epoch (once for a head that is solved at once) with the member, the epoch and a predictor of it."""


class Fitted(NamedTuple):
    """What training returns; M is the number of (data set, seed) pairs.

    >>> from mithridate import Digits
    >>> train, test = Digits(train=100).load()
    >>> fitted = Recipe(model="mlp", epochs=2).fit([train, train], seeds=[0, 1])
    >>> len(fitted.models), len(fitted.history["loss"][0]), fitted.kept
    (2, 2, [None, None])
    """

    models: Ensemble
    """Trained modules in eval mode (a vote holds M x parts of them)."""
    predictor: Predictor
    """Answers for all M at once."""
    history: dict[str, list]
    """Per member: ``loss``, the mean training loss of each epoch."""
    kept: list[Tensor | None]
    """Per member the row ids that the final fit used; None: all of them."""
    guarantees: tuple[Guarantee, ...] = ()
    """What the whole procedure proves."""


class Learner(Choice, ABC):
    """Anything that trains one model per (data set, seed).

    >>> from mithridate import Digits
    >>> train, _ = Digits(train=100).load()
    >>> learner = Recipe(model="mlp", epochs=1)
    >>> isinstance(learner, Learner), len(learner.fit([train], seeds=[0]).models)
    (True, 1)
    """

    home: ClassVar[str] = "mithridate.core.learners"  # which imports this module

    @property
    @abstractmethod
    def recipe(self) -> Recipe | None:
        """The innermost recipe; None where the user's own code trains."""

    @abstractmethod
    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains one model for each data set and seed; sees neither test data nor targets nor what is poisoned."""

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins one training for each data set and seed; the caller advances them.

        Raises:
            TypeError: The learner trains with code of its own, which nobody else can advance.
        """
        raise TypeError(
            f"{name_of(self)} trains with code of its own, so nobody can follow its training step by step; give a "
            "Recipe as learner or as surrogate"
        )

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Follows one training for each data set and seed from epoch to epoch, then again from new weights, endlessly.

        Raises:
            TypeError: As `begin`.
        """
        return [stages(state) for state in self.begin(datasets, seeds)]


class Wrapper(Learner):
    """A learner around another one, whose recipe is that of the one inside."""

    learner: Learner
    """What is inside."""

    @property
    def recipe(self) -> Recipe | None:
        """The innermost recipe."""
        return self.learner.recipe

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins trainings of what is inside: a wrapper comes after training, and a vote or a filter is no model."""
        return self.learner.begin(datasets, seeds)

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Follows trainings of what is inside."""
        return self.learner.follow(datasets, seeds)

    @property
    def innermost(self) -> Learner:
        """The learner inside all wrappers."""
        return self.learner.innermost if isinstance(self.learner, Wrapper) else self.learner


def predictor_of(models: Ensemble) -> Predictor:
    """Returns the plain predictor of an ensemble: logits, never abstaining, no certificate.

    >>> predictor_of(Ensemble([nn.Flatten()]))(torch.zeros(2, 1, 1, 3)).abstained.tolist()
    [[False, False]]
    """

    def predict(images: Tensor) -> Prediction:
        with torch.no_grad():
            scores = models.logits(images)
        return Prediction(scores, torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device), None)

    return predict


@dataclass(frozen=True, kw_only=True)
class Recipe(Learner):
    """How a model is trained: SGD from scratch, fine-tuning, or a new head on frozen features.

    >>> Recipe(model="convnet", epochs=2).batch_size
    128
    """

    model: str | Callable[[int], nn.Module] = "convnet"
    """Built-in name, "package.module:function", or a function from the number of classes to a module."""
    normalize: Literal["data", "fixed", "none"] = "data"
    """"data": subtract the mean and divide by the deviation of the training set, inside the model; "fixed": 0.5 and
    0.25 whatever the data, which then give nothing away by it."""
    epochs: int = 40
    """Passes over the training set."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 0.1
    """Largest learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all trained parameters."""
    schedule: Schedule = StepDecay()
    """How the learning rate changes over training."""
    precision: Precision = "auto"
    """Number format of training; auto: bf16 where the machine computes it faster."""
    sampler: Sampler = Shuffled()
    """How batches are drawn."""
    transforms: tuple[BatchTransform, ...] = (Flip(), Shift())
    """What happens to each batch before the step, in this order."""
    gradient: GradientRule = Mean()
    """How a step gets its gradient."""
    row_rule: RowRule | None = None
    """Drops rows between epochs."""
    start_from: Path | None = None
    """Safetensors weights to start from instead of a random network."""
    trainable: Literal["all", "head"] = "all"
    """"head": the body stays frozen in eval mode and a fresh last Linear is trained (to convergence where nothing
    is drawn at random, that is without transforms and with the plain mean gradient)."""
    fresh_head: bool = False
    """Begin with a new last Linear, for weights that were trained on other classes; trainable="head" always does."""

    def __post_init__(self) -> None:
        for name, least in {"epochs": 0, "batch_size": 1, "learning_rate": 0, "weight_decay": 0, "momentum": 0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.trainable == "head" and self.start_from is None:
            raise ValueError("trainable='head' freezes the body, so start_from must name the weights of a trained one")
        if self.fresh_head and self.start_from is None:
            raise ValueError("fresh_head replaces the last Linear of given weights, but start_from names none; set it")
        self.gradient.check(self)

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self

    def module(self, data: ImageData, seed: int) -> Classifier:
        """Builds the module that training starts from, on the data's device."""
        network = models.build(self.model, len(data.classes), data.shape, seed)
        module = Classifier(network, self._normalization(data), bf16=is_bf16(self.precision, data.device))
        if self.start_from is not None:
            load_weights(module, self.start_from, fresh_head=self.fresh_head or self.trainable == "head")
        module = module.to(data.device)
        if models.takes_channels_last(network):
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return module

    def _normalization(self, data: ImageData) -> nn.Module:
        if self.normalize == "none":
            return nn.Identity()
        fixed = [0.5] * data.shape[0], [0.25] * data.shape[0]
        return models.Normalize(*(fixed if self.normalize == "fixed" else mean_and_std(data)))

    def guarantees(self, datasets: Sequence[ImageData]) -> tuple[Guarantee, ...]:
        """Returns what training on each of these data sets proves; of different numbers the weakest.

        Raises:
            MissingExtra: The package that computes a number cannot be imported.
        """
        found = [
            weakest(claim.guarantee(self, data) for data in datasets) for claim in (self.gradient, *self.transforms)
        ]
        return tuple(guarantee for guarantee in found if guarantee is not None)

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins one training for each data set and seed."""
        return [self.start(data, seed) for data, seed in zip(datasets, seeds, strict=True)]

    def start(self, data: ImageData, seed: int) -> TrainingState:
        """Begins training; the caller advances it."""
        return TrainingState(self, data, seed)

    def states(self, data: ImageData, seed: int) -> Iterator[TrainingState]:
        """Trains, yielding the state after each epoch (once where a head is solved at once, or no epoch is to run)."""
        state = self.start(data, seed)
        if self._solves_head():
            state.solve_head()
            yield state
            return
        for _ in range(self.epochs):
            state.run_epoch()
            yield state
        if not self.epochs:
            yield state

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains one model after the other, or as `members_by` says, or each as `on_devices` says.

        What one becomes does not depend on the others.

        Raises:
            TypeError: With `on_devices`, for a recipe that several devices cannot share out.
        """
        jobs = [(self, *pair) for pair in zip(datasets, seeds, strict=True)]
        guarantees = self.guarantees(datasets)  # first: if a package is missing for them, nothing has been trained
        devices = None if self._solves_head() else chosen_devices()
        if devices is not None:
            trained = self._shared_out(devices, jobs, watch)
        else:
            trained = side_by_side(_trained, jobs, datasets) if watch is None else None  # who watches is here
            trained = self._in_turn(jobs, watch) if trained is None else trained
        losses = [one.losses for one in trained]
        fitted = self.fitted([one.module for one in trained], {"loss": losses}, [one.kept for one in trained])
        return fitted._replace(guarantees=guarantees)

    def _in_turn(self, jobs: Sequence[_Job], watch: Watch | None) -> list[Member]:
        trained: list[Member] = []
        state: TrainingState | None = None
        epochs = ((i, *each) for i, (_, data, seed) in enumerate(jobs) for each in enumerate(self.states(data, seed)))
        for i, epoch, now in track(epochs, "training", total=len(jobs) * max(1, self.epochs)):
            if state is not None and state is not now:
                trained.append(state.member())  # at its end, not after each epoch: to read its losses is to wait
            state = now
            if watch is not None:
                watch(i, epoch, predictor_of(Ensemble([state.module.eval()])))
        return trained if state is None else [*trained, state.member()]

    def _shared_out(self, devices: Devices, jobs: Sequence[_Job], watch: Watch | None) -> list[Member]:
        divisible(self.gradient)
        trained: list[Member] = []
        watched = watch is not None
        told = ((i, one) for i, job in enumerate(jobs) for one in devices.train(*job, watched=watched))
        for i, one in track(told, "training", total=len(jobs) * (1 + max(1, self.epochs))):
            if isinstance(one, Member):
                trained.append(one)
            elif watch is not None and one.module is not None:
                watch(i, one.number, predictor_of(Ensemble([one.module.to(jobs[i][1].device)])))
        return trained

    def fitted(self, modules: Sequence[nn.Module], history: dict[str, list], kept: list[Tensor | None]) -> Fitted:
        """Wraps trained modules."""
        ensemble = Ensemble([module.eval() for module in modules])
        return Fitted(ensemble, predictor_of(ensemble), history, kept)

    def _solves_head(self) -> bool:
        plain = not self.transforms and self.row_rule is None and isinstance(self.gradient, Mean)
        return self.trainable == "head" and plain


_Job = tuple[Recipe, ImageData, int]


def _trained(job: _Job) -> Member:
    """Trains one member, in this process or another."""
    recipe, data, seed = job
    *_, state = recipe.states(data, seed)
    return state.member()
