"""Training that poisons its own batches, by hand: gradient matching inside each step.

Reference: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You Robust(er)". 2021.
arXiv 2102.13624.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.inverting import distance
from benchmarks.reference.schooling import Schooling

STEPS, STEP = 5, 0.025


def train_immune(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    school: Schooling,
    eps: float,
    *,
    plain: bool = True,
    bf16: bool = False,
) -> float:
    """Half of each batch is poisoned against the other half, then all of it is trained on; returns the last loss.

    Args:
        network: With normalisation, on the device of the images.
        images: [N, C, H, W] uint8.
        labels: [N] int64.
        school: Settings; no augmentation.
        eps: Largest change of a pixel in [0, 1].
        plain: As one writes it first: the target's gradient with a graph and anew at each step, `backward` through
            everything. Otherwise that gradient once, and gradients of the images alone.
        bf16: Compute in bfloat16.
    """
    optimizer, rng = school.optimizer(network), torch.Generator().manual_seed(0)
    half, last = school.batch_size // 2, torch.tensor(0.0)
    for _ in range(school.epochs):
        for rows in torch.randperm(len(images), generator=rng).split(school.batch_size):
            batch, answers = images[rows].float() / 255, labels[rows]
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                poisoned = _poisoned(network, batch, answers, half, eps, rng, plain=plain)
                network.train()
                last = functional.cross_entropy(network(torch.cat([poisoned, batch[half:]])).float(), answers)
            optimizer.zero_grad()
            last.backward()
            optimizer.step()
    return float(last.detach())


def _poisoned(
    network: nn.Module, batch: Tensor, answers: Tensor, half: int, eps: float, rng: torch.Generator, *, plain: bool
) -> Tensor:
    network.eval()
    parameters = list(network.parameters())
    clean, targets = batch[:half], batch[half:]
    wanted = answers[:half].mode().values.expand(len(targets))
    moved = (clean + (eps * torch.randn(clean.shape, generator=rng)).clamp(-eps, eps)).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=STEP)

    def goal(graph: bool) -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(network(targets).float(), wanted)
        return torch.autograd.grad(loss, parameters, create_graph=graph)

    once = None if plain else goal(False)
    for _ in range(STEPS):
        loss = functional.cross_entropy(network(moved).float(), answers[:half])
        value = distance(torch.autograd.grad(loss, parameters, create_graph=True), once or goal(True))
        if plain:
            optimizer.zero_grad()
            network.zero_grad()
            value.backward()
            assert moved.grad is not None
        else:
            (moved.grad,) = torch.autograd.grad(value, moved)
        moved.grad.sign_()
        optimizer.step()
        with torch.no_grad():
            moved.copy_(torch.clamp(moved, clean - eps, clean + eps).clamp_(0, 1))
    return moved.detach()
