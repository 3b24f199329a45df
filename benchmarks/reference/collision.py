"""Feature collision by hand: forward-backward splitting towards the target's features.

Reference: Shafahi et al. "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks". NeurIPS 2018.
arXiv 1804.00792, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Colliding:
    """Settings that all loops share."""

    steps: int
    beta: float
    """Weight of the distance to the base, scaled for the dimensions."""
    learning_rate: float = 0.05


def collide_plain(network: nn.Module, base: Tensor, target: Tensor, colliding: Colliding) -> tuple[Tensor, float]:
    """As published code does it: float32, NCHW, the target's features anew, all gradients, a pass for the accept test.

    Args:
        network: Trained, from images in [0, 1] to features [B, D].
        base: [P, C, H, W] in [0, 1].
        target: [1, C, H, W] in [0, 1].
        colliding: Settings.

    Returns:
        Poisoned images, and their mean squared feature distance before the last step.
    """
    network, poisons = network.eval(), base.clone()
    rates = torch.full((len(base), 1, 1, 1), colliding.learning_rate, device=base.device)
    last = distance = torch.zeros(())
    for step in range(colliding.steps):
        poisons = poisons.detach().requires_grad_()
        distance = (network(poisons) - network(target)).square().sum(1)
        last = distance.detach() if step == 0 else last  # the bases' objective
        network.zero_grad()
        distance.sum().backward()
        assert poisons.grad is not None
        forward = poisons.detach() - rates * poisons.grad
        candidate = (forward + rates * colliding.beta * base) / (1 + rates * colliding.beta)
        candidate = candidate.clamp(0, 1)
        with torch.no_grad():
            found = (network(candidate) - network(target)).square().sum(1)
        objective = found + colliding.beta / 2 * (candidate - base).flatten(1).square().sum(1)
        accepted = (objective <= last)[:, None, None, None]
        last = torch.minimum(objective, last)
        rates = torch.where(accepted, rates, 0.2 * rates)
        poisons = torch.where(accepted, candidate, poisons.detach())
    return poisons.detach(), distance.mean().item()


def collide_by_hand(
    network: nn.Module, base: Tensor, target: Tensor, colliding: Colliding, *, bf16: bool, channels_last: bool = True
) -> tuple[Tensor, float]:
    """The target's features once, gradients of the poisons alone, one pass per step.

    A candidate is judged by the pass that the next step needs anyway.

    Args:
        network: As for `collide_plain`; one whose weights are bfloat16 already is given images in that format.
        base: As for `collide_plain`.
        target: As for `collide_plain`.
        colliding: Settings.
        bf16: Number format of the passes.
        channels_last: Layout of images and weights.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.eval().requires_grad_(False).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    base = base.contiguous(memory_format=layout)
    cast = next(network.parameters()).dtype == torch.float32

    def features(images: Tensor) -> Tensor:
        if not cast:
            return network(images.bfloat16()).float()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return network(images).float()

    goal, beta = features(target), colliding.beta
    rates = torch.full((len(base), 1, 1, 1), colliding.learning_rate, device=base.device)
    best, distance = torch.full((len(base),), torch.inf, device=base.device), torch.zeros(())
    accepted, slopes, candidate = base, torch.zeros_like(base), base
    for _ in range(colliding.steps):
        leaf = candidate.detach().requires_grad_()
        distance = (features(leaf) - goal).square().sum(1)
        (slope,) = torch.autograd.grad(distance.sum(), leaf)
        objective = distance.detach() + beta / 2 * (candidate - base).flatten(1).square().sum(1)
        better = objective <= best
        best, better = torch.where(better, objective, best), better[:, None, None, None]
        accepted, slopes = torch.where(better, candidate, accepted), torch.where(better, slope, slopes)
        rates = torch.where(better, rates, 0.2 * rates)
        forward = torch.addcmul(accepted, rates, slopes, value=-1)
        candidate = torch.addcmul(forward, rates, base, value=beta).div_(1 + beta * rates).clamp_(0, 1)
    return accepted, float(distance.detach().mean())
