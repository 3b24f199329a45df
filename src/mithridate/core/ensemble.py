"""Several trained models as one value: a sequence of ordinary modules whose answers are stacked where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.gradient_rules import trainable
from mithridate.core.models import last_linear


@contextmanager
def in_mode(module: nn.Module, *, train: bool) -> Iterator[None]:
    """Switches a module to train or eval mode, and back; in train mode it works on copies of its buffers.

    Copies, since writing the old values back into the buffers would break the backward pass of what was computed.
    """
    modes = [(part, part.training) for part in module.modules() if part.training != train]
    parts = module.modules() if train else ()
    buffers = [(part, *named) for part in parts for named in part.named_buffers(recurse=False)]
    for part, _ in modes:
        part.training = train
    for part, name, buffer in buffers:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for part, name, buffer in buffers:
            setattr(part, name, buffer)


def features_and_logits(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the input [B, D] of the module's last Linear and its logits [B, K], in eval mode and in one pass.

    Raises:
        ValueError: the module has no final Linear, or it does not run once in a forward pass.

    >>> a, b = features_and_logits(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 1, 2, 2))
    >>> a.shape, b.shape
    (torch.Size([2, 4]), torch.Size([2, 3]))
    """
    caught: list[Tensor] = []
    handle = last_linear(module).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with in_mode(module, train=False):
            logits = module(images)
    finally:
        handle.remove()
    if len(caught) != 1:
        raise ValueError(
            f"the last Linear of {type(module).__name__} ran {len(caught)} times in one forward pass; features need one"
        )
    return caught[0].float().flatten(1), logits.float()


def features(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the input [B, D] of the module's last Linear, in eval mode, differentiable in the images.

    Raises:
        ValueError: the module has no final Linear, or it does not run once in a forward pass.

    >>> features(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 1, 2, 2)).shape
    torch.Size([2, 4])
    """
    return features_and_logits(module, images)[0]


class Ensemble(Sequence[nn.Module]):
    """An ordered tuple of models; architectures may differ.

    >>> pair = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)])
    >>> pair.logits(torch.rand(5, 1, 2, 2)).shape, [f.shape for f in pair.features(torch.rand(5, 1, 2, 2))]
    (torch.Size([2, 5, 3]), [torch.Size([5, 4]), torch.Size([5, 4])])
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        self.members = tuple(members)

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Ensemble: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Ensemble:
        return Ensemble(self.members[index]) if isinstance(index, slice) else self.members[index]

    def map(self, function: Callable[..., Any], *args: Any) -> list:
        """Returns ``function(member, *args)`` for each member."""
        return [function(member, *args) for member in self.members]

    def logits(self, images: Tensor, *, train: bool = False) -> Tensor:
        """Returns logits [M, B, K] of images [B, C, H, W]; ``train`` uses batch statistics and leaves buffers alone."""

        def forward(member: nn.Module) -> Tensor:
            with in_mode(member, train=train):
                return member(images).float()

        return torch.stack(self.map(forward))

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the input [B, D] of each member's last Linear, in eval mode."""
        return self.map(features, images)

    def gradients(self, images: Tensor, labels: Tensor, *, graph: bool = False) -> list[dict[str, Tensor]]:
        """Returns each member's gradient of the summed cross-entropy, by parameter, in eval mode.

        Args:
            images: [B, C, H, W] in [0, 1].
            labels: [B] int64, or [B, K] shares.
            graph: keep the graph, so that the gradient can be differentiated again.
        """

        def gradient(member: nn.Module) -> dict[str, Tensor]:
            parameters = trainable(member)
            with in_mode(member, train=False), torch.enable_grad():
                loss = F.cross_entropy(member(images).float(), labels, reduction="sum")
            found = torch.autograd.grad(loss, list(parameters.values()), create_graph=graph)
            return dict(zip(parameters, found, strict=True))

        return self.map(gradient)

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(type(member).__name__ for member in self.members)})"
