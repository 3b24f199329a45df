"""Inverting Gradients by hand: signed Adam on one minus the cosine plus total variation, in the box of pixels.

Reference: Geiping, Bauermeister, Dröge, Moeller. "Inverting Gradients". NeurIPS 2020. arXiv 2003.14053.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

LEARNING_RATE = 0.025
TOTAL_VARIATION = 1e-2


def start(shape: Sequence[int]) -> Tensor:
    """Where every loop begins."""
    return 0.5 + 0.25 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def distance(found: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of two gradients, tensor by tensor as one writes it."""
    product = sum((a * b).sum() for a, b in zip(found, goal, strict=True))
    lengths = sum(a.pow(2).sum() for a in found), sum(b.pow(2).sum() for b in goal)
    return 1 - product / (torch.as_tensor(lengths[0]).sqrt() * torch.as_tensor(lengths[1]).sqrt())


def varied(images: Tensor) -> Tensor:
    """Total variation."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[:, :, 1:] - images[:, :, :-1]).abs().mean()


def invert_plain(network: nn.Module, goal: Sequence[Tensor], labels: Tensor, images: Tensor, steps: int) -> float:
    """As one writes it first: `backward` through everything, torch's Adam on the sign, a schedule, a clamp."""
    parameters = list(network.parameters())
    candidate = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([candidate], lr=LEARNING_RATE)
    drops = [int(steps * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=drops, gamma=0.1)
    value = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        network.zero_grad()
        loss = functional.cross_entropy(network(candidate), labels)
        value = distance(torch.autograd.grad(loss, parameters, create_graph=True), goal)
        (value + TOTAL_VARIATION * varied(candidate)).backward()
        assert candidate.grad is not None
        candidate.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            candidate.clamp_(0, 1)
    return float(value.detach())


def invert_by_hand(
    network: nn.Module,
    goal: Sequence[Tensor],
    labels: Tensor,
    images: Tensor,
    steps: int,
    *,
    bf16: bool = False,
    channels_last: bool = False,
) -> float:
    """The same search, differentiated in the pixels alone, on one flat vector of gradients, with Adam written out."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    parameters = list(network.parameters())
    unit = torch.cat([part.flatten() for part in goal])
    unit = unit / unit.norm()
    candidate = images.clone(memory_format=layout)
    mean, square = torch.zeros_like(candidate), torch.zeros_like(candidate)
    value = torch.tensor(0.0)
    for step in range(steps):
        leaf = candidate.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            logits = network(leaf)
        loss = functional.cross_entropy(logits.float(), labels)
        flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=True)])
        value = 1 - flat @ unit / flat.norm()
        (slope,) = torch.autograd.grad(value + TOTAL_VARIATION * varied(leaf), leaf)
        with torch.no_grad():
            sign = slope.sign_()
            mean.mul_(0.9).add_(sign, alpha=0.1)
            square.mul_(0.999).addcmul_(sign, sign, value=0.001)
            rate = LEARNING_RATE * 0.1 ** sum(step / steps >= share for share in (3 / 8, 5 / 8, 7 / 8))
            spread = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            candidate = candidate.detach().addcdiv(mean, spread, value=-rate / (1 - 0.9 ** (step + 1))).clamp_(0, 1)
    return float(value.detach())
