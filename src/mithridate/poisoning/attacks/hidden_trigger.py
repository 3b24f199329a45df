"""Hidden trigger: poisons that look like the intended class and whose features are those of triggered source images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mithridate.core.balls import Linf
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.ensemble import Ensemble
from mithridate.core.memory import in_chunks, shrinking
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Learner
from mithridate.core.updates import SignedAdam
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.carriers import source_rows
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger, Trigger, carried


@dataclass(frozen=True, kw_only=True)
class HiddenTrigger(Attack):
    """Move images of the intended class to where triggered images of a source class lie in feature space.

    The trigger is on no poison: a new head that learns these features under the poisons' label gives that label to
    source images as soon as they carry the trigger. Made for victims that keep the features and train a new head.

    Every few steps as many source images as there are poisons are drawn and put in one-to-one correspondence with them
    so that the squared distances add up to the least.

    Reference: Saha, Subramanya, Pirsiavash. "Hidden Trigger Backdoor Attacks". AAAI 2020. arXiv 1910.00033, eq. (1) and
    Algorithm 1. Deviations: the correspondence is the best one, where theirs is greedy (and their code lets one image
    serve several times); steps are signed; the place of the patch follows from the image, where theirs is drawn anew
    each time; the side of the patch is a quarter of the image's.

    Raises:
        ValueError: If a number is not positive.

    >>> HiddenTrigger().assumed().goal.sources
    'drawn'
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.05, ball=Linf(eps=16 / 255), goal=Backdoor(sources="drawn"), poison_class="intended"
    )
    habitat: ClassVar[Literal["from-scratch", "transfer"]] = "transfer"

    trigger: Trigger = PatchTrigger(corner="anywhere", pattern="random")
    """What test images will carry; no training image does."""
    steps: int = 500
    """Signed-Adam steps."""
    every: int = 5
    """Steps after which other source images are drawn."""
    lr: float = 0.01
    """Step in pixels of [0, 1]; falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    surrogates: int = 1
    """Models whose features are matched; their distances are averaged."""
    precision: Precision = "auto"
    """Number format of the features; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        for name in ("steps", "every", "surrogates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")

    def assumed(self) -> ThreatModel:
        return replace(self.threat, goal=carried(self.trigger, Backdoor(sources="drawn")))

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons, fewer where fewer have the intended class.

        The note ``feature_distance`` is relative to the unchanged bases', each to the source image next to it.

        Raises:
            TypeError: If the goal is no backdoor with one intended class, or no row of that class may change.
            ValueError: If no training image is of a source class.
        """
        expect_goal(self, task, Backdoor)
        rows = rows_of_intended_class(self, task, seed)
        models = surrogate.fit([task.train] * self.surrogates, range(self.surrogates)).models
        base = task.images(rows)
        work = _Collisions(self, task, models, seed)

        def between(step: int, images: Tensor) -> None:
            if step % self.every == 0:
                work.draw(images)

        found = minimise(
            work,
            base,
            task.ball,
            steps=self.steps,
            update=SignedAdam(lr=self.lr),
            between=between,
            label="hidden trigger",
            rng=stream(seed, "craft"),
        )
        share = (found.value / work.distances(base).clamp_min(1e-12)).mean()
        return Poison(rows, found.images, trigger=self.trigger, notes={"feature_distance": float(share)})


class _Collisions:
    """Poisons beside the triggered source images that they should collide with.

    Args:
        attack: Whose settings hold.
        task: The case.
        models: Whose features count.
        seed: Of the source images that are drawn.
    """

    def __init__(self, attack: HiddenTrigger, task: Task, models: Ensemble, seed: int) -> None:
        self.attack, self.models, self.rng = attack, models, stream(seed, "sources")

        def triggered(rows: Tensor) -> Tensor:
            return self._features(attack.trigger(task.train.floats(rows)))

        with torch.no_grad():
            self.known = in_chunks(triggered, source_rows(attack, task), EVALUATION_BATCH)
        self.goals = self.known[:0]

    def draw(self, images: Tensor) -> None:
        """Draws a source image for each poison [P, C, H, W] and pairs them."""
        count, pool = len(images), len(self.known)
        drawn = torch.cat([torch.randperm(pool, generator=self.rng) for _ in range(-(-count // pool))])[:count]
        sources = self.known[drawn.to(self.known.device)]
        with torch.no_grad():
            found = in_chunks(self._features, images, EVALUATION_BATCH)
        self.goals = sources[partners(found, sources).to(sources.device)]

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Distances [P] and their slopes, some images at a time: they do not depend on each other."""

        def work(size: int) -> tuple[Tensor, Tensor]:
            pieces = []
            for part, goals in zip(images.split(size), self.goals.split(size), strict=True):
                pieces.append(
                    by_autograd(lambda piece, _, goals=goals: self._apart(self._features(piece), goals))(part, rng)
                )
            values, slopes = zip(*pieces, strict=True)
            return torch.cat(values), torch.cat(slopes)

        return shrinking(work, EVALUATION_BATCH)

    def distances(self, images: Tensor) -> Tensor:
        """Squared feature distance of each image to its partner, averaged over models, [P]."""
        with torch.no_grad():
            return self._apart(in_chunks(self._features, images, EVALUATION_BATCH), self.goals)

    def _apart(self, found: Tensor, goals: Tensor) -> Tensor:
        return (found - goals).square().sum(1) / len(self.models)

    def _features(self, images: Tensor) -> Tensor:
        """Of all models side by side, [B, M * D]."""
        with computing_in(self.attack.precision, images.device):
            return torch.cat([found.float() for found in self.models.features(images)], 1)


def partners(features: Tensor, sources: Tensor) -> Tensor:
    """Returns which source belongs to each row so that the squared distances add up to the least, [P] int64.

    Args:
        features: [P, D].
        sources: [P, D]; each is used once.

    >>> partners(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.9], [-3.0]])).tolist()
    [1, 0]
    """
    cost = torch.cdist(features.double(), sources.double()).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])
