"""One batch, and the four small interfaces of a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.guarantees import Guarantee
from mithridate.core.schema import Choice

if TYPE_CHECKING:
    from mithridate.core.training import Recipe


class Batch(NamedTuple):
    """What one model sees in one step.

    >>> batch = Batch(torch.zeros(2, 1, 8, 8), torch.eye(2), torch.tensor([4, 7]), progress=0.5)
    >>> batch._replace(images=1 - batch.images).images.mean().item()
    1.0
    """

    images: Tensor
    """[B, C, H, W] float in [0, 1]."""
    targets: Tensor
    """[B, K]; every row sums to one, so mixing needs no second loss path."""
    rows: Tensor
    """[B] row ids of the training set."""
    progress: float
    """Share of the training done, 0..1."""


def batch_of(data: ImageData, rows: Tensor, progress: float) -> Batch:
    """Returns the untransformed batch of these rows, [B] int64.

    >>> from mithridate.core.sources import Digits
    >>> batch_of(Digits().load()[0], torch.tensor([5, 2]), 0.0).targets.shape
    torch.Size([2, 10])
    """
    classes = torch.arange(len(data.classes), device=data.device)
    targets = (data.labels_of(rows)[:, None] == classes).float()  # one_hot looks at the values and waits
    return Batch(data.floats(rows), targets, rows, progress)


class BatchTransform(Choice, ABC):
    """Changes a batch before the step: augmentation, mixing, adversarial perturbation.

    A transform never changes the mode or the buffers of the model, and draws from the given generator alone, so that an
    attacker who knows the generator can replay it.

    >>> from mithridate.core.schema import parse
    >>> parse(BatchTransform, "mixup:k=3").mixes_rows
    True
    """

    home: ClassVar[str] = "mithridate.core.transforms"
    mixes_rows: ClassVar[bool] = False
    """Whether a row of the result depends on other rows of the batch; an instance may set its own."""

    @abstractmethod
    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        """Returns the transformed batch; differentiable in the images."""

    def guarantee(self, recipe: Recipe, data: ImageData) -> Guarantee | None:
        """Says what training by this recipe on these data proves because of this transform; None: nothing."""
        return None


class GradientRule(Choice, ABC):
    """Says how a step gets its gradient.

    >>> from mithridate.core.schema import parse
    >>> parse(GradientRule, "mean")
    Mean()
    """

    home: ClassVar[str] = "mithridate.core.gradient_rules"

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of each trainable parameter by name, and the mean loss []."""

    def check(self, recipe: Recipe) -> None:
        """Makes sure that the rest of a recipe suits this rule; every recipe asks when it is made.

        Raises:
            ValueError: It does not; the message says what to change.
        """

    def guarantee(self, recipe: Recipe, data: ImageData) -> Guarantee | None:
        """Says what training by this recipe on these data proves because of this rule; None: nothing."""
        return None


class RowRule(Choice, ABC):
    """Drops training rows between epochs."""

    home: ClassVar[str] = "mithridate.core.row_rules"

    @abstractmethod
    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        """Returns the row ids to keep, [n] int64."""


class Sampler(Choice, ABC):
    """Says how batches are drawn.

    >>> from mithridate.core.schema import parse
    >>> parse(Sampler, "shuffled").batches(rows=10, batch_size=4)
    3
    """

    home: ClassVar[str] = "mithridate.core.sampling"

    @abstractmethod
    def __call__(self, rows: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yields the row ids [B] of each batch of one epoch."""

    @abstractmethod
    def batches(self, rows: int, batch_size: int) -> int:
        """Returns how many batches one epoch of that many rows has (expected, where it is random)."""
