"""Noise that is found together with the network it fools: for each image, or for each class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball, to_floats
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.perturbation import Objective, minimise
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH, TrainingState
from mithridate.core.updates import SignStep
from mithridate.poisoning.release import Perturbed, Perturber, into, lowering_losses, reach, searching

if TYPE_CHECKING:
    from mithridate.poisoning.attacks.error_minimizing import ErrorMinimizing


def batches_left(state: TrainingState) -> Iterator[Batch]:
    """Batches of the data that the state has at the time, to the end of its training."""
    while state.progress < 1:
        yield from state.batches()


def rounds_of(state: TrainingState, batches: int) -> int:
    """Rounds of so many batches that one training has."""
    recipe = state.recipe
    return -(-recipe.epochs * recipe.sampler.batches(len(state.rows), recipe.batch_size) // batches)


class Alternating(ABC):
    """The noise of the alternation.

    Args:
        attack: Whose settings hold.
        train: Clean images.
        ball: How far they may change.
        transforms: The victims' augmentation.
    """

    def __init__(
        self, attack: ErrorMinimizing, train: ImageData, ball: Ball, transforms: Sequence[BatchTransform]
    ) -> None:
        self.attack, self.train, self.ball, self.transforms = attack, train, ball, transforms
        length = attack.step * reach(ball, train.shape)
        self.update = SignStep(low=length, high=length)

    @abstractmethod
    def images(self) -> Tensor:
        """Returns the noisy training images, [N, C, H, W] uint8, in the order of `train.ids`."""

    @abstractmethod
    def improve(self, models: Ensemble, seed: int, number: int) -> None:
        """Moves the noise to where the loss is lower, in the round of that number."""

    @abstractmethod
    def perturber(self, models: Ensemble) -> Perturber:
        """Returns what perturbs a chunk once the alternation is over."""

    def objective(self, models: Ensemble, labels: Tensor) -> Objective:
        """The loss of images with these labels [B]."""
        shares = F.one_hot(labels, len(self.train.classes)).float()
        return lowering_losses(models, shares, transforms=self.transforms, precision=self.attack.precision)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions among all training images and row ids, chunk by chunk."""
        ids = self.train.ids
        positions = torch.arange(len(ids), device=ids.device)
        return zip(positions.split(self.attack.chunk), ids.split(self.attack.chunk), strict=True)

    def error(self, models: Ensemble) -> float:
        """Returns the share of noisy training images that the models together get wrong."""
        labels, wrong = self.train.labels_of(self.train.ids), 0
        with torch.no_grad():
            for images, known in zip(
                self.images().split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
            ):
                wrong += (models.logits(to_floats(images)).mean(0).argmax(1) != known).sum()
        return float(wrong / len(labels))


class PerImage(Alternating):
    """Noise of its own for each image, rounded to 8-bit pixels between the rounds."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.noisy = self.train.pixels(self.train.ids)

    def images(self) -> Tensor:
        return self.noisy

    def improve(self, models: Ensemble, seed: int, number: int) -> None:
        noisy = torch.empty_like(self.noisy)
        for place, rows in self.parts():
            noisy[place] = minimise(
                self.objective(models, self.train.labels_of(rows)),
                self.train.floats(rows),
                self.ball,
                steps=self.attack.inner_steps,
                update=self.update,
                init=to_floats(self.noisy[place]),
                judged=False,
                rng=stream(seed, "round", number, int(place[0])),
            ).images
        self.noisy = noisy

    def perturber(self, models: Ensemble) -> Perturber:
        return searching(
            lambda images, labels: self.objective(models, labels),
            self.ball,
            steps=self.attack.steps,
            update=self.update,
            label="error-minimising noise",
        )


class PerClass(Alternating):
    """One pattern for each class: what it changes of a grey image is added to all images of the class."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.grey = torch.full((len(self.train.classes), *self.train.shape), 0.5, device=self.train.device)
        self.patterns = self.grey

    def images(self) -> Tensor:
        return torch.cat([self.noisy(self.train.floats(rows), self.train.labels_of(rows)) for _, rows in self.parts()])

    def noisy(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns images with the patterns of their labels, uint8."""
        return into(self.ball, images, images + (self.patterns - self.grey)[labels])

    def improve(self, models: Ensemble, seed: int, number: int) -> None:
        def objective(patterns: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            value, slope = patterns.new_zeros(()), torch.zeros_like(patterns)
            for _, rows in self.parts():
                clean, labels = self.train.floats(rows), self.train.labels_of(rows)
                images = (clean + (patterns - self.grey)[labels]).clamp(0, 1)
                losses, slopes = self.objective(models, labels)(images, rng)
                value += losses.sum()
                slope.index_add_(0, labels, slopes)
            return value, slope

        self.patterns = minimise(
            objective,
            self.grey,
            self.ball,
            steps=self.attack.inner_steps,
            update=self.update,
            init=self.patterns,
            pixels="float",
            judged=False,
            rng=stream(seed, "round", number),
        ).images

    def perturber(self, models: Ensemble) -> Perturber:
        def perturb(images: Tensor, labels: Tensor, rng: torch.Generator) -> Perturbed:
            found = self.noisy(images, labels)
            value, _ = self.objective(models, labels)(to_floats(found), rng)
            return Perturbed(found, value)

        return perturb
