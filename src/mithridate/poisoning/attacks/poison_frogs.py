"""Feature collision: poisons that look like their base and whose features are the target's."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mithridate.core.balls import AnyImage
from mithridate.core.classifier import Precision, computing_in, is_bf16
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.updates import ForwardBackward
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.dealing import deal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel


@dataclass(frozen=True, kw_only=True)
class PoisonFrogs(Attack):
    """Collide with the target in feature space while staying close to a base image of the intended class.

    In the ball ``any-image`` this is the paper's forward-backward splitting with its penalty; in any other ball the
    projection onto the ball takes the place of the penalty. One poison or many, each from its own base; against victims
    that train all weights the paper uses some 50 of them, with a watermark: ``PoisonFrogs(watermark=0.3)``. A collision
    gives the target the label that the poison carries, so bases are images of the intended class whatever else the
    threat model allows.

    Reference: Shafahi, Huang, Najibi, Suciu, Studer, Dumitras, Goldstein. "Poison Frogs! Targeted Clean-Label Poisoning
    Attacks on Neural Networks". NeurIPS 2018. arXiv 1804.00792, eq. (1) and Algorithm 1. Deviations: the accept test
    looks at the objective of the iterate itself; with several targets the poisons are dealt to them in turn.

    Raises:
        ValueError: the watermark is no opacity.

    >>> PoisonFrogs(watermark=0.3).beta
    0.25
    """

    threat: ClassVar[ThreatModel] = ThreatModel(budget=0.0001, ball=AnyImage(), goal=Misclassify())
    habitat: ClassVar[Literal["from-scratch", "transfer"]] = "transfer"

    steps: int = 1000
    """Forward-backward steps."""
    beta: float = 0.25
    """Weight of the distance to the base before scaling by (feature dimension / image dimension) squared, the mean of
    that over the surrogates."""
    lr: float = 0.05
    """First step; halved for an image whose objective would rise, else slowly growing."""
    watermark: float = 0.0
    """Opacity with which the target is blended into each base before the search, 0..1."""
    surrogates: int = 1
    """Models whose features are matched; their distances are averaged."""
    precision: Precision = "auto"
    """Number format of the features; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark}; it is an opacity, so use 0.3 for 30 %")

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the note ``feature_distance`` is relative to the unchanged bases'.

        Raises:
            TypeError: the goal is not to misclassify given targets, or no image of the intended class may change.
        """
        expect_goal(self, task, Misclassify)
        rows = rows_of_intended_class(self, task, seed)
        models = surrogate.fit([task.train] * self.surrogates, range(self.surrogates)).models
        base = task.images(rows)
        turn = deal(task, len(rows))

        def features(images: Tensor) -> list[Tensor]:
            with computing_in(self.precision, images.device):
                return models.features(images)

        with torch.no_grad():
            goals = [goal[turn] for goal in features(task.targets)]

        def distance(images: Tensor, rng: torch.Generator) -> Tensor:
            pairs = zip(features(images), goals, strict=True)
            return torch.stack([(found - goal).square().sum(1) for found, goal in pairs]).mean(0)

        blended = (1 - self.watermark) * base + self.watermark * task.targets[turn]
        free = isinstance(task.ball, AnyImage)
        beta = self.beta * fmean((goal.shape[1] / base[0].numel()) ** 2 for goal in goals) if free else 0.0
        found = minimise(
            by_autograd(distance),
            blended if free else base,
            task.ball,
            steps=self.steps,
            update=ForwardBackward(
                lr=self.lr, beta=beta, tolerance=0.05 if is_bf16(self.precision, base.device) else 0
            ),
            init=blended,
            label="feature collision",
            rng=stream(seed, "craft"),
        )
        with torch.no_grad():
            before = distance(base, stream(seed, "unused"))
        share = (found.value / before.clamp_min(1e-12)).mean()
        return Poison(rows, found.images, notes={"feature_distance": float(share)})
