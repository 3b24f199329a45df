"""GradInversion: gradients and the BatchNorm statistics of natural images, matched together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mithridate.core.balls import AnyImage
from mithridate.core.batchnorm import watching_statistics
from mithridate.core.perturbation import minimise
from mithridate.core.updates import CosineAdam
from mithridate.inversion.attack import Attempt, Search, grey_noise, labels_of
from mithridate.inversion.labels import Recovery
from mithridate.inversion.leak import Leak
from mithridate.inversion.matching import Distance, Matching, penalised, prepared
from mithridate.inversion.priors import squared_length, total_variation

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance [C] of what comes to each BatchNorm, by the layer's name."""


@dataclass(frozen=True, kw_only=True)
class GradInversion(Search):
    """Match gradients while what comes to every BatchNorm keeps the mean and variance of its training images.

    Where the client sent the statistics of its own batch, those are matched instead of the running ones.

    Reference: Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov. "See through Gradients: Image Batch Recovery via
    GradInversion". CVPR 2021. arXiv 2104.07586. Deviations: no consistency between registered groups of restarts (their
    registration network is not published); gradients are compared by the cosine unless told otherwise; a box of pixels.

    Raises:
        ValueError: A model without BatchNorm2d that keeps statistics.

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ... ).eval()
    >>> leak = Client().share(model, images, torch.tensor([2]), seed=0)
    >>> GradInversion(steps=3).reconstruct(leak, seed=0).images.shape
    torch.Size([1, 1, 4, 4])
    """

    steps: int = 4000
    """Iterations."""
    restarts: int = 1
    """Independent starts; the one that matches gradients best is kept."""
    lr: float = 0.025
    """Largest step of Adam in pixels of [0, 1]; cosine decay after a warm-up of 50 steps."""
    distance: Distance = "cosine"
    """How gradients are compared."""
    statistics: float = 0.1
    """Weight of the distance of BatchNorm statistics."""
    total_variation: float = 1e-4
    """Weight of the total variation."""
    length: float = 1e-6
    """Weight of the squared distance from middle grey."""
    langevin: float = 0.01
    """Deviation of the noise added to each step, in steps."""
    labels: Recovery = "minimum-entry"
    """How labels are recovered where the server does not know them."""

    def attempt(self, leak: Leak, rng: torch.Generator) -> Attempt:
        """Searches from one start."""
        labels = labels_of(leak, self.labels)
        matching = Matching(leak, leak.targets(labels), self.distance)
        wanted = leak.statistics or running_statistics(leak.model)
        terms = [
            (self.statistics, statistics_distance(leak, wanted)),
            (self.total_variation, total_variation),
            (self.length, squared_length),
        ]
        begin = grey_noise(leak, rng)
        with leak.mode():
            found = minimise(
                prepared(penalised(matching, terms), begin, self.steps),
                begin,
                AnyImage(),
                steps=self.steps,
                update=CosineAdam(lr=self.lr, warmup=min(0.5, 50 / self.steps), langevin=self.langevin),
                pixels="float",
                label="gradinversion",
                rng=rng,
            )
            value, _ = matching(found.images)
        return Attempt(found.images, labels, value)


def running_statistics(model: nn.Module) -> Statistics:
    """Returns the mean and variance that each BatchNorm of a model has kept.

    Raises:
        ValueError: It has none.

    >>> sorted(running_statistics(nn.Sequential(nn.BatchNorm2d(2))))
    ['0']
    """
    found = {
        name: (part.running_mean, part.running_var)
        for name, part in model.named_modules()
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None
    }
    if not found:
        raise ValueError(
            "gradinversion matches the statistics of BatchNorm2d layers, but the model has none that keeps any; use "
            "inverting-gradients"
        )
    return found


def statistics_distance(leak: Leak, wanted: Statistics) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns the distance [] of BatchNorm statistics, and its slope, as a function of images.

    Euclidean per layer, means and variances each relative to the length of what is wanted, averaged over layers: so
    layers of all widths and depths count alike.
    """

    def distance(images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad(), watching_statistics(leak.model) as seen:
            leak.model(leak.mixed(leaf))
            parts = [
                (found - goal).norm() / goal.norm().clamp_min(1e-6)
                for name in wanted
                for found, goal in zip(seen[name], wanted[name], strict=True)
            ]
            value = torch.stack(parts).mean()
            (slope,) = torch.autograd.grad(value, leaf)
        return value.detach(), slope

    return distance
