"""Inverting Gradients: images whose gradient points where the shared one points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mithridate.core.balls import AnyImage
from mithridate.core.perturbation import minimise
from mithridate.core.updates import SignedAdam
from mithridate.inversion.attack import Attempt, Search, grey_noise, labels_of
from mithridate.inversion.labels import Recovery
from mithridate.inversion.leak import Leak
from mithridate.inversion.matching import Matching, penalised, prepared
from mithridate.inversion.priors import total_variation


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Search):
    """Minimise one minus the cosine to what was shared, plus total variation, by signed Adam in the box of pixels.

    An update of local training is matched by differentiating through the client's own steps. All images of a batch are
    searched together.

    Reference: Geiping, Bauermeister, Dröge, Moeller. "Inverting Gradients - How easy is it to break privacy in
    federated learning?" NeurIPS 2020. arXiv 2003.14053. Deviations: pixels in [0, 1], where the published step 0.1 for
    normalised pixels is 0.025; restarts are compared by the cosine alone, without total variation.

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> leak = Client().share(model, images, torch.tensor([2]), seed=0)
    >>> found = InvertingGradients(steps=20).reconstruct(leak, seed=0)
    >>> 0 < found.value < 1
    True
    """

    steps: int = 4000
    """Iterations."""
    restarts: int = 1
    """Independent starts; the one with the largest cosine is kept."""
    lr: float = 0.025
    """Step of signed Adam in pixels of [0, 1]; it falls by 10 at 3/8, 5/8 and 7/8 of the steps."""
    total_variation: float = 1e-4
    """Weight of the total variation, for pixels in [0, 1]."""
    largest: int | None = None
    """Compare only the so many parameter tensors of the largest norm; None: all."""
    labels: Recovery = "bias-corrected"
    """How labels are recovered where the server does not know them."""

    def attempt(self, leak: Leak, rng: torch.Generator) -> Attempt:
        """Searches from one start.

        Raises:
            ValueError: Labels that are not known and cannot be recovered.
        """
        labels = labels_of(leak, self.labels)
        matching = Matching(leak, leak.targets(labels), "cosine", self.largest)
        begin = grey_noise(leak, rng)
        with leak.mode():
            objective = penalised(matching, [(self.total_variation, total_variation)])
            found = minimise(
                prepared(objective, begin, self.steps),
                begin,
                AnyImage(),
                steps=self.steps,
                update=SignedAdam(lr=self.lr),
                pixels="float",
                label="inverting gradients",
                rng=rng,
            )
            value, _ = matching(found.images)
        return Attempt(found.images, labels, value)
