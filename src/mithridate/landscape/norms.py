"""Norms: how long the vector of all weights is, and recipes that pull it to other lengths than zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from mithridate.core import gradients as algebra
from mithridate.core.gradient_rules import NormBias, refuse_second_rule, trainable
from mithridate.core.training import Recipe


def weight_norm(model: nn.Module) -> float:
    """Returns the Euclidean norm of all trainable parameters together.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[3.0], [4.0]])
    >>> weight_norm(model)
    5.0
    """
    with torch.no_grad():
        return float(algebra.norm(trainable(model)))


def pulled(recipe: Recipe, norms: Iterable[float], strength: float | None = None) -> Iterator[Recipe]:
    """Yields the recipe with its weight decay replaced by a pull to each of these norms; 0 is weight decay itself.

    Args:
        recipe: What is trained; its weight decay says how strong the pull is.
        norms: That the weights are pulled to, as from `weight_norm` of what the recipe trains.
        strength: Instead of the recipe's weight decay.

    Raises:
        ValueError: Neither says how strong, or the recipe makes its gradient by another rule already.

    >>> [one.gradient.norm for one in pulled(Recipe(weight_decay=1e-4), (0, 20))]
    [0.0, 20.0]
    """
    refuse_second_rule([recipe], "norm-bias")
    strength = recipe.weight_decay if strength is None else strength
    if not strength > 0:
        raise ValueError("the recipe has no weight decay; say how strong the pull is (strength)")
    for norm in norms:
        yield replace(recipe, weight_decay=0.0, gradient=NormBias(strength=strength, norm=float(norm)))
