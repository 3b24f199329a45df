"""Sleeper agent: gradient matching that hides a trigger which no poison carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.batch import BatchTransform
from mithridate.core.classifier import Precision
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import norm
from mithridate.core.memory import shrinking
from mithridate.core.perturbation import average, minimise
from mithridate.core.progress import quiet
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Learner
from mithridate.core.updates import SignedAdam
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.carriers import source_rows
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.matching import Matching, partners_of
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger, Trigger, carried


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(Attack):
    """Match the poisons' gradient to the one that would learn triggered images of a source class as the intended class.

    Poisons are images of the intended class under their own label, and carry no trigger. Those are changed whose
    training gradient is longest; surrogates are trained again, on the poisons as they are, while these are crafted.

    Reference: Souri, Fowl, Chellappa, Goldblum, Goldstein. "Sleeper Agent: Scalable Hidden Trigger Backdoors for Neural
    Networks Trained from Scratch". NeurIPS 2022. arXiv 2106.08970, Algorithm 1. Deviations: the cosine is of all
    poisons together; the place of the patch follows from the image, where theirs is drawn anew each time; steps are in
    pixels of [0, 1] (0.025 = their 0.1 in normalised units); the side of the patch is a quarter of the image's.

    Raises:
        ValueError: If there are no steps, no surrogate or no source image, or fewer refits than none.

    >>> SleeperAgent().assumed().goal.sources
    'drawn'
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.01, ball=Linf(eps=16 / 255), goal=Backdoor(sources="drawn"), poison_class="intended"
    )

    trigger: Trigger = PatchTrigger(corner="anywhere", pattern="random")
    """What test images will carry; no training image does."""
    steps: int = 250
    """Signed-Adam steps."""
    refits: int = 4
    """How often the surrogates are trained again on the poisons as they are, after equal numbers of steps."""
    surrogates: int = 1
    """Models that stand in for the victim; their matching losses are averaged."""
    sources: int = 1000
    """Training images of the source class that the gradient to match is of, at most."""
    loss: Literal["cosine", "squared-error"] = "cosine"
    """What is small where gradients match."""
    lr: float = 0.025
    """Step in pixels of [0, 1]; falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    augment: bool = True
    """Whether poisons go through the victim's augmentation while they are crafted."""
    precision: Precision = "auto"
    """Number format of the double backward pass; auto: bf16 where the machine computes it faster."""
    micro_batch: int = 128
    """Images per graph: bounds the memory; changes the random draws of the augmentation, never the objective."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("refits", 0), ("surrogates", 1), ("sources", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least} is needed")

    def assumed(self) -> ThreatModel:
        return replace(self.threat, goal=carried(self.trigger, Backdoor(sources="drawn")))

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons, fewer where fewer have the intended class.

        The note ``matching_loss`` is the loss on the 8-bit pixels, for the surrogates of the last refit.

        Raises:
            TypeError: If the goal is no backdoor with one intended class, or no row of that class may change.
            ValueError: If no training image is of a source class.
        """
        expect_goal(self, task, Backdoor)
        models = surrogate.fit([task.train] * self.surrogates, range(self.surrogates)).models
        rows = rows_of_intended_class(self, task, seed, lambda rows: gradient_norms(models, task.train, rows))
        base = task.images(rows)
        work, refitted = _Search(self, task, surrogate, rows, models, seed), self._refitted()

        def between(step: int, images: Tensor) -> None:
            if step in refitted:
                work.refit(task.ball.rounded(base, images))

        found = minimise(
            work,
            base,
            task.ball,
            steps=self.steps,
            update=SignedAdam(lr=self.lr),
            between=between,
            label="gradient matching",
            rng=stream(seed, "craft"),
        )
        return Poison(rows, found.images, trigger=self.trigger, notes={"matching_loss": float(found.value)})

    def _refitted(self) -> set[int]:
        """Steps before which surrogates are trained again."""
        return {round(self.steps * number / (self.refits + 1)) for number in range(1, self.refits + 1)} - {0}


class _Search:
    """The matching objective under the surrogates of the time.

    Args:
        attack: Whose settings hold.
        task: The case.
        surrogate: Trains them.
        rows: [P] that are changed.
        models: The surrogates that were trained on clean data.
        seed: Of what is drawn here.
    """

    def __init__(
        self, attack: SleeperAgent, task: Task, surrogate: Learner, rows: Tensor, models: Ensemble, seed: int
    ) -> None:
        self.attack, self.task, self.surrogate, self.rows = attack, task, surrogate, rows
        train, transforms = task.train, self._transforms()
        pool = source_rows(attack, task)
        order = torch.randperm(len(pool), generator=stream(seed, "sources"))[: attack.sources]
        self.sources = pool[order.to(pool.device)]
        partners = partners_of(train, rows, transforms, seed)
        self.labels = F.one_hot(train.labels_of(torch.cat([rows, partners])), len(train.classes)).float()
        self.partners, self.fits = train.floats(partners), 1
        self._match(models)

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.objective(images, rng)

    def refit(self, images: Tensor) -> None:
        """Trains other surrogates on the poisons [P, C, H, W] uint8 as they are, and matches their gradients."""
        count = self.attack.surrogates
        poisoned = self.task.train.replace(self.rows, images)
        with quiet():
            fitted = self.surrogate.fit([poisoned] * count, range(count * self.fits, count * (self.fits + 1)))
        self.fits += 1
        self._match(fitted.models)

    def _match(self, models: Ensemble) -> None:
        goals = triggered_gradients(models, self.task, self.sources, self.attack.trigger)
        self.objective = average(
            [
                Matching(self.attack, model, goal, len(self.sources), self.labels, self.partners, self._transforms())
                for model, goal in zip(models, goals, strict=True)
            ]
        )

    def _transforms(self) -> Sequence[BatchTransform]:
        recipe = self.surrogate.recipe
        return recipe.transforms if self.attack.augment and recipe else ()


def triggered_gradients(models: Ensemble, task: Task, rows: Tensor, trigger: Trigger) -> list[list[Tensor]]:
    """Returns each model's gradient of the summed loss of training rows [S] with the trigger, as the intended class."""

    def summed(size: int) -> list[list[Tensor]]:
        totals = [[torch.zeros_like(weight) for weight in trainable(model).values()] for model in models]
        for part in rows.split(size):
            images = trigger(task.train.floats(part))
            found = models.gradients(images, task.taught(part).to(images.device))
            for total, more in zip(totals, found, strict=True):
                torch._foreach_add_(total, list(more.values()))
        return totals

    return shrinking(summed, EVALUATION_BATCH)


def gradient_norms(models: Ensemble, train: ImageData, rows: Tensor) -> Tensor:
    """Returns the length of the training gradient of each row, [n], averaged over models."""

    def lengths(model: nn.Module) -> Tensor:
        alone = Ensemble([model])
        found = []
        for row in rows.split(1):
            (gradient,) = alone.gradients(train.floats(row), train.labels_of(row))
            found.append(norm(gradient))
        return torch.stack(found)

    return torch.stack(models.map(lengths)).mean(0)
