"""MetaPoison's step on one surrogate by hand.

Reference: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison". NeurIPS 2020. arXiv 2004.00225, Algorithm 1:
poisons in one batch, K = 2 clean batches after it, additive perturbation, plain SGD inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.reference.pixels import augment_plain, mirrored_and_moved, moves_of, padded_pixels
from mithridate.core.batchnorm import twice_differentiable

K = 2
BATCH = 125


@dataclass(frozen=True, kw_only=True)
class Unrolling:
    """Settings that all loops share."""

    steps: int
    eps: float = 8 / 255
    learning_rate: float = 200 / 255
    inner_rate: float = 0.1


@dataclass(frozen=True, eq=False)
class Setting:
    """What is crafted against what."""

    base: Tensor
    """Poisons to be [P, C, H, W] in [0, 1]."""
    labels: Tensor
    """Their labels [P]."""
    clean: Tensor
    """Clean images [N, C, H, W] in [0, 1]."""
    clean_labels: Tensor
    """Their labels [N]."""
    target: Tensor
    """[1, C, H, W] in [0, 1]."""
    intended: Tensor
    """Class the target shall get, [1]."""

    def batches(self, rng: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Clean images and labels: what fills the poisons' batch, then K batches."""
        sizes = [BATCH - len(self.base), *[BATCH] * K]
        rows = torch.randint(len(self.clean), (sum(sizes),), generator=rng).to(self.clean.device).split(sizes)
        return [self.clean[part] for part in rows], [self.clean_labels[part] for part in rows]


def unroll_plain(networks: Sequence[nn.Module], setting: Setting, unrolling: Unrolling) -> tuple[Tensor, float]:
    """As one writes it first: float32, NCHW, one graph through all steps, an update after every batch.

    Args:
        networks: Surrogates, from images in [0, 1] to logits.
        setting: What is crafted.
        unrolling: Settings.

    Returns:
        Poisoned images and the last meta-loss.
    """
    rng, base, last = torch.Generator().manual_seed(0), setting.base, 0.0
    delta = (torch.rand(base.shape, generator=rng).to(base) * 2 - 1).mul_(unrolling.eps).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=unrolling.learning_rate)
    for _ in range(unrolling.steps):
        optimizer.zero_grad()
        total = 0.0
        for network in networks:
            network.train()
            images, labels = setting.batches(rng)
            images[0] = torch.cat([(base + delta).clamp(0, 1), images[0]])
            labels[0] = torch.cat([setting.labels, labels[0]])
            weights = dict(network.named_parameters())
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            loss = torch.zeros((), device=base.device)
            for number, (batch, answers) in enumerate(zip(images, labels, strict=True)):
                seen = torch.cat([augment_plain(batch, rng), setting.target])
                logits = functional_call(network, weights | buffers, (seen,))
                if number:
                    loss = loss + _margin(logits[len(batch) :], setting.intended) / K
                inner = functional.cross_entropy(logits[: len(batch)], answers)
                slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
                stepped = zip(weights.items(), slopes, strict=True)
                weights = {name: weight - unrolling.inner_rate * slope for (name, weight), slope in stepped}
            (loss / len(networks)).backward()
            network.zero_grad()
            total += loss.item() / len(networks)
        optimizer.step()
        delta.data.clamp_(-unrolling.eps, unrolling.eps)
        last = total
    return (base + delta).detach().clamp(0, 1), last


Derive = Callable[[nn.Module, list[Tensor], list[Tensor], Setting, float, bool], tuple[Tensor, Tensor]]
"""Network, K + 1 augmented batches (the poisoned one first), labels, setting, inner rate, bf16 -> loss, its gradient
for the first batch."""


def unroll_by_hand(
    networks: Sequence[nn.Module],
    setting: Setting,
    unrolling: Unrolling,
    derive: Derive,
    *,
    bf16: bool,
    written_out: bool = False,
) -> tuple[Tensor, float]:
    """Channels last, one gather for mirror and move, no update that is not needed, gradients of the poisons alone.

    Args:
        networks: As for `unroll_plain`.
        setting: What is crafted.
        unrolling: Settings.
        derive: `one_graph` or `step_by_step`.
        bf16: Number format of its passes.
        written_out: With mithridate's second derivative of BatchNorm.
    """
    for network in networks:
        network.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    base = setting.base.contiguous(memory_format=torch.channels_last)
    rng, loss = torch.Generator().manual_seed(0), torch.zeros(())
    delta = (torch.rand(base.shape, generator=rng).to(base) * 2 - 1).mul_(unrolling.eps).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=unrolling.learning_rate)
    for _ in range(unrolling.steps):
        delta.grad = torch.zeros_like(delta)
        for network in networks:
            images, labels = setting.batches(rng)
            images[0] = torch.cat([(base + delta).clamp(0, 1), images[0]])
            labels[0] = torch.cat([setting.labels, labels[0]])
            moved = []
            for batch in images:
                rows = torch.arange(len(batch), device=batch.device)
                moved.append(mirrored_and_moved(padded_pixels(batch), rows, moves_of(len(batch), rng).to(batch.device)))
            seen = [part.detach() for part in moved]
            with twice_differentiable(network) if written_out else nullcontext():
                loss, slope = derive(network, seen, labels, setting, unrolling.inner_rate, bf16)
            delta.grad += torch.autograd.grad(moved[0], delta, slope)[0] / len(networks)
        optimizer.step()
        delta.data.clamp_(-unrolling.eps, unrolling.eps)
    return (base + delta).detach().clamp(0, 1), float(loss)


def one_graph(
    network: nn.Module, images: list[Tensor], labels: list[Tensor], setting: Setting, rate: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Differentiate one graph through all steps."""
    leaf = images[0].requires_grad_()
    weights, buffers, losses = dict(network.named_parameters()), _buffers(network), []
    for number, (batch, answers) in enumerate(zip(images, labels, strict=True)):
        logits = _logits(network, weights | buffers, batch, setting, bf16)
        if number:
            losses.append(_margin(logits[len(batch) :], setting.intended))
        if number < K:
            inner = functional.cross_entropy(logits[: len(batch)], answers)
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            weights = dict(zip(weights, torch._foreach_add(list(weights.values()), slopes, alpha=-rate), strict=True))
    loss = torch.stack(losses).mean()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def step_by_step(
    network: nn.Module, images: list[Tensor], labels: list[Tensor], setting: Setting, rate: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Each step a graph of its own; the derivative for the weights is carried back from the last to the first."""
    leaf = images[0].requires_grad_()
    names, buffers = list(dict(network.named_parameters())), _buffers(network)
    values = [parameter.detach().requires_grad_() for parameter in network.parameters()]
    carried: Sequence[Tensor] = ()
    steps, losses = [], []
    for number, (batch, answers) in enumerate(zip(images, labels, strict=True)):
        logits = _logits(network, dict(zip(names, values, strict=True)) | buffers, batch, setting, bf16)
        loss = _margin(logits[len(batch) :], setting.intended) / K if number else logits.new_zeros(())
        losses.append(loss.detach())
        if number == K:
            carried = torch.autograd.grad(loss, values)
            break
        inner = functional.cross_entropy(logits[: len(batch)], answers)
        slopes = torch.autograd.grad(inner, values, create_graph=True)
        steps.append((values, slopes, loss))
        stepped = torch._foreach_add(values, [slope.detach() for slope in slopes], alpha=-rate)
        values = [value.detach().requires_grad_() for value in stepped]
    for number in range(K - 1, 0, -1):
        values, slopes, loss = steps[number]
        back = torch.autograd.grad(
            [loss, *slopes], values, [torch.ones_like(loss), *torch._foreach_mul(carried, -rate)]
        )
        carried = torch._foreach_add(list(carried), back)
    slopes = steps[0][1]
    return torch.stack(losses).sum(), torch.autograd.grad(slopes, leaf, torch._foreach_mul(carried, -rate))[0]


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _logits(network: nn.Module, state: dict[str, Tensor], batch: Tensor, setting: Setting, bf16: bool) -> Tensor:
    seen = torch.cat([batch, setting.target]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(seen.device.type, dtype=torch.bfloat16, enabled=bf16):
        return functional_call(network, state, (seen,)).float()


def _margin(logits: Tensor, intended: Tensor) -> Tensor:
    wanted = functional.one_hot(intended, logits.shape[1]).bool()
    return (logits.masked_fill(wanted, -torch.inf).amax(1) - logits[wanted]).mean()
