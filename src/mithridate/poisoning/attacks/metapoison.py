"""MetaPoison: poisons found by differentiating through the training steps that see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mithridate.core.balls import Ball, Linf, to_bytes, to_floats
from mithridate.core.batch import Batch, BatchTransform, batch_of
from mithridate.core.batchnorm import twice_differentiable
from mithridate.core.classifier import Precision, training_in
from mithridate.core.ensemble import in_mode
from mithridate.core.losses import carlini_wagner
from mithridate.core.perturbation import average, minimise
from mithridate.core.progress import track
from mithridate.core.recolor import Recolor
from mithridate.core.seeds import seeded, stream
from mithridate.core.states import Stage, TrainingState, run_seed
from mithridate.core.training import Learner, Recipe
from mithridate.core.transforms import transformed
from mithridate.core.unrolled import sgd_step, weights_of
from mithridate.core.updates import Adam
from mithridate.poisoning.attack import Attack, expect_goal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel


@dataclass(frozen=True, kw_only=True)
class MetaPoison(Attack):
    """Choose the poison by what a few training steps on it do to the target: bilevel optimisation, unrolled.

    One batch holds poisons; the model takes a step on it and more steps on clean batches, and the target's loss after
    each of these is differentiated through the steps down to the poison's pixels. The target shares the BatchNorm
    statistics of every batch. Surrogates are spread over the epochs of a clean training, move on by an epoch between
    crafting steps, and start again from new weights when they are through, so that the poison works at every stage of
    training and for any initialisation. Poisons keep their labels, whatever classes the threat model allows.

    Reference: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison: Practical General-purpose Clean-label Data
    Poisoning". NeurIPS 2020. arXiv 2004.00225, Algorithm 1. Deviations: poisons are packed into few batches, half of
    each clean, once per epoch (``batches="as-drawn"`` is the paper's loop); the victim's augmentation is crafted
    through; surrogates cover all epochs of the recipe, not the first few; 8 surrogates unless asked for their 24.

    Raises:
        ValueError: a number of steps or surrogates that is not positive, or a watermark that is no opacity.

    >>> MetaPoison(surrogates=24, batches="as-drawn").inner_steps
    2
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.01, ball=Recolor(eps=0.04) + Linf(eps=8 / 255), goal=Misclassify()
    )

    steps: int = 60
    """Adam steps on the pixels; surrogates move on by one epoch at each."""
    surrogates: int = 8
    """Models in training, spread evenly over its epochs; their meta-losses are averaged."""
    inner_steps: int = 2
    """Training steps that are differentiated through; the poison enters the first (K in the paper)."""
    inner_rate: float | None = None
    """Learning rate of these steps; None: each surrogate's own at its epoch. With a rate for all, what surrogates say
    late in training, when the recipe's rate has fallen, counts as much as what they say early."""
    lr: float = 200 / 255
    """Step in pixels of [0, 1], so large that poisons jump between the bounds at first; falls by 10 at 1/3 and 2/3."""
    batches: Literal["packed", "as-drawn"] = "packed"
    """packed: poisons come together, half a batch or less of them; as-drawn: they come as training draws them, a
    surrogate takes a training step after each batch, and every batch with a poison in it is differentiated."""
    trajectory: Literal["clean", "poison"] = "clean"
    """What surrogates train on between the steps; what trains on clean data is shared by all targets of a study."""
    augment: bool = True
    """Whether batches go through the victim's augmentation while poison is crafted."""
    watermark: float = 0.0
    """Opacity with which the target is blended into each base before the search, 0..1."""
    search: Ball | None = None
    """What the search moves in, around the base or the blend; None: the threat model's ball. Where the threat model
    allows any image, linf(eps=8/255) around a watermark is the paper's form for fine-tuning."""
    kappa: float = 100.0
    """Margin of the target, in logits, that is wide enough."""
    precision: Precision = "auto"
    """Number format of the unrolled steps; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        for name in ("surrogates", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark}; it is an opacity, so use 0.3 for 30 %")

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the note ``meta_loss`` is that of the 8-bit pixels on the last surrogates.

        Raises:
            TypeError: the goal is not to misclassify given targets, or nobody can follow the learner's training.
        """
        expect_goal(self, task, Misclassify)
        rows = task.choose(seed)
        base = task.images(rows)
        turn = torch.arange(len(rows), device=base.device) % len(task.targets)
        start = (1 - self.watermark) * base + self.watermark * task.targets[turn]
        ball = task.ball
        if self.search is not None:
            start, ball = to_floats(to_bytes(start)), self.search
        crew = self._crew(task, surrogate, rows)
        found = minimise(
            average(crew),
            start if self.search is not None else base,
            ball,
            steps=self.steps,
            update=Adam(lr=self.lr, decay=True, drops=(1 / 3, 2 / 3)),
            init=start if self.search is None and self.watermark else None,
            between=lambda step, images: _move_on(crew, images) if step else None,
            label="metapoison",
            rng=stream(seed, "craft"),
        )
        images = found.images
        if self.search is not None:
            allowed = task.ball.images(base, task.ball.params_of(base, to_floats(images)))
            images = task.ball.rounded(base, allowed)
        return Poison(rows, images, notes={"meta_loss": float(found.value)})

    def _crew(self, task: Task, surrogate: Learner, rows: Tensor) -> list[_Surrogate]:
        """The surrogates, each at its own age."""
        data, seeds = [task.train] * self.surrogates, list(range(self.surrogates))
        recipe = surrogate.recipe
        if recipe is None:
            raise TypeError(
                "metapoison differentiates through training steps, but this learner trains with code of its own; give "
                "a Recipe as learner or as surrogate"
            )
        meta = _Meta(self, task, recipe, rows)
        ages = [number * recipe.epochs // self.surrogates for number in range(self.surrogates)]
        if self.batches == "packed" and self.trajectory == "clean":
            courses = surrogate.follow(data, seeds)
            aged = track(zip(courses, ages, strict=True), "training surrogates", total=len(ages))
            return [_Clean(meta, number, islice(course, age, None)) for number, (course, age) in enumerate(aged)]
        kind = _AsDrawn if self.batches == "as-drawn" else _Poisoned
        states = surrogate.begin(data, seeds)
        for state, age in track(zip(states, ages, strict=True), "training surrogates", total=len(ages)):
            for _ in range(min(age, state.recipe.epochs)):
                state.run_epoch()
        return [kind(meta, number, state) for number, state in enumerate(states)]


class _Meta:
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


class _Surrogate(ABC):
    """One model on its way through training; called with the poisons' pixels, it says how to change them."""

    def __init__(self, meta: _Meta, number: int) -> None:
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


class _Packed(_Surrogate):
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


class _Clean(_Packed):
    """Follows a clean training, which does not depend on the poison and so may be shared."""

    def __init__(self, meta: _Meta, number: int, course: Iterator[Stage]) -> None:
        super().__init__(meta, number)
        self.course, self.now = course, next(course)

    def stage(self) -> Stage:
        return self.now

    def move_on(self, images: Tensor) -> None:
        self.now = next(self.course)


class _Trained(_Surrogate):
    """Has a training of its own; begins again where that is over."""

    def __init__(self, meta: _Meta, number: int, state: TrainingState) -> None:
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


class _Poisoned(_Trained, _Packed):
    """Trains on the poison as it is."""

    def stage(self) -> Stage:
        return Stage(self.state.module, self.state.rate)

    def move_on(self, images: Tensor) -> None:
        self.begin_epoch(images)
        self.state.run_epoch()


class _AsDrawn(_Trained):
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


def _move_on(crew: Sequence[_Surrogate], images: Tensor) -> None:
    for member in crew:
        member.move_on(images)
