"""Loss: that of a model as a function of its weights, with gradient and Hessian-vector products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mithridate.core.ensemble import in_mode
from mithridate.core.gradient_rules import trainable


class Score(NamedTuple):
    """A model on some images."""

    loss: float
    """Mean cross-entropy."""
    accuracy: float


class Loss:
    """Mean cross-entropy of a model in eval mode over some images, as a function of its trainable parameters.

    Sums over batches are in float64. The model itself is never changed.

    Args:
        model: Any module: inputs [N, ...] to logits [N, K].
        inputs: What the model takes, [N, ...].
        labels: [N] int64.
        batch: Inputs at a time.

    Raises:
        ValueError: No inputs, as many labels as inputs are missing, or nothing that may change.

    >>> model = nn.Linear(2, 3)
    >>> loss = Loss(model, torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
    >>> loss.size, loss.gradient().shape, loss.hessian_times(torch.ones(9)).shape
    (9, torch.Size([9]), torch.Size([9]))
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 500) -> None:
        if not len(inputs) or len(labels) != len(inputs):
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels; give one label for each, and some")
        self.model, self.inputs, self.labels, self.batch = model, inputs, labels, batch
        self.parameters = trainable(model)
        if not self.parameters:
            raise ValueError("the model has no trainable parameters; set requires_grad on some")
        self.size = sum(one.numel() for one in self.parameters.values())

    @property
    def point(self) -> Tensor:
        """[P] the parameters, one after the other."""
        return torch.cat([one.detach().reshape(-1) for one in self.parameters.values()])

    def score(self, point: Tensor | Mapping[str, Tensor] | None = None) -> Score:
        """Returns loss and accuracy at a point [P], or with parameters by name; None: where the model is."""
        chosen = self.named(point) if isinstance(point, Tensor) else dict(point or {})
        loss, right = 0.0, 0
        with torch.no_grad(), in_mode(self.model, train=False):
            for inputs, labels in self._batches():
                logits = functional_call(self.model, chosen, (inputs,))
                loss += float(functional.cross_entropy(logits, labels, reduction="none").sum(dtype=torch.float64))
                right += int((logits.argmax(1) == labels).sum())
        return Score(loss / len(self.inputs), right / len(self.inputs))

    def gradient(self, point: Tensor | None = None) -> Tensor:
        """Returns the gradient [P] at a point; None: where the model is."""
        leaves = self._leaves(point)
        total = torch.zeros(self.size, dtype=torch.float64, device=self.inputs.device)
        for loss in self._parts(leaves):
            total += self._flat(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
        return total.to(self.point.dtype)

    def hessian_times(self, vector: Tensor) -> Tensor:
        """Returns the Hessian at the model times a vector [P]."""
        leaves = self._leaves(None)
        along = [one.to(leaf) for one, leaf in zip(self.named(vector).values(), leaves.values(), strict=True)]
        total = torch.zeros(self.size, dtype=torch.float64, device=self.inputs.device)
        for loss in self._parts(leaves):
            first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
            slope = sum((one * way).sum() for one, way in zip(first, along, strict=True) if one is not None)
            if isinstance(slope, Tensor) and slope.requires_grad:
                total += self._flat(torch.autograd.grad(slope, list(leaves.values()), allow_unused=True))
        return total.to(vector)

    def named(self, point: Tensor) -> dict[str, Tensor]:
        """Returns a point [P] as parameters by name."""
        sizes = [one.numel() for one in self.parameters.values()]
        parts = zip(self.parameters.items(), point.split(sizes), strict=True)
        return {name: part.view(one.shape).to(one.dtype) for (name, one), part in parts}

    def _leaves(self, point: Tensor | None) -> dict[str, Tensor]:
        found = self.parameters if point is None else self.named(point)
        return {name: one.detach().requires_grad_() for name, one in found.items()}

    def _flat(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        zipped = zip(parts, self.parameters.values(), strict=True)
        return torch.cat([(torch.zeros_like(own) if one is None else one).double().reshape(-1) for one, own in zipped])

    def _parts(self, leaves: dict[str, Tensor]) -> Iterator[Tensor]:
        """What each batch adds to the mean."""
        with in_mode(self.model, train=False):
            for inputs, labels in self._batches():
                logits = functional_call(self.model, leaves, (inputs,))
                yield functional.cross_entropy(logits, labels, reduction="sum") / len(self.inputs)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.inputs.split(self.batch), self.labels.split(self.batch), strict=True)
