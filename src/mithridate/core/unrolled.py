"""Training steps as differentiable functions: what steps of SGD make of the weights, and of the images they saw."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mithridate.core.gradient_rules import trainable

Weights = Mapping[str, Tensor]
"""Values of the trained parameters by name."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns the trained weights as leaves of a graph of their own.

    ``torch.func.functional_call(module, weights, images)`` computes with them, or with what steps made of them.

    >>> weights_of(nn.Linear(2, 1, bias=False))["weight"].is_leaf
    True
    """
    return {name: parameter.detach().requires_grad_() for name, parameter in trainable(module).items()}


def sgd_step(weights: Weights, loss: Tensor, rate: float) -> dict[str, Tensor]:
    """Returns the weights after one step of plain SGD on a loss [] that was computed from them, in one graph with it.

    >>> weights = {"w": torch.tensor([3.0], requires_grad=True)}
    >>> sgd_step(weights, weights["w"].square().sum(), rate=0.5)["w"].tolist()
    [0.0]
    """
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    return dict(zip(weights, torch._foreach_add(list(weights.values()), slopes, alpha=-rate), strict=True))
