"""What the polytope attacks share: poisons around the target in the feature space of several models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.activations import activations
from mithridate.core.balls import Linf, to_floats
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.perturbation import average, by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.transforms import transformed
from mithridate.core.updates import Adam
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel


@dataclass(frozen=True, kw_only=True)
class Polytope(Attack):
    """Holds the target's features by a convex combination of the poisons' features, in each of several models.

    Members of the family say which combination it is, and what its distance from the target costs. Bases are images of
    the intended class, and the search begins at them. Several targets are views of one object: their features are
    averaged, as are those of several `views` of each.

    Raises:
        ValueError: dropout that is no share, no view or pass, or several passes that would all be the same.
    """

    threat: ClassVar[ThreatModel] = ThreatModel(budget=0.01, ball=Linf(eps=0.1), goal=Misclassify())
    habitat: ClassVar[Literal["from-scratch", "transfer"]] = "transfer"

    steps: int = 1200
    """Adam steps."""
    lr: float = 0.04
    """Step in pixels of [0, 1]."""
    surrogates: int = 2
    """Models whose features are matched: with one alone, the poisons fit that one model and carry over to no other."""
    dropout: float = 0.0
    """Share of each block's outputs that is set to zero while the poisons pass, drawn anew in every step."""
    repeats: int = 1
    """Passes through dropout in every step; their features are averaged."""
    end_to_end: bool = False
    """Whether the outputs of every block are matched, for victims that train all weights; else the features alone."""
    views: int = 1
    """Views of each target: the image as it is, and further ones drawn from the victim's augmentation."""
    precision: Precision = "auto"
    """Number format of the search; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is the share that is set to zero, so use 0.2 for 20 %")
        if min(self.views, self.repeats, self.surrogates) < 1:
            raise ValueError(
                f"views is {self.views}, repeats {self.repeats}, surrogates {self.surrogates}; each is at least 1"
            )
        if self.repeats > 1 and not self.dropout:
            raise ValueError(f"repeats is {self.repeats}, but passes without dropout are all the same; set dropout")

    @abstractmethod
    def coefficients(
        self, points: Sequence[Tensor], goals: Sequence[Tensor], start: Tensor | None, *, exact: bool
    ) -> Tensor:
        """Returns the shares [S, P] of the poisons in the combination, one row for each of S layers.

        Args:
            points: S times [P, D], the poisons' activations.
            goals: S times [D], the target's.
            start: [S, P] the answer of the step before; None in the first.
            exact: whether it should be as good as it gets, or cheap since the next step will go on from it.
        """

    @abstractmethod
    def loss(self, residuals: Tensor) -> Tensor:
        """Returns the loss [] of the relative distances [S] between combination and target."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the note ``residual`` is what is left of the target's activations.

        It is the distance between combination and target over the length of the target, on the 8-bit pixels and without
        dropout, the mean over models and layers: 0 where the poisons hold the target.

        Raises:
            TypeError: the goal is not to misclassify given targets, or no image of the intended class may change.
        """
        expect_goal(self, task, Misclassify)
        rows = rows_of_intended_class(self, task, seed)
        models = surrogate.fit([task.train] * self.surrogates, range(self.surrogates)).models
        transforms = surrogate.recipe.transforms if surrogate.recipe else ()
        members = [_Member(self, model, self._goals(model, task, transforms, seed)) for model in models]
        base = task.images(rows)
        found = minimise(
            average([by_autograd(member.loss) for member in members]),
            base,
            task.ball,
            steps=self.steps,
            update=Adam(lr=self.lr),
            init=base,
            label="feature polytope",
            rng=stream(seed, "craft"),
        )
        images = to_floats(found.images)
        with torch.no_grad():
            residual = torch.stack([member.residuals(images).mean() for member in members]).mean()
        return Poison(rows, found.images, notes={"residual": float(residual)})

    def _goals(self, model: nn.Module, task: Task, transforms: Sequence[BatchTransform], seed: int) -> list[Tensor]:
        """The target's activations, one [D] per layer: the mean over targets and views, without dropout."""
        alone = [transform for transform in transforms if not transform.mixes_rows]
        labels = F.one_hot(task.intended, len(task.train.classes)).float().to(task.targets.device)
        rows = torch.arange(len(task.targets), device=task.targets.device)
        batch, rng = Batch(task.targets, labels, rows, 1.0), stream(seed, "views")
        views = [transformed(batch, alone, model, rng).images for _ in range(self.views - 1)]
        with torch.no_grad():
            found = activations(model, torch.cat([task.targets, *views]), every_block=self.end_to_end)
        return [layer.mean(0) for layer in found]


class _Member:
    """One model's share of the objective; remembers the coefficients of the step before."""

    def __init__(self, attack: Polytope, model: nn.Module, goals: list[Tensor]) -> None:
        self.attack, self.model, self.goals = attack, model, goals
        self.lengths = torch.stack([goal.norm() for goal in goals]).clamp_min(1e-12)
        self.last: Tensor | None = None

    def loss(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """The loss [] of images [P, C, H, W]."""
        attack = self.attack
        with computing_in(attack.precision, images.device):
            passes = [
                activations(self.model, images, dropout=attack.dropout, rng=rng, every_block=attack.end_to_end)
                for _ in range(attack.repeats)
            ]
        points = [torch.stack(layer).mean(0) for layer in zip(*passes, strict=True)]
        with torch.no_grad():
            self.last = attack.coefficients(points, self.goals, self.last, exact=False)
        return attack.loss(self._distances(points, self.last))

    def residuals(self, images: Tensor) -> Tensor:
        """The relative distances [S] in float32 and without dropout, with the best coefficients."""
        points = activations(self.model, images, every_block=self.attack.end_to_end)
        return self._distances(points, self.attack.coefficients(points, self.goals, self.last, exact=True))

    def _distances(self, points: Sequence[Tensor], shares: Tensor) -> Tensor:
        parts = zip(points, self.goals, shares.float(), strict=True)
        return torch.stack([(share @ found - goal).norm() for found, goal, share in parts]) / self.lengths
