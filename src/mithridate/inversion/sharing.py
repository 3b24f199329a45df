"""Sharing: what a client computes from its images and sends: a gradient, or the update of local training.

The same function serves the client, who calls it once, and the attacker, who differentiates it in the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mithridate.core.batchnorm import twice_differentiable
from mithridate.core.ensemble import in_mode
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import norm
from mithridate.core.schema import Choice
from mithridate.core.unrolled import sgd_step, weights_of


class Sharing(Choice, ABC):
    """How shared numbers come from images. A member is a frozen dataclass with the fields below."""

    batch_statistics: bool
    """Whether BatchNorm normalises with the statistics of the client's batch, as in train mode, instead of the running
    ones that the server knows."""
    home: ClassVar[str] = "mithridate.inversion.sharing"

    @abstractmethod
    def compute(self, model: nn.Module, images: Tensor, targets: Tensor, *, graph: bool) -> list[Tensor]:
        """Computes what is shared, one tensor per trained parameter, in the order of the model.

        Args:
            model: Images [B, C, H, W] in [0, 1] -> logits [B, K], in the mode that `mode` sets.
            images: [B, C, H, W].
            targets: [B, K]; every row sums to one.
            graph: Keep the graph, so that the result can be differentiated in images and targets.
        """

    @contextmanager
    def mode(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model normalises as its client does; modes and buffers come back.

        Dropout and the like draw nothing: only BatchNorm is in train mode.
        """
        with ExitStack() as stack:
            stack.enter_context(in_mode(model, train=False))
            if self.batch_statistics:
                for part in model.modules():
                    if isinstance(part, nn.modules.batchnorm._BatchNorm):
                        stack.enter_context(in_mode(part, train=True))
                stack.enter_context(twice_differentiable(model))
            yield

    @abstractmethod
    def as_gradient(self) -> float:
        """Returns the factor that makes what is shared comparable with a mean gradient."""


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets.to(logits.dtype))


@dataclass(frozen=True, kw_only=True)
class Gradient(Sharing):
    """The gradient of the mean cross-entropy over the batch: federated SGD.

    Raises:
        ValueError: A clip that is not positive, or one with BatchNorm on batch statistics, where no image has a
            gradient of its own.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> weight, bias = Gradient().compute(
    ...     model, torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], graph=False
    ... )
    >>> weight.shape, bias.shape
    (torch.Size([2, 4]), torch.Size([2]))
    """

    batch_statistics: bool = False
    """Whether BatchNorm uses the statistics of the batch (train mode) instead of the running ones."""
    clip: float | None = None
    """Largest Euclidean norm of each image's own gradient, before they are averaged; None: not clipped."""

    def __post_init__(self) -> None:
        if self.clip is None:
            return
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it is the largest norm of an image's gradient, so more than 0")
        if self.batch_statistics:
            raise ValueError(
                "clip bounds the gradient of each image, but with batch_statistics every gradient depends on the whole "
                "batch; set batch_statistics=False, or use a model with GroupNorm"
            )

    def compute(self, model: nn.Module, images: Tensor, targets: Tensor, *, graph: bool) -> list[Tensor]:
        parameters = list(trainable(model).values())
        if self.clip is None:
            return list(torch.autograd.grad(_loss(model(images), targets), parameters, create_graph=graph))
        total: list[Tensor] | None = None
        for image, target in zip(images.split(1), targets.split(1), strict=True):
            own = torch.autograd.grad(_loss(model(image), target), parameters, create_graph=graph)
            factor = (self.clip / norm(own).clamp_min(1e-12)).clamp_max(1) / len(images)
            scaled = [factor * part for part in own]
            total = scaled if total is None else list(torch._foreach_add(total, scaled))
        assert total is not None
        return total

    def as_gradient(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Update(Sharing):
    """Weights before minus weights after some steps of plain SGD on the client's images: federated averaging.

    Step s uses the images in `batches[s]`; without `batches`, the next `batch_size` images in their order, and from the
    first again.

    Reference: McMahan et al. "Communication-Efficient Learning of Deep Networks from Decentralized Data". AISTATS 2017.
    arXiv 1602.05629; inverted by Geiping et al. (arXiv 2003.14053), section 6.

    Raises:
        ValueError: No step, no rate, or batches that name another number of steps.

    >>> list(Update(steps=3, rate=0.1, batch_size=2).rows(4))
    [[0, 1], [2, 3], [0, 1]]
    """

    steps: int
    """Local steps."""
    rate: float
    """Learning rate of the local steps."""
    batch_size: int | None = None
    """Images per step; None: all."""
    batches: tuple[tuple[int, ...], ...] | None = None
    """Numbers of the images of each step, where they do not come in turn."""
    batch_statistics: bool = False
    """Whether BatchNorm uses the statistics of the batch (train mode) instead of the running ones."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; an update comes from at least one local step")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}; the learning rate of the local steps is positive")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; a local step sees at least one image")
        if self.batches is not None and len(self.batches) != self.steps:
            raise ValueError(f"batches names {len(self.batches)} steps, but steps is {self.steps}; they must agree")

    def rows(self, count: int) -> Iterator[list[int]]:
        """Yields the numbers of the images of each step.

        Raises:
            ValueError: `batches` names an image that is not there.
        """
        if self.batches is not None:
            outside = [row for batch in self.batches for row in batch if not 0 <= row < count]
            if outside:
                raise ValueError(f"batches names image {outside[0]}, but the client has images 0..{count - 1}")
            yield from map(list, self.batches)
            return
        size = min(self.batch_size or count, count)
        starts = range(0, count, size)
        for step in range(self.steps):
            first = starts[step % len(starts)]
            yield list(range(first, min(first + size, count)))

    def compute(self, model: nn.Module, images: Tensor, targets: Tensor, *, graph: bool) -> list[Tensor]:
        before = weights_of(model)
        weights = before
        for rows in self.rows(len(images)):
            some, wanted = (images, targets) if len(rows) == len(images) else (images[rows], targets[rows])
            weights = sgd_step(weights, _loss(functional_call(model, weights, (some,)), wanted), self.rate)
            if not graph:
                weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        moved = list(torch._foreach_sub(list(before.values()), list(weights.values())))
        return moved if graph else [part.detach() for part in moved]

    def as_gradient(self) -> float:
        return 1 / (self.steps * self.rate)
