"""The training engine: a recipe says how a model is trained; everything is written for one model and one batch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.batch import Batch, BatchTransform, GradientRule, RowRule, Sampler
from mithridate.core.classifier import Classifier, Precision, is_bf16, load_weights, mean_and_std
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble, features
from mithridate.core.gradient_rules import Mean, trainable
from mithridate.core.guarantees import Guarantee
from mithridate.core.heads import fit_head
from mithridate.core.members import side_by_side
from mithridate.core.memory import in_chunks, out_of_memory
from mithridate.core.progress import track
from mithridate.core.sampling import Shuffled
from mithridate.core.schedules import Schedule, StepDecay
from mithridate.core.schema import Choice
from mithridate.core.seeds import derive, stream
from mithridate.core.transforms import Flip, Shift, transformed

EVALUATION_BATCH = 250
"""Images in one forward pass: on a CPU, 1,000 take up to 1.7 times as long, since what a layer leaves must stay in the
cache; the answers have the same bits."""


class Prediction(NamedTuple):
    """What M predictors say of B images."""

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
    """What training returns; M is the number of (data set, seed) pairs."""

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
    """Anything that trains one model per (data set, seed)."""

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


class Wrapper(Learner):
    """A learner around another one, whose recipe is that of the one inside."""

    learner: Learner
    """What is inside."""

    @property
    def recipe(self) -> Recipe | None:
        """The innermost recipe."""
        return self.learner.recipe

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
    normalize: Literal["data", "none"] = "data"
    """"data": subtract the mean and divide by the deviation of the training set, inside the model."""
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

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self

    def module(self, data: ImageData, seed: int) -> Classifier:
        """Builds the module that training starts from, on the data's device."""
        network = models.build(self.model, len(data.classes), data.shape, seed)
        normalize = models.Normalize(*mean_and_std(data)) if self.normalize == "data" else nn.Identity()
        module = Classifier(network, normalize, bf16=is_bf16(self.precision, data.device))
        if self.start_from is not None:
            load_weights(module, self.start_from, fresh_head=self.fresh_head or self.trainable == "head")
        return module.to(data.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

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
        """Trains one model after the other, or as `members_by` says; what one becomes does not depend on the others."""
        jobs = [(self, *pair) for pair in zip(datasets, seeds, strict=True)]
        trained = side_by_side(_trained, jobs, datasets) if watch is None else None  # who watches is in this process
        trained = self._in_turn(jobs, watch) if trained is None else trained
        losses = [one.losses for one in trained]
        return self.fitted([one.module for one in trained], {"loss": losses}, [one.kept for one in trained])

    def _in_turn(self, jobs: Sequence[_Job], watch: Watch | None) -> list[_Member]:
        trained: dict[int, _Member] = {}
        epochs = ((i, *each) for i, (_, data, seed) in enumerate(jobs) for each in enumerate(self.states(data, seed)))
        for i, epoch, state in track(epochs, "training", total=len(jobs) * max(1, self.epochs)):
            trained[i] = state.member()
            if watch is not None:
                watch(i, epoch, predictor_of(Ensemble([trained[i].module])))
        return list(trained.values())

    def fitted(self, modules: Sequence[nn.Module], history: dict[str, list], kept: list[Tensor | None]) -> Fitted:
        """Wraps trained modules."""
        ensemble = Ensemble([module.eval() for module in modules])
        return Fitted(ensemble, predictor_of(ensemble), history, kept)

    def _solves_head(self) -> bool:
        return self.trainable == "head" and not self.transforms and isinstance(self.gradient, Mean)


class _Member(NamedTuple):
    """One trained model."""

    module: nn.Module
    losses: list[float]
    kept: Tensor | None
    """Row ids left by a row rule; None: there is none."""


_Job = tuple[Recipe, ImageData, int]


def _trained(job: _Job) -> _Member:
    """Trains one member, in this process or another."""
    recipe, data, seed = job
    *_, state = recipe.states(data, seed)
    return state.member()


class TrainingState:
    """One model in training: module, optimiser, and the random streams of this member alone."""

    def __init__(self, recipe: Recipe, data: ImageData, seed: int) -> None:
        self.recipe, self.data = recipe, data
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Forgets everything and starts again from a seed."""
        self.seed, self.epoch, self.steps, self.losses = seed, 0, 0, []
        self._before = 0  # steps of the epochs that are over
        self.rows = self.data.ids
        self.module = self.recipe.module(self.data, seed)
        if self.recipe.trainable == "head":
            self.module.requires_grad_(False)
            models.last_linear(self.module).requires_grad_(True)
        self._random = {name: stream(seed, name) for name in ("batches", "transforms", "gradient", "rows")}
        recipe = self.recipe
        self._trained = trainable(self.module)
        self.optimizer = torch.optim.SGD(
            list(self._trained.values()),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            foreach=True,
        )

    @property
    def progress(self) -> float:
        """Share of the training done, 0..1."""
        per_epoch = self.recipe.sampler.batches(len(self.rows), self.recipe.batch_size)
        done = self.epoch * per_epoch + self.steps - self._before  # as if all epochs had been as long as this one
        return done / max(1, per_epoch * self.recipe.epochs)

    def batches(self) -> Iterator[Batch]:
        """Yields the untransformed batches of one epoch."""
        classes = torch.arange(len(self.data.classes), device=self.data.device)
        for rows in self.recipe.sampler(self.rows, self.recipe.batch_size, self._random["batches"]):
            targets = (self.data.labels_of(rows)[:, None] == classes).float()  # one_hot looks at the values and waits
            yield Batch(self.data.floats(rows), targets, rows, self.progress)

    def advance(self, batch: Batch) -> Tensor:
        """Transforms a batch and takes one step; returns the mean loss []."""
        recipe, random = self.recipe, self._random
        self.module.train(recipe.trainable == "all")
        with _random_state(self.data.device, derive(self.seed, "dropout", self.steps)):
            batch = transformed(batch, recipe.transforms, self.module, random["transforms"])
            gradients, loss = recipe.gradient(self.module, batch, random["gradient"])
        for name, parameter in self._trained.items():
            parameter.grad = gradients[name]
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.schedule(batch.progress)
        self.optimizer.step()
        self.steps += 1
        return loss

    def run_epoch(self) -> None:
        """Trains for one epoch; a row rule then drops rows for the epochs to come.

        Raises:
            MemoryError: one batch does not fit into memory.
        """
        try:
            # Summed, not collected: small tensors kept between the large ones that each step frees hold their pages.
            total = torch.zeros((), dtype=torch.float64, device=self.data.device)
            for batch in self.batches():
                total += self.advance(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = self.recipe.batch_size  # smaller pieces of a batch would have other BatchNorm statistics
            raise MemoryError(f"out of memory in training with batch_size {size}; use a smaller one") from error
        self.losses.append(float(total) / (self.steps - self._before))
        self.epoch, self._before = self.epoch + 1, self.steps
        if not self.losses[-1] < float("inf"):
            warnings.warn(
                f"training diverged in epoch {self.epoch} (loss {self.losses[-1]}); lower learning_rate "
                f"from {self.recipe.learning_rate}",
                stacklevel=2,
            )
        rule, share = self.recipe.row_rule, self.epoch / max(1, self.recipe.epochs)
        if rule is not None and share < 1:
            self.rows = rule(share, self.module, self.data.select(self.rows), self._random["rows"])

    def member(self) -> _Member:
        """Returns what training has come to, the module in eval mode."""
        return _Member(self.module.eval(), self.losses, self.rows if self.recipe.row_rule else None)

    def solve_head(self) -> None:
        """Trains a fresh last Linear on the frozen features, to convergence."""
        with torch.no_grad():
            found = in_chunks(
                lambda rows: features(self.module, self.data.floats(rows)), self.data.ids, EVALUATION_BATCH
            )
        targets = F.one_hot(self.data.labels_of(self.data.ids), len(self.data.classes))
        head = models.last_linear(self.module)
        solved, loss = fit_head(found, targets, head, self.recipe.weight_decay)
        head.load_state_dict(solved.state_dict())
        self.epoch, self.losses = self.recipe.epochs, [loss]


@contextmanager
def _random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's global generators, which dropout and the like draw from, for one step; the old state comes back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
