"""One model in training, step by step and epoch by epoch: module, optimiser, random streams of its own."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.batch import Batch, batch_of
from mithridate.core.data import ImageData
from mithridate.core.data_parallel import agreed, shared_out
from mithridate.core.ensemble import features
from mithridate.core.gradient_rules import trainable
from mithridate.core.heads import fit_head
from mithridate.core.memory import in_chunks, out_of_memory
from mithridate.core.seeds import derive, seeded, stream
from mithridate.core.transforms import transformed

if TYPE_CHECKING:
    from mithridate.core.training import Recipe

EVALUATION_BATCH = 250
"""Images in one forward pass: on a CPU, 1,000 take up to 1.7 times as long, since what a layer leaves must stay in the
cache; the answers have the same bits."""


class Member(NamedTuple):
    """One trained model."""

    module: nn.Module
    losses: list[float]
    kept: Tensor | None
    """Row ids left by a row rule; None: there is none."""


class Stage(NamedTuple):
    """A model at the start of an epoch of its training."""

    module: nn.Module
    """Changes when the next stage is asked for."""
    rate: float
    """Its learning rate then."""


class TrainingState:
    """One model in training: module, optimiser, and the random streams of this member alone."""

    def __init__(self, recipe: Recipe, data: ImageData, seed: int) -> None:
        self.recipe, self.data = recipe, data
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Forgets everything and starts again from a seed."""
        self.seed, self.epoch, self.steps = seed, 0, 0
        self._losses: list[Tensor] = []  # read at the end: a step waits for nothing, and neither does an epoch
        self._before = 0  # steps of the epochs that are over
        self.rows = self.data.ids
        self.module = self.recipe.module(self.data, seed)
        if self.recipe.trainable == "head":
            self.module.requires_grad_(False)
            models.last_linear(self.module).requires_grad_(True)
        self._random = {name: stream(seed, name) for name in ("batches", "transforms", "gradient", "rows")}
        recipe = self.recipe
        self._gradient = shared_out(recipe.gradient)
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
    def losses(self) -> list[float]:
        """Mean training loss of each epoch so far; reading them waits for the device."""
        return [float(loss) for loss in self._losses]

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.recipe.learning_rate * self.recipe.schedule(self.progress)

    @property
    def progress(self) -> float:
        """Share of the training done, 0..1."""
        per_epoch = self.recipe.sampler.batches(len(self.rows), self.recipe.batch_size)
        done = self.epoch * per_epoch + self.steps - self._before  # as if all epochs had been as long as this one
        return done / max(1, per_epoch * self.recipe.epochs)

    def batches(self) -> Iterator[Batch]:
        """Yields the untransformed batches of one epoch."""
        for rows in self.recipe.sampler(self.rows, self.recipe.batch_size, self._random["batches"]):
            yield batch_of(self.data, rows, self.progress)

    def advance(self, batch: Batch) -> Tensor:
        """Transforms a batch and takes one step; returns the mean loss []."""
        recipe, random = self.recipe, self._random
        self.module.train(recipe.trainable == "all")
        with seeded(self.data.device, derive(self.seed, "dropout", self.steps)):
            batch = transformed(batch, recipe.transforms, self.module, random["transforms"])
            gradients, loss = self._gradient(self.module, batch, random["gradient"])
        for name, parameter in self._trained.items():
            parameter.grad = gradients[name]
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.schedule(batch.progress)
        self.optimizer.step()
        self.steps += 1
        return loss

    def run_epoch(self, batches: Iterable[Batch] | None = None) -> None:
        """Trains for one epoch; a row rule then drops rows for the epochs to come.

        Args:
            batches: those of the epoch, from `batches`, for a caller who looks at the model between them.

        Raises:
            MemoryError: one batch does not fit into memory.
        """
        try:
            # Summed, not collected: small tensors kept between the large ones that each step frees hold their pages.
            total = torch.zeros((), dtype=torch.float64, device=self.data.device)
            for batch in self.batches() if batches is None else batches:
                total += self.advance(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = self.recipe.batch_size  # smaller pieces of a batch would have other BatchNorm statistics
            raise MemoryError(f"out of memory in training with batch_size {size}; use a smaller one") from error
        self._losses.append(total / (self.steps - self._before))
        self.epoch, self._before = self.epoch + 1, self.steps
        rule, share = self.recipe.row_rule, self.epoch / max(1, self.recipe.epochs)
        if rule is not None and share < 1:
            self.rows = agreed(rule(share, self.module, self.data.select(self.rows), self._random["rows"]))

    def member(self) -> Member:
        """Returns what training has come to, the module in eval mode; warns where the loss left the numbers."""
        losses = self.losses
        if diverged := [epoch for epoch, loss in enumerate(losses, start=1) if not loss < float("inf")]:
            warnings.warn(
                f"training diverged in epoch {diverged[0]} (loss {losses[diverged[0] - 1]}); lower learning_rate "
                f"from {self.recipe.learning_rate}",
                stacklevel=2,
            )
        return Member(self.module.eval(), losses, self.rows if self.recipe.row_rule else None)

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
        self.epoch, self._losses = self.recipe.epochs, [torch.tensor(loss, dtype=torch.float64)]


def run_seed(seed: int, run: int) -> int:
    """Returns the seed of a training that is followed for the `run`-th time (0: the seed itself)."""
    return derive(seed, "run", run) if run else seed


def stages(state: TrainingState) -> Iterator[Stage]:
    """Runs a training from epoch to epoch, then again from new weights, endlessly."""
    seed = state.seed
    for run in itertools.count():
        if run:
            state.restart(run_seed(seed, run))
        for _ in range(max(1, state.recipe.epochs)):
            yield Stage(state.module, state.rate)
            state.run_epoch()
