"""Poison judged by the training steps that see it: the meta-loss, and the models in training that it is taken of.

`mithridate.poisoning.attacks.metapoison` is the attack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mithridate.core.balls import to_bytes
from mithridate.core.batch import Batch, BatchTransform, batch_of
from mithridate.core.batchnorm import twice_differentiable
from mithridate.core.classifier import training_in
from mithridate.core.ensemble import in_mode
from mithridate.core.losses import carlini_wagner
from mithridate.core.seeds import seeded, stream
from mithridate.core.states import Stage, TrainingState, run_seed
from mithridate.core.training import Recipe
from mithridate.core.transforms import transformed
from mithridate.core.unrolled import sgd_step, weights_of
from mithridate.poisoning.task import Task

if TYPE_CHECKING:
    from mithridate.poisoning.attacks.metapoison import MetaPoison


class MetaLoss:
    """What all surrogates of a task share: the meta-loss of one poisoned batch, and its gradient."""

    def __init__(self, attack: MetaPoison, task: Task, recipe: Recipe, rows: Tensor) -> None:
        self.attack, self.train, self.rows = attack, task.train, rows
        self.targets, self.intended = task.targets, task.intended
        self.clean = task.train.drop(rows).ids if len(rows) < len(task.train) else task.train.ids
        self.size, self.whole = recipe.batch_size, recipe.trainable == "all"
        self.transforms: Sequence[BatchTransform] = recipe.transforms if attack.augment else ()

    def batch(self, rows: Tensor) -> Batch:
        """A clean batch of these rows."""
        return batch_of(self.train, rows, 1.0)

    def clean_batches(self, sizes: Sequence[int], rng: torch.Generator) -> list[Batch]:
        """Batches of rows that are no poison, all different where there are enough."""
        wanted = torch.cat(
            [torch.randperm(len(self.clean), generator=rng) for _ in range(-(-sum(sizes) // len(self.clean)))]
        )
        chosen = self.clean[wanted[: sum(sizes)].to(self.clean.device)]
        return [self.batch(rows) for rows in chosen.split(list(sizes))]

    def __call__(
        self, stage: Stage, poisoned: Batch, leaf: Tensor, later: Sequence[Batch], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the meta-loss [] and its gradient with respect to the leaf, which is part of the poisoned batch."""
        module, device = stage.module, leaf.device
        precision = training_in(self.attack.precision, module, device)
        dropout = seeded(device, int(torch.randint(2**62, (1,), generator=rng)))
        mode, norms = in_mode(module, train=self.whole), twice_differentiable(module)
        with precision, dropout, mode, norms, torch.enable_grad():
            loss = unrolled_loss(
                module,
                [transformed(batch, self.transforms, module, rng) for batch in (poisoned, *later)],
                self.targets,
                self.intended,
                stage.rate if self.attack.inner_rate is None else self.attack.inner_rate,
                self.attack.kappa,
            )
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient


def unrolled_loss(
    module: nn.Module, batches: Sequence[Batch], targets: Tensor, intended: Tensor, rate: float, kappa: float
) -> Tensor:
    """Returns the mean Carlini-Wagner loss [] of the targets after each of K steps of SGD, in a graph with the images.

    Step i trains on batch i; the loss after it is that of targets which share a forward pass, and so the BatchNorm
    statistics, with batch i + 1. Nothing is computed that the loss does not need: the last batch trains nothing.

    Args:
        module: in train mode for batch statistics.
        batches: K + 1 of them; the last one only gives the targets their company.
        targets: [T, C, H, W].
        intended: [T] int64.
        rate: learning rate of the steps.
        kappa: margin that is wide enough.
    """
    weights, losses = weights_of(module), []
    for number, batch in enumerate(batches):
        logits = functional_call(module, weights, (torch.cat([batch.images, targets.to(batch.images)]),))
        here, there = logits.split([len(batch.images), len(targets)])
        if number:
            losses.append(carlini_wagner(there, intended, kappa).mean())
        if number < len(batches) - 1:
            weights = sgd_step(weights, F.cross_entropy(here, batch.targets.to(here.dtype)), rate)
    return torch.stack(losses).mean()


# --- surrogates ------------------------------------------------------------------------------------------------------


class Surrogate(ABC):
    """One model on its way through training; called with the poisons' pixels, it says how to change them."""

    def __init__(self, meta: MetaLoss, number: int) -> None:
        self.meta, self.number = meta, number

    @abstractmethod
    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the mean meta-loss [] over the batches that hold poisons, and its gradient like the images."""

    @abstractmethod
    def move_on(self, images: Tensor) -> None:
        """Trains for one epoch; `images` are the poisons' pixels as they are now."""

    def draws(self, rng: torch.Generator) -> torch.Generator:
        """A stream of this surrogate's own."""
        return stream(int(torch.randint(2**62, (1,), generator=rng)), "surrogate", self.number)


class Packed(Surrogate):
    """Poisons come together, at most half a batch of them, the rest of the batch and the later batches clean."""

    @abstractmethod
    def stage(self) -> Stage:
        """Returns the model as it stands."""

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        meta, rng = self.meta, self.draws(rng)
        order = torch.randperm(len(images), generator=rng).to(images.device)
        parts = order.tensor_split(-(-len(images) // max(1, meta.size // 2)))
        values, gradient = [], torch.zeros_like(images)
        for part in parts:
            beside, *later = meta.clean_batches(
                [max(0, meta.size - len(part)), *[meta.size] * meta.attack.inner_steps], rng
            )
            leaf, own = images[part].detach().requires_grad_(), meta.batch(meta.rows[part])
            together = Batch(
                torch.cat([leaf, beside.images]),
                torch.cat([own.targets, beside.targets]),
                torch.cat([own.rows, beside.rows]),
                1.0,
            )
            value, slope = meta(self.stage(), together, leaf, later, rng)
            values.append(value)
            gradient[part] = slope / len(parts)
        return torch.stack(values).mean(), gradient


class Following(Packed):
    """Follows a clean training, which does not depend on the poison and so may be shared."""

    def __init__(self, meta: MetaLoss, number: int, course: Iterator[Stage]) -> None:
        super().__init__(meta, number)
        self.course, self.now = course, next(course)

    def stage(self) -> Stage:
        return self.now

    def move_on(self, images: Tensor) -> None:
        self.now = next(self.course)


class Trained(Surrogate):
    """Has a training of its own; begins again where that is over."""

    def __init__(self, meta: MetaLoss, number: int, state: TrainingState) -> None:
        super().__init__(meta, number)
        self.state, self.seed, self.run = state, state.seed, 0

    def begin_epoch(self, images: Tensor) -> None:
        """Starts over where training is through, and puts in the data that the trajectory is about."""
        meta, state = self.meta, self.state
        if state.epoch >= state.recipe.epochs:
            self.run += 1
            state.restart(run_seed(self.seed, self.run))
        poison = meta.attack.trajectory == "poison"
        state.data = meta.train.replace(meta.rows, to_bytes(images)) if poison else meta.train


class PackedTraining(Trained, Packed):
    """Trains on the poison as it is."""

    def stage(self) -> Stage:
        return Stage(self.state.module, self.state.rate)

    def move_on(self, images: Tensor) -> None:
        self.begin_epoch(images)
        self.state.run_epoch()


class AsDrawn(Trained):
    """The paper's loop: an epoch of training, and before each of its steps the meta-loss of the batches to come."""

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = self.draws(rng)
        self.begin_epoch(images)
        values: list[Tensor] = []
        gradient = torch.zeros_like(images)
        self.state.run_epoch(self._watched(images, gradient, values, rng))
        count = max(1, len(values))
        return torch.stack(values or [gradient.sum()]).sum() / count, gradient / count

    def move_on(self, images: Tensor) -> None:
        """Nothing: each call is an epoch."""

    def _watched(self, images: Tensor, gradient: Tensor, values: list[Tensor], rng: torch.Generator) -> Iterator[Batch]:
        """Yields the epoch's batches; before each, differentiates it and the next K where it holds poisons."""
        waiting: deque[Batch] = deque()
        for batch in self.state.batches():
            waiting.append(batch)
            if len(waiting) > self.meta.attack.inner_steps:
                self._differentiate(waiting, images, gradient, values, rng)
                yield waiting.popleft()._replace(progress=self.state.progress)
        for batch in waiting:  # too few are left to unroll: these poisons wait for the next epoch
            yield batch._replace(progress=self.state.progress)

    def _differentiate(
        self, waiting: Sequence[Batch], images: Tensor, gradient: Tensor, values: list[Tensor], rng: torch.Generator
    ) -> None:
        meta = self.meta
        place = torch.searchsorted(meta.rows, waiting[0].rows).clamp_max(len(meta.rows) - 1)
        poisoned = (meta.rows[place] == waiting[0].rows)[:, None, None, None]
        if not bool(poisoned.any()):
            return
        first, *later = [meta.batch(batch.rows) for batch in waiting]
        leaf = images.detach().requires_grad_()
        mixed = torch.where(poisoned, leaf[place], first.images)
        value, slope = meta(Stage(self.state.module, self.state.rate), first._replace(images=mixed), leaf, later, rng)
        values.append(value)
        gradient += slope


def move_on(crew: Sequence[Surrogate], images: Tensor) -> None:
    """Lets every surrogate train for one epoch."""
    for member in crew:
        member.move_on(images)
