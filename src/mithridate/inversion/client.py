"""Client: how a participant of federated learning turns images into what it shares. Defences change it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.augmentation import transformed
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.batchnorm import watching_statistics
from mithridate.core.gradient_rules import trainable
from mithridate.core.guarantees import Guarantee
from mithridate.core.schema import Choice
from mithridate.core.seeds import stream
from mithridate.inversion.filters import Filter
from mithridate.inversion.leak import Leak
from mithridate.inversion.sharing import Gradient, Sharing


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client: how many images it uses, what it computes of them, what it does before it sends the result.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> Client(batch=2).share(model, torch.rand(2, 1, 2, 2), torch.tensor([2, 0]), seed=0).count
    2
    """

    batch: int = 1
    """Images behind one message."""
    sharing: Sharing = Gradient()
    """What is computed of them."""
    mixing: BatchTransform | None = None
    """Mixes the images of the batch before anything is computed."""
    filters: tuple[Filter, ...] = ()
    """What is done to the numbers before they are sent, in this order."""
    tells_labels: bool = True
    """Whether the server knows the labels."""
    tells_statistics: bool = False
    """Whether the client sends the BatchNorm statistics of its batch."""
    guarantees: tuple[Guarantee, ...] = ()
    """What its defences prove about one message."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; a client shares something of at least one image")
        if self.mixing is not None and self.batch < 2:
            raise ValueError("one image cannot be mixed with others of its batch; use a batch of 2 or more (--batch 4)")

    def share(self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int) -> Leak:
        """Computes what the client sends.

        Args:
            model: Images in [0, 1] to logits; not changed.
            images: [B, C, H, W] in [0, 1], with `batch` images.
            labels: [B] int64.
            seed: Draws mixing and noise.

        Returns:
            The leak, with everything that the client does in it: ``believed`` takes knowledge away.

        Raises:
            ValueError: Another number of images.
        """
        if len(images) != self.batch or len(labels) != self.batch:
            raise ValueError(f"the client shares {self.batch} images, but got {len(images)} and {len(labels)} labels")
        like = next(model.parameters())
        images, labels = images.to(like), labels.to(like.device)
        models.settle_layout(model, images)
        classes = _classes(model, images)
        targets = F.one_hot(labels, classes).to(like.dtype)
        mixing = None if self.mixing is None else _matrix(self.mixing, model, len(images), seed).to(like)
        mixed, wanted = images, targets
        if mixing is not None:
            mixed, wanted = (mixing @ images.flatten(1)).view_as(images), mixing @ targets
        with self.sharing.mode(model):
            shared = self.sharing.compute(model, mixed, wanted, graph=False)
            statistics = _statistics(model, mixed) if self.tells_statistics else {}
        for number, filter in enumerate(self.filters):
            shared = filter(shared, stream(seed, "filter", number))
        return Leak(
            model=model,
            shared=dict(zip(trainable(model), shared, strict=True)),
            count=self.batch,
            shape=(images.shape[1], images.shape[2], images.shape[3]),
            classes=classes,
            sharing=self.sharing,
            labels=labels if self.tells_labels else None,
            statistics=statistics,
            filters=self.filters,
            mixing=mixing,
        )


class LeakDefense(Choice, ABC):
    """Changes what a client shares. Adding a file with a subclass to `inversion/defenses/` adds the defence.

    >>> from mithridate.inversion.filters import Clipped
    >>> class Short(LeakDefense):
    ...     def __call__(self, client):
    ...         return filtered(client, Clipped(norm=0.1))
    >>> Short()(Client()).filters
    (Clipped(norm=0.1),)
    """

    home: ClassVar[str] = "mithridate.inversion.defenses"

    @abstractmethod
    def __call__(self, client: Client) -> Client:
        """Returns the client that defends itself."""


def filtered(client: Client, filter: Filter) -> Client:
    """Returns the client that applies one more filter at the end.

    >>> from mithridate.inversion.filters import Sparse
    >>> filtered(Client(), Sparse(keep=0.1)).filters
    (Sparse(keep=0.1),)
    """
    return replace(client, filters=(*client.filters, filter))


def _classes(model: nn.Module, images: Tensor) -> int:
    modes = [(part, part.training) for part in model.modules()]
    with torch.no_grad():
        count = model.eval()(images[:1]).shape[1]
    for part, mode in modes:
        part.training = mode
    return count


def _matrix(mixing: BatchTransform, model: nn.Module, count: int, seed: int) -> Tensor:
    """The weights [B, B] of a mixing: what it makes of the unit vectors, each an image of one row."""
    unit = torch.eye(count)
    batch = Batch(unit[:, None, None, :], unit, torch.arange(count), 1.0)
    return transformed(batch, [mixing], model, stream(seed, "mixing")).images[:, 0, 0, :]


def _statistics(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what comes to each BatchNorm, with the weights that the client was sent."""
    with torch.no_grad(), watching_statistics(model) as seen:
        model(images)
    return dict(seen)
