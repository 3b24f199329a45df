"""Matching of gradients: poisons whose training gradient points where another gradient points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.classifier import Precision, computing_in
from mithridate.core.data import ImageData
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import cosine_slope, squared_error_slope
from mithridate.core.memory import shrinking
from mithridate.core.seeds import stream
from mithridate.core.transforms import transformed


class Settings(Protocol):
    """What an attack that matches gradients lets its user choose."""

    @property
    def loss(self) -> Literal["cosine", "squared-error"]:
        """What is small where gradients match."""
        ...

    @property
    def precision(self) -> Precision:
        """Number format of the double backward pass."""
        ...

    @property
    def micro_batch(self) -> int:
        """Images per graph."""
        ...


def partners_of(train: ImageData, rows: Tensor, transforms: Sequence[BatchTransform], seed: int) -> Tensor:
    """Returns as many clean rows as there are poisons where the augmentation mixes rows, else none."""
    if not any(transform.mixes_rows for transform in transforms):
        return rows[:0]
    clean = train.drop(rows).ids if len(rows) < len(train) else train.ids
    return clean[torch.randint(len(clean), (len(rows),), generator=stream(seed, "partners")).to(clean.device)]


class Matching:
    """How far the summed poison gradient is from the target's gradient, for one model.

    The objective depends on the poisons only through their summed parameter gradient. So where the poisons do not fit
    into one graph, a first-order pass collects that sum, and the derivative of the loss with respect to it turns each
    micro-batch into one vector-Jacobian product: the exact objective in the memory of one micro-batch. Each micro-batch
    is augmented on its own, with the same draws in both passes.

    Args:
        settings: loss, number format and size of a micro-batch.
        model: in eval mode.
        goal: the gradient of the targets' summed loss, one tensor per parameter.
        targets: how many there are.
        labels: [P + R, K] of the poisons and their clean partners.
        partners: [R, C, H, W] clean images, one per poison (R = P) or none, for augmentations that mix rows.
        transforms: the victim's augmentation.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        goal: list[Tensor],
        targets: int,
        labels: Tensor,
        partners: Tensor,
        transforms: Sequence[BatchTransform],
    ) -> None:
        self.model, self.labels, self.partners, self.transforms = model, labels, partners, transforms
        self.settings, self.size = settings, settings.micro_batch
        # As long as the poisons' summed gradient where the two means are equal; a cosine does not see the length.
        self.goal = goal if settings.loss == "cosine" else list(torch._foreach_mul(goal, len(labels) / targets))
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
        if self.settings.loss == "squared-error":
            return squared_error_slope(total, self.goal)
        value, slope = cosine_slope(total, self.goal)
        return 1 - value, list(torch._foreach_neg(slope))

    def _gradients(self, images: Tensor, part: Tensor, rng: torch.Generator, *, graph: bool) -> tuple[Tensor, ...]:
        """Returns the parameter gradient of the summed loss of these poisons, number `part` of all, augmented."""
        with torch.enable_grad():
            batch = self._augmented(images, part, rng)
            with computing_in(self.settings.precision, images.device):
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
