"""How a step gets its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mithridate.core.batch import Batch, GradientRule


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that training may change, by name.

    >>> sorted(trainable(nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, kw_only=True)
class Mean(GradientRule):
    """The gradient of the mean cross-entropy of the batch: ordinary training.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> gradients, loss = Mean()(model, batch, torch.Generator())
    >>> sorted(gradients), loss.shape
    (['1.bias', '1.weight'], torch.Size([]))
    """

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        parameters = trainable(model)
        loss = nn.functional.cross_entropy(model(batch.images), batch.targets)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True)), loss.detach()
