"""Deep Leakage from Gradients: images and labels whose gradient equals the shared one, by L-BFGS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mithridate.core.gradients import squared_error_slope
from mithridate.core.progress import track
from mithridate.inversion.attack import Attempt, Search, labels_of
from mithridate.inversion.leak import Leak
from mithridate.inversion.matching import Matching


@dataclass(frozen=True, kw_only=True)
class DeepLeakage(Search):
    """Minimise the squared distance of gradients over pixels and soft labels together, with L-BFGS and no bounds.

    Works on networks with smooth activations; with ReLU the second derivatives are zero almost everywhere, and L-BFGS
    finds little. The iterate with the smallest distance is kept, because L-BFGS without a line search may leave again.

    Reference: Zhu, Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. arXiv 1906.08935. Deviations: the distance is
    relative to the length of what was shared; the search runs in float64 unless told otherwise; images are clipped to
    [0, 1] at the end.

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 3))
    >>> leak = Client().share(model, images, torch.tensor([2]), seed=0)
    >>> DeepLeakage(steps=2).reconstruct(leak, seed=0).images.shape
    torch.Size([1, 1, 4, 4])
    """

    steps: int = 300
    """Steps of L-BFGS."""
    evaluations: int = 20
    """Gradients per step, at most."""
    restarts: int = 1
    """Independent starts; the one with the smallest distance is kept."""
    lr: float = 1.0
    """Length of a step of L-BFGS."""
    line_search: bool = False
    """Whether each step is made to fulfil the strong Wolfe conditions."""
    joint: bool = True
    """Whether labels are searched with the images; else they are known or recovered as by other attacks."""
    precision: Literal["float32", "float64"] = "float64"
    """Number format of the search."""

    def attempt(self, leak: Leak, rng: torch.Generator) -> Attempt:
        """Searches from one start of Gaussian noise.

        Raises:
            ValueError: Labels that are not known and cannot be recovered, where they are not searched.
        """
        exact = leak.to(leak.device, getattr(torch, self.precision))
        images = (0.5 + 0.25 * torch.randn(leak.count, *leak.shape, generator=rng)).to(exact.device, exact.dtype)
        if self.joint:
            logits = torch.randn(leak.count, leak.classes, generator=rng).to(exact.device, exact.dtype)
        else:
            logits = exact.targets(labels_of(exact, "bias-corrected"))
        search = _Search(exact, images, logits, joint=self.joint)
        with exact.mode():
            search.run(self)
        found = search.best_logits.argmax(1)
        return Attempt(search.best_images.to(leak.dtype), found, torch.tensor(search.lowest))


class _Search:
    """L-BFGS over images and, where `joint`, the logits of their labels; remembers the best pair."""

    def __init__(self, leak: Leak, images: Tensor, logits: Tensor, *, joint: bool) -> None:
        self.leak, self.joint = leak, joint
        self.images = images.requires_grad_()
        self.logits = logits.requires_grad_(joint)
        self.matching = Matching(leak, logits.detach(), "squared-error")
        self.lowest, self.best_images, self.best_logits = math.inf, images.detach().clone(), logits.detach().clone()

    def run(self, settings: DeepLeakage) -> None:
        free = [self.images, self.logits] if self.joint else [self.images]
        optimizer = torch.optim.LBFGS(
            free,
            lr=settings.lr,
            max_iter=settings.evaluations,
            line_search_fn="strong_wolfe" if settings.line_search else None,
        )
        for _ in track(range(settings.steps), "deep leakage"):
            before = self.lowest
            optimizer.step(self.value)
            if not all(bool(part.isfinite().all()) for part in free) or (self.lowest == 0 and before == 0):
                return

    def value(self) -> Tensor:
        """The distance [] at the present point; its gradient goes into `grad`, as torch's optimisers want it."""
        free = [self.images, self.logits] if self.joint else [self.images]
        with torch.enable_grad():
            targets = self.logits.softmax(1) if self.joint else self.logits
            candidate, sent = self.matching.compared(self.leak.compute(self.images, targets))
        with torch.no_grad():
            value, slope = squared_error_slope([candidate], [sent])
        for part, gradient in zip(free, torch.autograd.grad(candidate, free, slope), strict=True):
            part.grad = gradient.contiguous()  # torch's L-BFGS asks for one stretch of memory
        if float(value) < self.lowest:
            self.lowest = float(value)
            self.best_images, self.best_logits = self.images.detach().clone(), self.logits.detach().clone()
        return value
