"""Batch transforms: differentiable, drawn from a generator, written for one batch.

Victim and attacker use the same objects: whoever holds the generator replays the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mithridate.core.batch import Batch, BatchTransform


def _draw(batch: Batch, rng: torch.Generator) -> Tensor:
    return torch.rand(len(batch.images), generator=rng).to(batch.images.device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Flip(BatchTransform):
    """Mirrors each image left to right with a probability.

    >>> batch = Batch(torch.tensor([[[[0.0, 1.0]]]]), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Flip(probability=1.0)(batch, nn.Identity(), torch.Generator()).images
    tensor([[[[1., 0.]]]])
    """

    probability: float = 0.5

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        mirrored = (_draw(batch, rng) < self.probability)[:, None, None, None]
        return batch._replace(images=torch.where(mirrored, batch.images.flip(3), batch.images))


@dataclass(frozen=True, kw_only=True)
class Shift(BatchTransform):
    """Moves each image by whole pixels, uniformly in both directions; what moves in is black.

    >>> batch = Batch(torch.ones(1, 3, 8, 8), torch.eye(1), torch.tensor([0]), 0.0)
    >>> Shift(share=0.25)(batch, nn.Identity(), torch.Generator()).images.shape
    torch.Size([1, 3, 8, 8])
    """

    share: float = 0.125
    """Largest move as a share of the side: 4 pixels of 32, 1 of 8."""

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        b, c, h, w = batch.images.shape
        reach_y, reach_x = round(self.share * h), round(self.share * w)
        dy = (torch.rand(b, generator=rng) * (2 * reach_y + 1)).long().to(batch.images.device, non_blocking=True)
        dx = (torch.rand(b, generator=rng) * (2 * reach_x + 1)).long().to(batch.images.device, non_blocking=True)
        # One gather of whole pixels (all channels together) from the padded images, which are laid out channels last.
        pixels = batch.images.permute(0, 2, 3, 1)
        padded = nn.functional.pad(pixels, (0, 0, reach_x, reach_x, reach_y, reach_y))
        wide, tall = w + 2 * reach_x, h + 2 * reach_y
        device = batch.images.device
        y = dy[:, None] + torch.arange(h, device=device) + tall * torch.arange(b, device=device)[:, None]
        x = dx[:, None] + torch.arange(w, device=device)
        index = (y[:, :, None] * wide + x[:, None, :]).flatten()
        moved = padded.reshape(b * tall * wide, c).index_select(0, index)
        return batch._replace(images=moved.view(b, h, w, c).permute(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Mixup(BatchTransform):
    """Replaces every image by a weighted mean of k images of its batch, labels likewise.

    One weight vector per batch, Dirichlet(alpha, ..., alpha); the first term is the batch in its own order and the
    others are random permutations of it, so k = 2 is the classic rule.

    Reference: Zhang, Cisse, Dauphin, Lopez-Paz. "mixup: Beyond Empirical Risk Minimization". ICLR 2018. arXiv
    1710.09412; k-way form: Borgnia et al. "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an
    Accuracy Tradeoff". ICASSP 2021. arXiv 2011.09527.

    Raises:
        ValueError: fewer than 2 images per mixture, or a concentration that is not positive.

    >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.eye(4), torch.arange(4), 0.0)
    >>> torch.allclose(Mixup()(batch, nn.Identity(), torch.Generator()).targets.sum(1), torch.ones(4))
    True
    """

    mixes_rows: ClassVar[bool] = True
    k: int = 2
    """Images per mixture."""
    alpha: float = 1.0
    """Concentration of the weights: small values leave one image dominant."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"mixup k is {self.k}; a mixture needs at least 2 images")
        if not self.alpha > 0:
            raise ValueError(f"mixup alpha is {self.alpha}; it must be positive (1.0 draws the weights uniformly)")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        device = batch.images.device
        seed = int(torch.randint(2**62, (1,), generator=rng))  # torch has no Dirichlet draw that takes a generator
        drawn = np.random.default_rng(seed).dirichlet([self.alpha] * self.k)
        weights = torch.from_numpy(drawn).float().to(device, non_blocking=True)
        images, targets = weights[0] * batch.images, weights[0] * batch.targets
        for weight in weights[1:]:
            order = torch.randperm(len(batch.images), generator=rng).to(device, non_blocking=True)
            images = images + weight * batch.images[order]
            targets = targets + weight * batch.targets[order]
        return batch._replace(images=images, targets=targets)
