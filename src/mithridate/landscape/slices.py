"""Slices: the loss along a line or in a plane through the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.gradient_rules import trainable
from mithridate.core.progress import track
from mithridate.landscape.losses import Loss

Direction = dict[str, Tensor]
"""A change of the parameters, by name."""


def random_direction(model: nn.Module, seed: int = 0) -> Direction:
    """Draws a direction whose filters are as long as those of the model; biases and norms stay.

    A filter is what makes one output: a row of a Linear's weight, a kernel of a convolution.

    Reference: Li, Xu, Taylor, Studer, Goldstein. "Visualizing the Loss Landscape of Neural Nets". NeurIPS 2018. arXiv
    1712.09913.

    >>> model = nn.Linear(3, 2)
    >>> way = random_direction(model)
    >>> torch.allclose(way["weight"].norm(dim=1), model.weight.norm(dim=1)), way["bias"].tolist()
    (True, [0.0, 0.0])
    """
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for name, parameter in trainable(model).items():
        drawn = torch.randn(parameter.shape, generator=rng).to(parameter.detach())
        if parameter.ndim < 2:
            found[name] = torch.zeros_like(drawn)
            continue
        own, length = (one.detach().flatten(1).norm(dim=1).clamp_min(1e-12) for one in (parameter, drawn))
        found[name] = drawn * (own / length).view(-1, *[1] * (parameter.ndim - 1))
    return found


def between(first: nn.Module, second: nn.Module) -> Direction:
    """Returns the direction from one model to another of the same architecture: at distance 1 it is there.

    Buffers, such as the statistics of BatchNorm, are not moved: those of the model that is sliced stay.

    Raises:
        ValueError: Other parameters.
    """
    here, there = trainable(first), trainable(second)
    if {name: one.shape for name, one in here.items()} != {name: one.shape for name, one in there.items()}:
        raise ValueError("the models have parameters of other names or shapes; a line joins two of one architecture")
    return {name: there[name].detach() - one.detach() for name, one in here.items()}


class Slice(NamedTuple):
    """Loss and accuracy at the points of a line [A] or a plane [A, B]."""

    first: Tensor
    """[A] distances along the first direction."""
    second: Tensor | None
    """[B] distances along the second; None: a line."""
    loss: Tensor
    accuracy: Tensor


def line(model: nn.Module, inputs: Tensor, labels: Tensor, direction: Direction, distances: Sequence[float]) -> Slice:
    """Returns the loss along a line through the weights of a model.

    Args:
        model: In eval mode, left as it is.
        inputs: What it takes.
        labels: [N] int64.
        direction: From `random_direction` or `between`.
        distances: In units of the direction; 0 is the model.

    Raises:
        ValueError: No distances.

    >>> model = nn.Linear(2, 2)
    >>> line(
    ...     model, torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), random_direction(model), [-1, 0, 1]
    ... ).loss.shape
    torch.Size([3])
    """
    _check(distances)
    loss = Loss(model, inputs, labels)
    here = {name: one.detach() for name, one in trainable(model).items()}
    scores = [loss.score(_moved(here, direction, far)) for far in track(list(distances), "line")]
    return Slice(
        torch.tensor(distances, dtype=torch.float64),
        None,
        torch.tensor([score.loss for score in scores], dtype=torch.float64),
        torch.tensor([score.accuracy for score in scores], dtype=torch.float64),
    )


def plane(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    directions: tuple[Direction, Direction],
    first: Sequence[float],
    second: Sequence[float],
) -> Slice:
    """Returns the loss in a plane through the weights of a model; as `line`.

    Raises:
        ValueError: No distances.
    """
    _check(first)
    _check(second)
    loss = Loss(model, inputs, labels)
    here = {name: one.detach() for name, one in trainable(model).items()}
    scores = [
        [loss.score(_moved(_moved(here, directions[0], far), directions[1], aside)) for aside in second]
        for far in track(list(first), "plane")
    ]
    return Slice(
        torch.tensor(first, dtype=torch.float64),
        torch.tensor(second, dtype=torch.float64),
        torch.tensor([[score.loss for score in row] for row in scores], dtype=torch.float64),
        torch.tensor([[score.accuracy for score in row] for row in scores], dtype=torch.float64),
    )


def _moved(here: Direction, direction: Direction, far: float) -> Direction:
    return {name: one + far * direction[name] for name, one in here.items()}


def _check(distances: Sequence[float]) -> None:
    if not len(distances):
        raise ValueError("no distances; give some, as [-1, -0.5, 0, 0.5, 1]")
