"""Gradient matching: poisons whose training gradient points where the target's adversarial gradient points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.classifier import Precision
from mithridate.core.perturbation import average, minimise
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.updates import SignedAdam
from mithridate.poisoning.attack import Attack, expect_goal
from mithridate.poisoning.matching import Matching, partners_of
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel


@dataclass(frozen=True, kw_only=True)
class WitchesBrew(Attack):
    """Match the poisons' gradient to the gradient that would misclassify the target.

    Poisons keep their labels, whatever classes the threat model allows. Several targets are one goal: the gradient of
    their summed loss, whose length does not matter to a cosine.

    Reference: Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein. "Witches' Brew: Industrial Scale Data Poisoning
    via Gradient Matching". ICLR 2021. arXiv 2009.02276, eq. (3) and Algorithm 1. Deviations: the cosine is of all
    poisons together at any number of them (the reference code matches batches of 512 one by one); steps are in pixels
    of [0, 1] (0.025 = their 0.1 in normalised units); 1 restart and 2 surrogates unless asked for their 8 and 1.

    >>> WitchesBrew(steps=100).restarts
    1
    """

    threat: ClassVar[ThreatModel] = ThreatModel(budget=0.01, ball=Linf(eps=16 / 255), goal=Misclassify())

    steps: int = 250
    """Signed-Adam steps of each restart."""
    restarts: int = 1
    """Independent starts; the one with the lowest matching loss on its 8-bit pixels wins."""
    surrogates: int = 2
    """Clean models that stand in for the victim; their matching losses are averaged."""
    loss: Literal["cosine", "squared-error"] = "cosine"
    """What is small where gradients match: 1 - cosine; or, as in the paper's ablation, the squared distance of the mean
    poison gradient and the target's, relative to the latter's length."""
    lr: float = 0.025
    """Step in pixels of [0, 1]; falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    augment: bool = True
    """Whether poisons go through the victim's augmentation while they are crafted."""
    precision: Precision = "auto"
    """Number format of the double backward pass; auto: bf16 where the machine computes it faster."""
    micro_batch: int = 128
    """Images per graph: bounds the memory; changes the random draws of the augmentation, never the objective."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the note ``matching_loss`` is the loss on the 8-bit pixels.

        Raises:
            TypeError: the goal is not to misclassify given targets.
        """
        expect_goal(self, task, Misclassify)
        models = surrogate.fit([task.train] * self.surrogates, range(self.surrogates)).models
        goals = models.gradients(task.targets, task.intended)
        rows = task.choose(seed)
        transforms = surrogate.recipe.transforms if self.augment and surrogate.recipe else ()
        partners = partners_of(task.train, rows, transforms, seed)
        labels = F.one_hot(task.train.labels_of(torch.cat([rows, partners])), len(task.train.classes)).float()
        clean = task.train.floats(partners)
        objectives = [
            Matching(self, model, list(goal.values()), len(task.targets), labels, clean, transforms)
            for model, goal in zip(models, goals, strict=True)
        ]
        found = minimise(
            average(objectives),
            task.images(rows),
            task.ball,
            steps=self.steps,
            restarts=self.restarts,
            update=SignedAdam(lr=self.lr),
            label="gradient matching",
            rng=stream(seed, "craft"),
        )
        return Poison(rows, found.images, notes={"matching_loss": float(found.value)})
