"""What mithridate is compared with: short hand-written loops that use nothing of it but the networks.

Crafting by hand runs them with ordinary convolution and BatchNorm layers (``ordinary``), as one would write them.

``train_plain`` and ``brew_plain`` are what one writes first: float32, NCHW, every gradient. ``train_best`` is the
fastest loop we could write for the same network, augmentation, number format and layout; ``brew_careful`` drops from
``brew_plain`` what float32 allows to drop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.networks import ConvNorm

REACH = 4
"""Pixels an image moves at most: an eighth of 32."""


@dataclass(frozen=True, kw_only=True)
class Schooling:
    """Settings that all training loops share; SGD with Nesterov momentum and three drops of the rate."""

    epochs: int
    batch_size: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimizer(self, network: nn.Module, *, fused: bool) -> torch.optim.SGD:
        return torch.optim.SGD(
            network.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
            fused=fused,
        )

    def rate(self, step: int, steps: int) -> float:
        return self.learning_rate * 0.1 ** sum(step >= share * steps for share in (3 / 8, 5 / 8, 7 / 8))


def ordinary(network: nn.Module) -> nn.Module:
    """A copy in NCHW whose convolutions and BatchNorms are separate layers with the same weights."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ConvNorm):
                setattr(parent, name, nn.Sequential(child.convolution, child.norm))
    return network


def synthetic(count: int, classes: int = 10, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Coloured blots with noise: uint8 images [N, 3, side, side] and labels [N], as many of each class."""
    rng = torch.Generator().manual_seed(seed)
    blots = functional.interpolate(torch.rand(classes, 3, 4, 4, generator=rng), size=side, mode="bilinear")
    labels, images = torch.arange(count) % classes, torch.empty(count, 3, side, side, dtype=torch.uint8)
    for rows in torch.arange(count).split(500):  # in pieces: the memory benchmark counts every peak
        noisy = blots[labels[rows]] + 0.3 * torch.randn(len(rows), 3, side, side, generator=rng)
        images[rows] = (noisy.clamp_(0, 1) * 255).to(torch.uint8)
    return images, labels


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel [C] of uint8 images, in units of [0, 1]."""
    values = images.float().div_(255)
    return values.mean((0, 2, 3)), values.std((0, 2, 3))


def augment_plain(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image with probability one half, then move it by up to 4 pixels; differentiable. [B, C, H, W]."""
    count, _, height, width = images.shape
    mirrored = (torch.rand(count, generator=rng) < 0.5).to(images.device)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (REACH,) * 4)
    down, right = torch.randint(2 * REACH + 1, (2, count), generator=rng).tolist()
    pieces = [padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(down, right, strict=True))]
    return torch.stack(pieces)


def train_plain(network: nn.Module, images: Tensor, labels: Tensor, school: Schooling) -> float:
    """The plain loop in float32 and NCHW; returns the mean loss of the last epoch.

    Args:
        network: On the device of the images, without normalisation.
        images: [N, C, H, W] uint8.
        labels: [N] int64.
        school: Settings.
    """
    device, count = images.device, len(images)
    mean, std = (value.view(-1, 1, 1) for value in mean_and_std(images))
    optimizer, rng = school.optimizer(network.train(), fused=False), torch.Generator().manual_seed(0)
    steps, step, total = school.epochs * -(-count // school.batch_size), 0, 0.0
    for _ in range(school.epochs):
        total = 0.0
        for rows in torch.randperm(count, generator=rng).split(school.batch_size):
            rows = rows.to(device)
            inputs = (augment_plain(images[rows].float() / 255, rng) - mean) / std
            loss = functional.cross_entropy(network(inputs), labels[rows])
            optimizer.param_groups[0]["lr"] = school.rate(step, steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / count
            step += 1
    return total


def train_best(network: nn.Module, images: Tensor, labels: Tensor, school: Schooling, *, bf16: bool) -> float:
    """The fastest eager loop: channels last, bfloat16 where it pays, one gather for batch, mirror and move.

    Arguments and result as in `train_plain`.
    """
    device, count = images.device, len(images)
    network = network.to(memory_format=torch.channels_last).train()
    mean, std = (value.view(-1, 1, 1) for value in mean_and_std(images))
    scale, shift = 1 / (255 * std), -mean / std
    draw = _one_gather(images)
    optimizer, rng = school.optimizer(network, fused=True), torch.Generator().manual_seed(0)
    steps, step, losses = school.epochs * -(-count // school.batch_size), 0, []
    for _ in range(school.epochs):
        losses = []
        for rows in torch.randperm(count, generator=rng).to(device).split(school.batch_size):
            inputs = draw(rows, rng).float().mul_(scale).add_(shift)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = network(inputs)
            loss = functional.cross_entropy(logits.float(), labels[rows])
            optimizer.param_groups[0]["lr"] = school.rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach() * len(rows) / count)  # no .item(): it would wait for the GPU at every step
            step += 1
    return float(torch.stack(losses).sum())


def _one_gather(images: Tensor) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A function from rows to mirrored and moved uint8 images [B, C, H, W], channels last."""
    (_, channels, height, width), device = images.shape, images.device
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, *(REACH,) * 4)).contiguous()
    tall, wide = height + 2 * REACH, width + 2 * REACH
    pixels = padded.view(-1, channels)
    along_y, along_x = torch.arange(height, device=device), torch.arange(width, device=device)

    def draw(rows: Tensor, rng: torch.Generator) -> Tensor:
        drawn = torch.randint(2 * REACH + 1, (2, len(rows), 1), generator=rng)
        mirrored = torch.rand(len(rows), 1, generator=rng) < 0.5
        (down, right), mirrored = drawn.to(device), mirrored.to(device)
        x = torch.where(mirrored, wide - 1 - right - along_x, right + along_x)
        y = rows[:, None] * tall + down + along_y
        index = (y[:, :, None] * wide + x[:, None, :]).flatten()
        return pixels.index_select(0, index).view(len(rows), height, width, channels).permute(0, 3, 1, 2)

    return draw


@dataclass(frozen=True, kw_only=True)
class Brewing:
    """Settings that all gradient-matching loops share."""

    steps: int
    eps: float = 16 / 255
    learning_rate: float = 0.025


def brew_plain(
    network: nn.Module, base: Tensor, labels: Tensor, target: Tensor, intended: Tensor, brewing: Brewing
) -> tuple[Tensor, float]:
    """Gradient matching as one writes it first: float32, NCHW, ``loss.backward()`` through the gradient.

    Reference: Geiping, Fowl et al. "Witches' Brew". ICLR 2021. arXiv 2009.02276, one restart, one surrogate.

    Args:
        network: Trained, from images in [0, 1] to logits.
        base: Poisons to be [P, C, H, W] in [0, 1].
        labels: Their labels [P].
        target: [1, C, H, W] in [0, 1].
        intended: Class the target shall get, [1].
        brewing: Settings.

    Returns:
        Poisoned images and the last matching loss.
    """
    network = network.eval()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(functional.cross_entropy(network(target), intended), parameters)
    rng, last = torch.Generator().manual_seed(0), 0.0
    delta = (torch.randn(base.shape, generator=rng).to(base) * brewing.eps).clamp_(-brewing.eps, brewing.eps)
    delta = _inside(delta, base, brewing.eps).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=brewing.learning_rate)
    for step in range(brewing.steps):
        optimizer.param_groups[0]["lr"] = _rate(step, brewing)
        loss = functional.cross_entropy(network(augment_plain(base + delta, rng)), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        mismatch = _mismatch(gradient, wanted)
        network.zero_grad()
        optimizer.zero_grad()
        mismatch.backward()
        assert delta.grad is not None
        delta.grad.sign_()
        optimizer.step()
        delta.data = _inside(delta.data, base, brewing.eps)
        last = mismatch.item()
    return (base + delta).detach(), last


def brew_careful(
    network: nn.Module, base: Tensor, labels: Tensor, target: Tensor, intended: Tensor, brewing: Brewing
) -> tuple[Tensor, float]:
    """The same in float32 and channels last, differentiating for the poisons alone. Arguments as in `brew_plain`."""
    network = network.eval().to(memory_format=torch.channels_last)
    base = base.contiguous(memory_format=torch.channels_last)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(functional.cross_entropy(network(target), intended), parameters)
    rng, mismatch = torch.Generator().manual_seed(0), torch.zeros(())
    delta = (torch.randn(base.shape, generator=rng).to(base) * brewing.eps).clamp_(-brewing.eps, brewing.eps)
    delta = _inside(delta, base, brewing.eps).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=brewing.learning_rate)
    for step in range(brewing.steps):
        optimizer.param_groups[0]["lr"] = _rate(step, brewing)
        loss = functional.cross_entropy(network(augment_plain(base + delta, rng)), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        mismatch = _mismatch(gradient, wanted)
        delta.grad = torch.autograd.grad(mismatch, delta)[0].sign_()
        optimizer.step()
        delta.data = _inside(delta.data, base, brewing.eps)
    return (base + delta).detach(), float(mismatch.detach())


def _rate(step: int, brewing: Brewing) -> float:
    return brewing.learning_rate * 0.1 ** sum(step >= share * brewing.steps for share in (3 / 8, 5 / 8, 7 / 8))


def _inside(delta: Tensor, base: Tensor, eps: float) -> Tensor:
    return (base + delta.clamp(-eps, eps)).clamp(0, 1) - base


def _mismatch(gradient: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """One minus the cosine of the whole parameter vectors."""
    product = torch.stack([(a * b).sum() for a, b in zip(gradient, wanted, strict=True)]).sum()
    lengths = [torch.stack([part.square().sum() for part in parts]).sum().sqrt() for parts in (gradient, wanted)]
    return 1 - product / (lengths[0] * lengths[1])
