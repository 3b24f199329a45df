"""Release: attacks that perturb every image before it is published, chunk by chunk, and what they search with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Ball, Linf
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble, in_mode
from mithridate.core.gradient_rules import trainable
from mithridate.core.memory import shrinking
from mithridate.core.perturbation import Objective, average, minimise
from mithridate.core.progress import track
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.transforms import transformed
from mithridate.core.updates import SignedAdam, Update
from mithridate.poisoning.attack import Attack, expect_goal
from mithridate.poisoning.goals import Availability
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel


class Perturbed(NamedTuple):
    """One chunk of images as it is published.

    >>> Perturbed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)).images.shape
    torch.Size([2, 3, 8, 8])
    """

    images: Tensor
    """[B, C, H, W] uint8, inside the ball."""
    value: Tensor
    """[B] what the search lowered, of these images; [] where nothing was searched for."""


Perturber = Callable[[Tensor, Tensor, torch.Generator], Perturbed]
"""Images [B, C, H, W] in [0, 1] of 8-bit pixels, their labels [B] and a generator -> what is published. It sees one
chunk alone, so images can be published as they come; the same chunk and generator give the same bits."""

Judge = Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]
"""The parameter gradient of a batch -> (value [], derivative with respect to each part of that gradient)."""


FIRST_ORDER, SECOND_ORDER = 2**19, 2**17
"""Pixels (of all images together, channels counted once) whose graph is in memory at a time: of a backward pass, and of
one that is differentiated again. 512 and 128 images of 32 x 32; larger pieces are hardly faster."""


@dataclass(frozen=True, kw_only=True)
class Release(Attack, ABC):
    """An attack that changes every image that is published and no label, so that training on them teaches little.

    What depends on a model is made ready once, on clean images; then each chunk of images is perturbed alone. So it
    takes the memory of one chunk, however many images there are, and new images can be published later.

    >>> from mithridate import Digits, Recipe
    >>> from mithridate.poisoning.attacks.class_wise_noise import ClassWiseNoise
    >>> train, _ = Digits(train=100).load()
    >>> publish = ClassWiseNoise().prepare(train, Linf(eps=8 / 255), Recipe(), seed=0)
    >>> publish(train.floats(train.ids[:4]), train.labels_of(train.ids[:4]), stream(0)).images.dtype
    torch.uint8
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=1.0, ball=Linf(eps=8 / 255), goal=Availability(), poison_class="any"
    )

    chunk: int = 512
    """Images perturbed together: bounds the memory; decides which draws an image gets."""

    @abstractmethod
    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        """Trains what the method needs on clean images, and returns what perturbs a chunk.

        Args:
            train: Clean images; those that are published, or a sample of them.
            ball: How far the pixels of an image may change.
            surrogate: Trains models that stand in for the victim; it is asked for the seeds 0, 1, ...
            seed: Of what is drawn here.
        """

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Perturbs as many rows as may change; the note ``objective`` is the mean of what the search lowered.

        Raises:
            TypeError: If the goal is another than to make the data useless.
            ValueError: If a chunk is to hold no image.
        """
        expect_goal(self, task, Availability)
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it must hold at least 1 image")
        rows = task.choose(seed)
        perturb = self.prepare(task.train, task.ball, surrogate, seed)
        parts = rows.split(self.chunk)
        found = [
            perturb(task.images(part), task.train.labels_of(part), stream(seed, "craft", int(part[0])))
            for part in (parts if len(parts) == 1 else track(parts, "perturbing images"))  # one chunk has its own bar
        ]
        values = torch.cat([one.value.flatten() for one in found])
        notes = {} if bool(values.isnan().any()) else {"objective": float(values.mean())}
        return Poison(rows, torch.cat([one.images for one in found]), notes=notes)


@dataclass(frozen=True, kw_only=True)
class GradientRelease(Release):
    """Release that lowers a function of the training gradient of each batch, at the weights of clean models.

    What makes one is that function.
    """

    label: ClassVar[str]
    """What a progress bar says."""

    steps: int = 100
    """Signed-Adam steps of each restart."""
    restarts: int = 1
    """Independent starts; of each batch the one with the lowest objective on its 8-bit pixels wins."""
    surrogates: int = 1
    """Clean models that stand in for the victim; their objectives are averaged."""
    batch: int = 512
    """Images whose gradient is taken together; more than 512 only where a chunk holds more."""
    step: float = 0.8
    """First step as a share of the largest change of a pixel; falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    augment: bool = True
    """Whether images go through the victim's augmentation while they are crafted."""
    precision: Precision = "auto"
    """Number format of the double backward pass; auto: bf16 where the machine computes it faster."""

    @abstractmethod
    def judge(self, model: nn.Module, images: Tensor, labels: Tensor) -> Judge:
        """Returns the function of the gradient that is lowered.

        Args:
            model: In eval mode.
            images: [B, C, H, W], the clean images of the batch.
            labels: [B] int64.
        """

    def prepare(self, train: ImageData, ball: Ball, surrogate: Learner, seed: int) -> Perturber:
        models = surrogate.fit([train] * self.surrogates, range(self.surrogates)).models
        transforms, classes = augmentation(surrogate, self.augment), len(train.classes)

        def objective_of(images: Tensor, labels: Tensor) -> Objective:
            parts, known = -(-len(images) // self.batch), F.one_hot(labels, classes).float()
            batches = list(zip(dealt(images, parts), dealt(labels, parts), strict=True))
            return average(
                [
                    judging_gradients(
                        model,
                        [self.judge(model, *batch) for batch in batches],
                        known,
                        transforms=transforms,
                        precision=self.precision,
                    )
                    for model in models
                ]
            )

        return searching(
            objective_of,
            ball,
            steps=self.steps,
            restarts=self.restarts,
            update=SignedAdam(lr=self.step * reach(ball, train.shape)),
            label=self.label,
        )


def searching(
    objective_of: Callable[[Tensor, Tensor], Objective],
    ball: Ball,
    *,
    steps: int,
    update: Update,
    restarts: int = 1,
    label: str,
) -> Perturber:
    """Returns a perturber that searches the ball around each chunk for the lowest objective.

    Args:
        objective_of: Images [B, C, H, W] and labels [B] of a chunk -> its objective.
        ball: What may change.
        steps: Steps of each restart.
        update: How to move.
        restarts: Independent starts.
        label: What a progress bar says.
    """

    def perturb(images: Tensor, labels: Tensor, rng: torch.Generator) -> Perturbed:
        objective = objective_of(images, labels)
        found = minimise(objective, images, ball, steps=steps, restarts=restarts, update=update, label=label, rng=rng)
        return Perturbed(found.images, found.value)

    return perturb


def into(ball: Ball, base: Tensor, images: Tensor) -> Tensor:
    """Returns uint8 images [B, C, H, W] in the ball around the base, near the given ones.

    >>> into(Linf(eps=8 / 255), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item()
    8
    """
    return ball.rounded(base, ball.images(base, ball.params_of(base, images)))


def reach(ball: Ball, shape: tuple[int, ...]) -> float:
    """Returns by how much a pixel of a grey image [C, H, W] changes at the most where a ball is used to the full.

    >>> round(255 * reach(Linf(eps=8 / 255), (3, 8, 8)), 3)
    8.0
    """
    grey = torch.full((1, *shape), 0.5)
    return float((ball.sample(grey, stream(0, "reach")) - grey).abs().max())


def augmentation(surrogate: Learner, wanted: bool) -> Sequence[BatchTransform]:
    """Returns what the victims do to a batch, as far as it is known and wanted."""
    return surrogate.recipe.transforms if wanted and surrogate.recipe else ()


def lowering_losses(
    models: Ensemble,
    labels: Tensor,
    *,
    raised: bool = False,
    transforms: Sequence[BatchTransform] = (),
    precision: Precision = "fp32",
) -> Objective:
    """Returns the mean over models of the cross-entropy of each image, [B], after augmentation.

    Args:
        models: In eval mode.
        labels: [B, K] what each image is compared with.
        raised: Whether the losses should rise: the objective is their negative.
        transforms: What happens to the images first.
        precision: Number format of the networks.
    """
    sign = -1 if raised else 1

    def losses(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.requires_grad_()
        values = sign * _losses(model, leaf, targets, precision)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    def in_pieces(model: nn.Module, images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        pieces = zip(images.split(size), targets.split(size), strict=True)
        values, slopes = zip(*[losses(model, *piece) for piece in pieces], strict=True)
        return torch.cat(values), torch.cat(slopes)

    work = [partial(in_pieces, model) for model in models]
    return average([_Augmented(*pair, labels, transforms, FIRST_ORDER) for pair in zip(models, work, strict=True)])


def judging_gradients(
    model: nn.Module,
    judges: Sequence[Judge],
    labels: Tensor,
    *,
    transforms: Sequence[BatchTransform] = (),
    precision: Precision = "fp32",
) -> Objective:
    """Returns an objective of the training gradient of each batch: its images' values [B] are all the batch's value.

    Images are dealt to as many batches as there are judges, in their order. A batch that is larger than what one graph
    should hold is taken in pieces: a first pass adds up its gradient, and what the judge says of that turns each piece
    into one vector-Jacobian product. The objective is the same.

    Args:
        model: In eval mode.
        judges: One for each batch.
        labels: [B, K] that the images keep.
        transforms: The victims' augmentation.
        precision: Number format of the networks.
    """
    parameters = list(trainable(model).values())

    def gradient(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, ...]:
        loss = _losses(model, images, targets, precision).sum() * share
        return torch.autograd.grad(loss, parameters, create_graph=images.requires_grad)

    def vector_product(images: Tensor, targets: Tensor, share: float, slope: Sequence[Tensor]) -> Tensor:
        leaf = images.requires_grad_()
        return torch.autograd.grad(gradient(leaf, targets, share), leaf, slope)[0]

    def one(judge: Judge, images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        if len(images) <= size:
            leaf = images.requires_grad_()
            found = gradient(leaf, targets, 1 / len(images))
            value, slope = judge([part.detach() for part in found])
            return value.expand(len(images)), torch.autograd.grad(found, leaf, slope)[0]
        pieces = list(zip(images.split(size), targets.split(size), strict=True))
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for piece in pieces:
            torch._foreach_add_(total, gradient(*piece, 1 / len(images)))
        value, slope = judge(total)
        towards = [vector_product(*piece, 1 / len(images), slope) for piece in pieces]
        return value.expand(len(images)), torch.cat(towards)

    def every(images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        batches = zip(judges, dealt(images, len(judges)), dealt(targets, len(judges)), strict=True)
        values, slopes = zip(*[one(*batch, size) for batch in batches], strict=True)
        return torch.cat(values), torch.cat(slopes)

    return _Augmented(model, every, labels, transforms, SECOND_ORDER)


def dealt(items: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Splits items [B, ...] into parts that differ by one item at most.

    >>> [len(part) for part in dealt(torch.arange(10), 4)]
    [3, 3, 2, 2]
    """
    return items.tensor_split(parts)


def _losses(model: nn.Module, images: Tensor, targets: Tensor, precision: Precision) -> Tensor:
    """Cross-entropy of each image in eval mode, [B], with a graph."""
    with torch.enable_grad(), in_mode(model, train=False):
        with computing_in(precision, images.device):
            logits = model(images)
        return F.cross_entropy(logits.to(targets.dtype), targets, reduction="none")


class _Augmented:
    """An objective of augmented images under one model.

    All images are augmented at once, and what is behind it goes in pieces: draws do not depend on the pieces, so these
    can be as large as the machine likes them.

    Args:
        model: In eval mode.
        work: Augmented images, their targets and the size of a piece -> (values, slopes).
        labels: [B, K].
        transforms: The augmentation.
        pixels: In a piece at first; halved where memory runs out.
    """

    def __init__(
        self,
        model: nn.Module,
        work: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
        labels: Tensor,
        transforms: Sequence[BatchTransform],
        pixels: int,
    ) -> None:
        self.model, self.work, self.labels, self.transforms, self.pixels = model, work, labels, transforms, pixels

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        rows = torch.arange(len(leaf), device=leaf.device)
        with torch.enable_grad():
            batch = transformed(Batch(leaf, self.labels, rows, 1.0), self.transforms, self.model, rng)
        seen, targets = batch.images.detach(), batch.targets.detach()
        size = max(1, self.pixels // images[0, 0].numel())
        values, slopes = shrinking(lambda size: self._pieces(seen, targets, size), size)
        if batch.images is not leaf:
            (slopes,) = torch.autograd.grad(batch.images, leaf, slopes)
        return values, slopes

    def _pieces(self, images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        self.pixels = size * images[0, 0].numel()
        return self.work(images, targets, size)
