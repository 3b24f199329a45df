"""Matching: how far what a candidate batch would have shared is from what was shared, as an objective of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mithridate.core.gradients import cosine_slope, squared_error_slope
from mithridate.core.perturbation import Objective
from mithridate.core.tracing import traced
from mithridate.inversion.leak import Leak

Distance = Literal["cosine", "squared-error"]
PAYS_FROM = 300
"""Steps of a search from which recording its objective pays."""
Prior = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, C, H, W] -> (value [], slope like the images); draws nothing."""


class Matching:
    """The distance of shared numbers: an objective of a candidate's pixels. Call it within ``leak.mode()``.

    The derivative of the distance in the candidate's gradient is known in closed form, so its derivative in the pixels
    is one vector-Jacobian product of that gradient.

    Args:
        leak: What was shared; what it knows of filters and mixing is used.
        targets: [B, K] of the candidate.
        distance: One minus the cosine of the whole vectors, or half their squared distance relative to what was shared.
        largest: Compare only so many parameter tensors, those of the largest norm; None: all.

    Raises:
        ValueError: No parameter tensor to compare.
    """

    def __init__(self, leak: Leak, targets: Tensor, distance: Distance = "cosine", largest: int | None = None) -> None:
        self.leak, self.targets, self.distance = leak, targets, distance
        self.sent = leak.tensors
        if largest is not None and largest < 1:
            raise ValueError(f"largest is {largest}; at least one parameter tensor must be compared")
        sizes = torch.stack([part.norm() for part in self.sent])
        self.chosen = sorted(sizes.argsort(descending=True)[:largest].tolist())

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            candidate, sent = self.compared(self.leak.compute(leaf, self.targets))
        value, slope = self.mismatch(candidate.detach(), sent)
        (towards,) = torch.autograd.grad(candidate, leaf, slope)
        return value, towards

    def compared(self, candidate: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What was computed of a candidate and what was sent, [D] each, as far as they are compared."""
        sent = self.sent
        for filter in self.leak.filters:
            candidate, sent = filter.seen(candidate, sent)
        a, b = (torch.cat([side[i].flatten() for i in self.chosen]) for side in (candidate, sent))
        return a, b

    @torch.no_grad()
    def mismatch(self, candidate: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        """The distance [] of two vectors and its derivative with respect to the first."""
        if self.distance == "squared-error":
            value, slope = squared_error_slope([candidate], [sent])
            return value, slope[0]
        value, slope = cosine_slope([candidate], [sent])
        return 1 - value, -slope[0]


def penalised(objective: Prior, priors: Sequence[tuple[float, Prior]]) -> Prior:
    """Adds weighted priors to a function of images; those of weight 0 are left out."""
    wanted = [(weight, prior) for weight, prior in priors if weight]

    def total(images: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = objective(images)
        for weight, prior in wanted:
            more, slope = prior(images)
            value, gradient = value + weight * more, gradient + weight * slope
        return value, gradient

    return total


def prepared(function: Prior, example: Tensor, steps: int) -> Objective:
    """Makes an objective for `minimise` of a function of images that draws nothing; records it where that pays."""
    fast = traced(function, example) if steps >= PAYS_FROM else function
    return lambda images, rng: fast(images)
