"""Clean-label backdoor: images of the intended class that are hard to learn without the trigger on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Ball, Linf, Patch, Sum, to_floats
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.ensemble import Ensemble
from mithridate.core.perturbation import Objective, average, by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Learner
from mithridate.core.transforms import Adversarial
from mithridate.core.updates import SignStep
from mithridate.poisoning.attack import Attack, expect_goal, rows_of_intended_class
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger, Trigger, carried

NOISE = Linf(eps=32 / 255)
"""How far images move before the trigger goes on, unless the threat model says otherwise; a default of ours."""


@dataclass(frozen=True, kw_only=True)
class CleanLabelBackdoor(Attack):
    """Make images of the intended class hard to recognise, then put the trigger on them: it is what is left to learn.

    The images move uphill on the loss of their own label, as far as the Linf part of the ball allows; the trigger then
    goes on at full strength, as it will at test time. So the ball is a sum: ``linf(eps=32/255)+patch(area=0.1)``.

    Reference: Turner, Tsipras, Madry. "Label-Consistent Backdoor Attacks". 2019. arXiv 1912.02771 (the variant with
    adversarial perturbations; theirs also interpolates in a generative model). Deviations: the trigger is one patch, or
    any other; steps are 2.5 eps / steps long; noise of a search that begins anywhere in the ball is clipped Gaussian.

    Raises:
        ValueError: No steps, or no surrogate.

    >>> CleanLabelBackdoor().assumed().ball == NOISE + Patch(area=0.1)
    True
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.05, goal=Backdoor(), ball=NOISE + Patch(area=0.1), poison_class="intended"
    )

    trigger: Trigger = PatchTrigger()
    """What is put on the images."""
    steps: int = 40
    """Steps of the ascent."""
    surrogates: int = 1
    """Clean models whose losses are raised; their mean is."""
    robust: bool = False
    """Whether the surrogates are trained adversarially, so that the images move towards what a person would see too."""
    precision: Precision = "auto"
    """Number format of the surrogates; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        for name in ("steps", "surrogates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")

    def assumed(self) -> ThreatModel:
        return replace(self.threat, ball=NOISE + self.trigger.limit(), goal=carried(self.trigger))

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons, fewer where fewer have the intended class; ``own_loss`` is their mean loss.

        Raises:
            TypeError: Another goal than a backdoor, no row of the intended class, a ball without room for both the
                ascent and the trigger, or robust surrogates where the user's own code trains.
        """
        expect_goal(self, task, Backdoor)
        rows = rows_of_intended_class(self, task, seed)
        box = room_beside(self.trigger, task.ball)
        base, labels = task.images(rows), task.train.labels_of(rows)
        learner = self._robust(surrogate, box) if self.robust else surrogate
        models = learner.fit([task.train] * self.surrogates, range(self.surrogates)).models
        step = 2.5 * box.eps / self.steps
        found = minimise(
            average([self._sureness(Ensemble([model]), labels) for model in models]),
            base,
            box,
            steps=self.steps,
            update=SignStep(low=step, high=step),
            pixels="float",
            label="ascent on the own label",
            rng=stream(seed, "craft"),
        )
        moved = to_floats(box.rounded(base, found.images))
        images = task.ball.rounded(base, self.trigger(moved))
        return Poison(rows, images, trigger=self.trigger, notes={"own_loss": -float(found.value.mean())})

    def _sureness(self, model: Ensemble, labels: Tensor) -> Objective:
        """Minus the loss of each image's own label, some images at a time: they do not depend on each other."""

        def objective(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            pieces = []
            for part, own in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):

                def sureness(piece: Tensor, _: torch.Generator, own: Tensor = own) -> Tensor:
                    with computing_in(self.precision, piece.device):
                        logits = model.logits(piece)[0]
                    return -F.cross_entropy(logits, own, reduction="none")

                pieces.append(by_autograd(sureness)(part, rng))
            values, gradients = zip(*pieces, strict=True)
            return torch.cat(values), torch.cat(gradients)

        return objective

    def _robust(self, surrogate: Learner, box: Linf) -> Learner:
        """The surrogate's recipe with adversarial training, at a quarter of the room so that it can learn at all."""
        recipe = surrogate.recipe
        if recipe is None:
            raise TypeError(
                "clean-label-backdoor with robust=True changes the training of its surrogates, but they are trained by "
                "code of the user's own; give a Recipe as learner or as surrogate, or use robust=False"
            )
        eps = box.eps / 4
        return replace(
            recipe, transforms=(*recipe.transforms, Adversarial(ball=Linf(eps=eps), steps=7, step=2.5 * eps / 7))
        )


def room_beside(trigger: Trigger, ball: Ball) -> Linf:
    """Returns how far pixels may move besides what the trigger does: what is left of the Linf parts of a sum.

    >>> room_beside(PatchTrigger(), Linf(eps=0.125) + Patch(area=0.1)).eps
    0.125

    Raises:
        TypeError: Nothing is left, or the ball has no room for the trigger.
    """
    limit = trigger.limit()
    parts = ball.balls if isinstance(ball, Sum) else (ball,)
    boxes = [part.eps for part in parts if isinstance(part, Linf)]
    own = limit.eps if isinstance(limit, Linf) else 0.0
    beside = isinstance(limit, Linf) or any(isinstance(part, type(limit)) for part in parts)
    room = math.fsum(boxes) - own
    if not beside or room <= 1e-6:
        raise TypeError(
            f"clean-label-backdoor moves pixels and then puts its trigger on, but the ball is: {ball.describe()}; use "
            f"a sum of both, for example linf:eps=32/255 plus what the trigger needs ({limit.describe()})"
        )
    return Linf(eps=room)
