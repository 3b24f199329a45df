"""How a step gets its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mithridate.core.batch import Batch, GradientRule


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that training may change, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, kw_only=True)
class Mean(GradientRule):
    """The gradient of the mean cross-entropy of the batch: ordinary training."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        parameters = trainable(model)
        loss = nn.functional.cross_entropy(model(batch.images), batch.targets)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True)), loss.detach()
