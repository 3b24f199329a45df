"""Inverting Gradients with later settings: tiled start, soft signs, cosine decay, inputs of the last layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.balls import AnyImage
from mithridate.core.perturbation import minimise
from mithridate.core.updates import CosineAdam
from mithridate.inversion.attack import Attempt, Search, grey_noise, labels_of
from mithridate.inversion.attacks.analytic_linear import EXACT, features_distance, solved
from mithridate.inversion.labels import Recovery
from mithridate.inversion.leak import Leak
from mithridate.inversion.linear import Stack, stack_of
from mithridate.inversion.matching import Matching, Prior, penalised, prepared
from mithridate.inversion.priors import colour_total_variation


@dataclass(frozen=True, kw_only=True)
class InvertingGradientsModern(Search):
    """Inverting Gradients with what was learnt about its search since.

    The start repeats one small random patch over the image; steps are soft signs with a warm-up and a cosine decay; the
    total variation also looks at the differences of colours; and where the inputs of the last layer can be solved for
    (one image, or a batch with different labels), the images' own inputs are drawn to them.

    Reference: the method is that of Geiping et al. (arXiv 2003.14053); these settings follow the configuration "modern"
    of the authors' later toolkit (github.com/JonasGeiping/breaching), which no paper describes. Deviations: pixels in
    [0, 1], inputs of the last layer solved for exactly where that is possible.

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> leak = Client().share(model, images, torch.tensor([2]), seed=0)
    >>> InvertingGradientsModern(steps=3).reconstruct(leak, seed=0).images.shape
    torch.Size([1, 1, 4, 4])
    """

    steps: int = 4000
    """Iterations."""
    restarts: int = 1
    """Independent starts; the one with the largest cosine is kept."""
    lr: float = 0.025
    """Largest step in pixels of [0, 1]."""
    total_variation: float = 1e-4
    """Weight of the total variation over pixels and colours."""
    features: float = 0.1
    """Weight of the squared distance of the last layer's inputs from those that the gradient tells."""
    tile: int = 4
    """Side of the patch that the start repeats; 0: noise in every pixel."""
    labels: Recovery = "bias-corrected"
    """How labels are recovered where the server does not know them."""

    def attempt(self, leak: Leak, rng: torch.Generator) -> Attempt:
        """Searches from one start."""
        labels = labels_of(leak, self.labels)
        matching = Matching(leak, leak.targets(labels))
        terms: list[tuple[float, Prior]] = [(self.total_variation, colour_total_variation)]
        if self.features and (known := last_inputs(leak, labels)) is not None:
            terms.append((self.features, features_distance(leak, *known)))
        begin = _tiled(grey_noise(leak, rng), self.tile) if self.tile else grey_noise(leak, rng)
        with leak.mode():
            found = minimise(
                prepared(penalised(matching, terms), begin, self.steps),
                begin,
                AnyImage(),
                steps=self.steps,
                update=CosineAdam(lr=self.lr, warmup=min(0.5, 50 / self.steps), sign="soft"),
                pixels="float",
                label="inverting gradients",
                rng=rng,
            )
            value, _ = matching(found.images)
        return Attempt(found.images, labels, value)


def last_inputs(leak: Leak, labels: Tensor) -> tuple[Stack, Tensor] | None:
    """Returns the last layer and its inputs [B, D], solved for; None where the equations cannot be solved."""
    if leak.mixing is not None or leak.sharing.as_gradient() != 1:
        return None
    try:
        whole = stack_of(leak.model, leak.shape)
        last = Stack(whole.layers[-1:], (), None, None)
        inputs, residual = solved(leak, last, labels)
    except ValueError:  # no Linear at the end, or repeated labels: the search goes on without
        return None
    return (last, inputs.to(leak.dtype)) if residual <= EXACT else None


def _tiled(noise: Tensor, side: int) -> Tensor:
    """Repeats the upper left patch of each image over the image."""
    height, width = noise.shape[2:]
    repeats = (1, 1, -(-height // side), -(-width // side))
    return noise[:, :, :side, :side].repeat(repeats)[:, :, :height, :width].contiguous()
