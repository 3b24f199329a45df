"""Training by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.pixels import (
    augment_plain,
    mean_and_std,
    mirrored_and_moved,
    moves_of,
    one_gather,
    padded_pixels,
    two_passes,
)


@dataclass(frozen=True, kw_only=True)
class Schooling:
    """Settings that all training loops share; SGD with Nesterov momentum and three drops of the rate."""

    epochs: int
    batch_size: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimizer(self, network: nn.Module, *, rate: float | Tensor | None = None, **how: bool) -> torch.optim.SGD:
        """SGD, with `fused` or `foreach` as asked for."""
        return torch.optim.SGD(
            network.parameters(),
            lr=self.learning_rate if rate is None else rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
            **how,  # pyright: ignore[reportArgumentType]
        )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * 0.1 ** sum(step >= share * steps for share in (3 / 8, 5 / 8, 7 / 8))


@dataclass(frozen=True, kw_only=True)
class Way:
    """Which tricks a training loop by hand uses; channels last and no waiting for the loss in any case."""

    bf16: bool
    gather: bool = True
    """Batch, mirror and move in one gather of bytes, not in three passes over floats."""
    fused: bool = True
    """The fused optimiser, not the one that takes tensor lists (foreach)."""
    compiled: bool = False
    """The network through torch.compile."""


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
    optimizer, rng = school.optimizer(network.train()), torch.Generator().manual_seed(0)
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


def train_by_hand(network: nn.Module, images: Tensor, labels: Tensor, school: Schooling, way: Way) -> float:
    """The fastest eager loop, less the tricks that `way` leaves out. Arguments and result as in `train_plain`."""
    device, count = images.device, len(images)
    network = network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimizer = school.optimizer(network, **({"fused": True} if way.fused else {"foreach": True}))
    forward = torch.compile(network) if way.compiled else network
    scale, shift = _scale_and_shift(images)
    draw = (one_gather if way.gather else two_passes)(images)
    rng = torch.Generator().manual_seed(0)
    steps, step, losses = school.epochs * -(-count // school.batch_size), 0, []
    for _ in range(school.epochs):
        losses = []
        for rows in torch.randperm(count, generator=rng).to(device).split(school.batch_size):
            inputs = draw(rows, rng).float().mul_(scale).add_(shift)
            with torch.autocast(device.type, torch.bfloat16, enabled=way.bf16):
                logits = forward(inputs)
            loss = functional.cross_entropy(logits.float(), labels[rows])
            optimizer.param_groups[0]["lr"] = school.rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach() * len(rows) / count)  # no .item(): it would wait for the GPU at every step
            step += 1
    return float(torch.stack(losses).sum())


def train_by_graph(
    network: nn.Module, images: Tensor, labels: Tensor, school: Schooling, *, bf16: bool, compiled: bool = False
) -> float:
    """A whole step, from bytes to weights, as one CUDA graph; the draws of an epoch are moved to the GPU at once.

    Arguments and result as in `train_plain`; the images must make whole batches.

    Raises:
        RuntimeError: The images do not lie on a CUDA device.
    """
    device, count, size = images.device, len(images), school.batch_size
    if device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a CUDA device")
    network = network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    rate, total = torch.tensor(school.learning_rate, device=device), torch.zeros((), device=device)
    optimizer = school.optimizer(network, rate=rate, fused=True)
    forward = torch.compile(network) if compiled else network
    padded, (scale, shift) = padded_pixels(images), _scale_and_shift(images)
    drawn = torch.zeros(4, size, dtype=torch.int64, device=device)  # rows, then moves

    def step() -> None:
        inputs = mirrored_and_moved(padded, drawn[0], drawn[1:]).float().mul_(scale).add_(shift)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits = forward(inputs)
        loss = functional.cross_entropy(logits.float(), labels.index_select(0, drawn[0]))
        loss.backward()
        optimizer.step()
        total.add_(loss.detach(), alpha=size / count)

    rng, replay = torch.Generator().manual_seed(0), _Replayed(step, optimizer)
    steps, number = school.epochs * (count // size), 0
    for _ in range(school.epochs):
        total.zero_()
        rows = torch.randperm(count, generator=rng)[None]
        for batch in torch.cat([rows, moves_of(count, rng)]).to(device).split(size, dim=1):
            drawn.copy_(batch)
            rate.fill_(school.rate(number, steps))
            replay()
            number += 1
    return float(total)


class _Replayed:
    """Calls a training step three times on a side stream, as recording asks for, then records it and replays it."""

    def __init__(self, step: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer, self.calls = step, optimizer, 0
        self.graph, self.side = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= 3:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.optimizer.zero_grad(set_to_none=True)
                self.step()
            torch.cuda.current_stream().wait_stream(self.side)
            return
        if self.calls == 4:
            self.optimizer.zero_grad(set_to_none=True)  # so that the gradients lie in the graph's own memory
            with torch.cuda.graph(self.graph):
                self.step()
        self.graph.replay()


def _scale_and_shift(images: Tensor) -> tuple[Tensor, Tensor]:
    """What normalises bytes: [C, 1, 1] each."""
    mean, std = (value.view(-1, 1, 1) for value in mean_and_std(images))
    return 1 / (255 * std), -mean / std
