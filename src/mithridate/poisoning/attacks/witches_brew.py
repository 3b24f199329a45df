"""Gradient matching: poisons whose training gradient points where the target's adversarial gradient points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.data import ImageData
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import cosine_slope, squared_error_slope
from mithridate.core.memory import shrinking
from mithridate.core.perturbation import average, minimise
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.transforms import transformed
from mithridate.core.updates import SignedAdam
from mithridate.poisoning.attack import Attack, expect_goal
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
        partners = _partners(task.train, rows, transforms, seed)
        labels = F.one_hot(task.train.labels_of(torch.cat([rows, partners])), len(task.train.classes)).float()
        clean = task.train.floats(partners)
        objectives = [
            _Matching(self, model, list(goal.values()), len(task.targets), labels, clean, transforms)
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


def _partners(train: ImageData, rows: Tensor, transforms: Sequence[BatchTransform], seed: int) -> Tensor:
    """Returns as many clean rows as there are poisons where the augmentation mixes rows, else none."""
    if not any(transform.mixes_rows for transform in transforms):
        return rows[:0]
    clean = train.drop(rows).ids if len(rows) < len(train) else train.ids
    return clean[torch.randint(len(clean), (len(rows),), generator=stream(seed, "partners")).to(clean.device)]


class _Matching:
    """How far the summed poison gradient is from the target's gradient, for one model.

    The objective depends on the poisons only through their summed parameter gradient. So where the poisons do not fit
    into one graph, a first-order pass collects that sum, and the derivative of the loss with respect to it turns each
    micro-batch into one vector-Jacobian product: the exact objective in the memory of one micro-batch. Each micro-batch
    is augmented on its own, with the same draws in both passes.

    Args:
        attack: whose settings hold.
        model: in eval mode.
        goal: the gradient of the targets' summed loss, one tensor per parameter.
        targets: how many there are.
        labels: [P + R, K] of the poisons and their clean partners.
        partners: [R, C, H, W] clean images, one per poison (R = P) or none, for augmentations that mix rows.
        transforms: the victim's augmentation.
    """

    def __init__(
        self,
        attack: WitchesBrew,
        model: nn.Module,
        goal: list[Tensor],
        targets: int,
        labels: Tensor,
        partners: Tensor,
        transforms: Sequence[BatchTransform],
    ) -> None:
        self.model, self.labels, self.partners, self.transforms = model, labels, partners, transforms
        self.attack, self.size = attack, attack.micro_batch
        # As long as the poisons' summed gradient where the two means are equal; a cosine does not see the length.
        self.goal = goal if attack.loss == "cosine" else list(torch._foreach_mul(goal, len(labels) / targets))
        self.parameters = list(trainable(model).values())

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        state = rng.get_state()

        def evaluate(size: int) -> tuple[Tensor, Tensor]:
            self.size = size
            rng.set_state(state)
            return (self._whole if len(self.labels) <= size else self._pieces)(images.detach(), rng)

        return shrinking(evaluate, self.size)

    def _whole(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        everything = torch.arange(len(images), device=images.device)
        gradients = self._gradients(images.requires_grad_(), everything, rng, graph=True)
        with torch.no_grad():
            value, slope = self._mismatch(gradients)
        (towards,) = torch.autograd.grad(gradients, images, slope)
        return value, towards

    def _pieces(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        number = -(-len(self.labels) // self.size)
        parts = torch.arange(len(images), device=images.device).chunk(number)
        seeds = torch.randint(2**62, (len(parts),), generator=rng).tolist()
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for part, seed in zip(parts, seeds, strict=True):
            draws = torch.Generator().manual_seed(seed)
            torch._foreach_add_(total, list(self._gradients(images[part], part, draws, graph=False)))
        value, slope = self._mismatch(total)
        towards = torch.empty_like(images)
        for part, seed in zip(parts, seeds, strict=True):
            leaf, draws = images[part].requires_grad_(), torch.Generator().manual_seed(seed)
            towards[part] = torch.autograd.grad(self._gradients(leaf, part, draws, graph=True), leaf, slope)[0]
        return value, towards

    def _mismatch(self, total: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the loss [] of the summed poison gradient, and its derivative with respect to that."""
        if self.attack.loss == "squared-error":
            return squared_error_slope(total, self.goal)
        value, slope = cosine_slope(total, self.goal)
        return 1 - value, list(torch._foreach_neg(slope))

    def _gradients(self, images: Tensor, part: Tensor, rng: torch.Generator, *, graph: bool) -> tuple[Tensor, ...]:
        """Returns the parameter gradient of the summed loss of these poisons, number `part` of all, augmented."""
        with torch.enable_grad():
            batch = self._augmented(images, part, rng)
            with computing_in(self.attack.precision, images.device):
                logits = self.model(batch.images)
            loss = F.cross_entropy(logits.to(batch.targets.dtype), batch.targets, reduction="sum")
        return torch.autograd.grad(loss, self.parameters, create_graph=graph)

    def _augmented(self, images: Tensor, part: Tensor, rng: torch.Generator) -> Batch:
        batch = Batch(images, self.labels[part], part, 1.0)
        if len(self.partners):
            beside = len(self.labels) - len(self.partners) + part
            labels = torch.cat([batch.targets, self.labels[beside]])
            batch = Batch(torch.cat([images, self.partners[part]]), labels, torch.cat([part, beside]), 1.0)
        return transformed(batch, self.transforms, self.model, rng)
