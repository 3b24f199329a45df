"""Reversed triggers: the smallest change that turns any image into a class, for each, and how odd its size is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.data import ImageData
from mithridate.core.ensemble import in_mode
from mithridate.core.progress import track
from mithridate.core.seeds import derive, stream
from mithridate.core.states import EVALUATION_BATCH

GROWTH, PATIENCE = 1.5, 5
"""By what the weight of the size grows after so many steps of success in a row (it falls by its power 1.5)."""


class Reversed(NamedTuple):
    """One trigger for each class: x becomes (1 - mask) x + mask pattern."""

    masks: Tensor
    """[K, 1, H, W] in [0, 1]."""
    patterns: Tensor
    """[K, C, H, W] in [0, 1]."""
    sizes: Tensor
    """[K] sum of each mask in pixels; all pixels of the image for a class that no trigger was found for."""

    def put(self, images: Tensor, label: int) -> Tensor:
        """Returns images [B, C, H, W] with the trigger of one class on each."""
        return torch.lerp(images, self.patterns[label], self.masks[label])


def reversed_triggers(
    model: nn.Module, clean: ImageData, *, steps: int, success: float, batch_size: int = 64, seed: int
) -> Reversed:
    """Searches for each class the smallest mask and pattern that turn images of other classes into it.

    Of all steps at which a trigger worked, each class keeps the one with the smallest mask. Classes are searched side
    by side on the same images, each from a start of its own.

    Reference: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao. "Neural Cleanse: Identifying and Mitigating Backdoor Attacks
    in Neural Networks". IEEE S&P 2019, section 4 (eq. 2-3). Deviations: the size's weight is one of the share of the
    image that the mask covers, so that it does not depend on the resolution, and starts at 1; images of the class
    itself do not count; steps are single batches.

    Args:
        model: With K logits; used in eval mode, not changed.
        clean: Clean images of all classes.
        steps: Adam steps.
        success: Share of a batch that must come out as the class.
        batch_size: Images of each step, for each class.
        seed: Of the first triggers and of the batches.
    """
    classes, batch = len(clean.classes), min(batch_size, len(clean))
    side_by_side = max(1, EVALUATION_BATCH // batch)
    groups = torch.arange(classes, device=clean.device).split(side_by_side)
    with in_mode(model, train=False):
        found = [_searched(model, clean, group, steps, success, batch, seed) for group in groups]
    masks, patterns, sizes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Reversed(masks, patterns, sizes)


def _searched(
    model: nn.Module, clean: ImageData, labels: Tensor, steps: int, success: float, batch: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    channels, height, width = clean.shape
    draws = stream(derive(seed, "batches"), "reversal")
    starts = [torch.randn(1 + channels, height, width, generator=stream(seed, "reversal", c)) for c in labels.tolist()]
    free = torch.stack(starts).to(clean.device).requires_grad_()  # mask and pattern, before a sigmoid
    adam = torch.optim.Adam([free], lr=0.2, betas=(0.5, 0.9))  # a sigmoid is half as steep as the paper's tanh: 2 x 0.1
    weight = torch.ones(len(labels), device=clean.device)
    run = torch.zeros(len(labels), device=clean.device)  # steps of success in a row, or minus those of failure
    best, sizes = free.detach().sigmoid(), torch.full_like(weight, float(height * width))
    for _ in track(range(steps), "reversing triggers"):
        rows = clean.ids[torch.randperm(len(clean), generator=draws)[:batch].to(clean.device)]
        worked, loss, shown = _tried(model, clean.floats(rows), clean.labels_of(rows), labels, free)
        size = shown[:, 0].flatten(1).sum(1)
        total = loss + weight * size / (height * width)
        (free.grad,) = torch.autograd.grad(total.sum(), free)
        with torch.no_grad():
            fine = worked >= success
            smaller = fine & (size < sizes)
            best = torch.where(smaller[:, None, None, None], shown, best)
            sizes = torch.where(smaller, size, sizes)
            run = torch.where(fine, run.clamp_min(0) + 1, run.clamp_max(0) - 1)
            weight = torch.where(run >= PATIENCE, weight * GROWTH, weight)
            weight = torch.where(run <= -PATIENCE, weight / GROWTH**1.5, weight)
            run = torch.where(run.abs() >= PATIENCE, 0, run)
        adam.step()
    return best[:, :1], best[:, 1:], sizes


def _tried(
    model: nn.Module, images: Tensor, true: Tensor, labels: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Share of other classes' images that come out as each label [G], their mean loss [G], and what is tried."""
    shown = free.sigmoid()
    mask, pattern = shown[:, None, :1], shown[:, None, 1:]
    logits = model((images + mask * (pattern - images)).flatten(0, 1)).float()
    wanted = labels[:, None].expand(-1, len(images))
    others = (wanted != true).float()
    losses = F.cross_entropy(logits, wanted.flatten(), reduction="none").view_as(others)
    hits = (logits.argmax(1).view_as(wanted) == wanted).float()
    count = others.sum(1).clamp_min(1)
    return (hits * others).sum(1) / count, (losses * others).sum(1) / count, shown


def anomaly_index(sizes: Tensor) -> Tensor:
    """Says how far each size [K] lies below the median, in median absolute deviations of a normal distribution, [K].

    Above 2 a class is suspicious: its trigger is smaller than chance explains. Where most sizes are equal, one below
    them is infinitely odd.

    >>> anomaly_index(torch.tensor([9.0, 10.0, 11.0, 10.0, 1.0])).round(decimals=2).tolist()
    [0.67, 0.0, -0.67, 0.0, 6.07]
    """
    below = sizes.double().quantile(0.5) - sizes.double()
    spread = 1.4826 * below.abs().quantile(0.5)
    return torch.where(below == 0, 0.0, below / spread)
