"""Several networks trained at once, by hand: on streams of their own, or stacked and vectorised."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.pixels import mean_and_std, one_gather
from benchmarks.reference.schooling import Schooling

T = TypeVar("T")


def on_streams(function: Callable[[T], float], members: Sequence[T], device: torch.device) -> list[float]:
    """One Python thread and one CUDA stream for each member.

    Args:
        function: Trains one member.
        members: What to train.
        device: The GPU.

    Raises:
        RuntimeError: The device is no CUDA device.
    """
    if device.type != "cuda":
        raise RuntimeError("streams need a CUDA device")
    torch.cuda.synchronize()

    def alone(member: T) -> float:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream()):
            return function(member)

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(alone, members))


def train_stacked(
    networks: Sequence[nn.Module], images: Tensor, labels: Tensor, school: Schooling, *, bf16: bool
) -> list[float]:
    """Every weight of all members in one tensor, the forward pass through vmap, one backward pass for all.

    Each member draws batches and augmentation of its own.

    Args:
        networks: Of one architecture, on the device of the images, without normalisation.
        images: [N, C, H, W] uint8.
        labels: [N] int64.
        school: Settings.
        bf16: Number format.

    Returns:
        Each member's mean loss of the last epoch.
    """
    device, count, members = images.device, len(images), len(networks)
    parameters, buffers = torch.func.stack_module_state([network.train() for network in networks])
    skeleton = copy.deepcopy(networks[0]).to("meta")
    mean, std = (value.view(-1, 1, 1) for value in mean_and_std(images))
    scale, shift, draw = 1 / (255 * std), -mean / std, one_gather(images)
    optimizer = torch.optim.SGD(
        list(parameters.values()),
        lr=school.learning_rate,
        momentum=school.momentum,
        weight_decay=school.weight_decay,
        nesterov=True,
        fused=True,
    )

    def logits_of(weights: dict[str, Tensor], state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(skeleton, (weights, state), (inputs,))

    rngs = [torch.Generator().manual_seed(number) for number in range(members)]
    steps, step, total = school.epochs * -(-count // school.batch_size), 0, torch.zeros(members, device=device)
    for _ in range(school.epochs):
        total = torch.zeros(members, device=device)
        orders = torch.stack([torch.randperm(count, generator=rng) for rng in rngs]).to(device)
        for rows in orders.split(school.batch_size, dim=1):
            drawn = torch.stack([draw(own, rng) for own, rng in zip(rows, rngs, strict=True)])
            inputs = drawn.float().mul_(scale).add_(shift)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = torch.func.vmap(logits_of)(parameters, buffers, inputs)
            each = functional.cross_entropy(logits.float().transpose(1, 2), labels[rows], reduction="none").mean(1)
            optimizer.param_groups[0]["lr"] = school.rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            each.sum().backward()
            optimizer.step()
            total += each.detach() * rows.shape[1] / count
            step += 1
    return total.tolist()
