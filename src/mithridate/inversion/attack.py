"""Inversion: one method, from a leak to images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.gradient_rules import trainable
from mithridate.core.members import side_by_side
from mithridate.core.models import last_linear
from mithridate.core.progress import track
from mithridate.core.schema import Choice, name_of
from mithridate.core.seeds import derive, stream
from mithridate.inversion.labels import Recovery, recover
from mithridate.inversion.leak import Leak

NOISE_IMAGES = 64
"""Images of noise on which a model's habits are measured."""


class Reconstruction(NamedTuple):
    """What an attack makes of a leak."""

    images: Tensor
    """[B, C, H, W] in [0, 1], in no particular order."""
    labels: Tensor
    """[B] int64 of these images, known or recovered."""
    value: float
    """Distance of what these images would have shared from what was shared; 0: the same."""
    notes: dict[str, float]
    """Numbers worth knowing."""


class Inversion(Choice, ABC):
    """Reconstructs a client's images. Adding a file with a subclass to `inversion/attacks/` adds the attack.

    An attack never judges itself: what it returns is compared with the true images elsewhere.

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> class Grey(Inversion):
    ...     def reconstruct(self, leak, seed):
    ...         return Reconstruction(torch.full((leak.count, *leak.shape), 0.5), leak.labels, 0.0, {})
    >>> leak = Client().share(
    ...     nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images, torch.tensor([2]), seed=0
    ... )
    >>> Grey().reconstruct(leak, seed=0).images.shape
    torch.Size([1, 1, 4, 4])
    """

    home: ClassVar[str] = "mithridate.inversion.attacks"
    distinct_labels: ClassVar[bool] = False
    """Whether the images of a batch must have different labels."""

    @abstractmethod
    def reconstruct(self, leak: Leak, seed: int) -> Reconstruction:
        """Reconstructs the images behind a leak.

        Args:
            leak: Everything the server knows; not changed.
            seed: Where a search starts.

        Raises:
            ValueError: A leak that does not hold what the attack needs.
        """


class Attempt(NamedTuple):
    """The outcome of one start of a search."""

    images: Tensor
    labels: Tensor
    value: Tensor


class Search(Inversion):
    """An attack that searches from random images; of several starts the one that matches best is kept."""

    restarts: int
    """Independent starts, which `members_by` shares out."""

    @abstractmethod
    def attempt(self, leak: Leak, rng: torch.Generator) -> Attempt:
        """Searches once; draws from the generator alone."""

    def reconstruct(self, leak: Leak, seed: int) -> Reconstruction:
        """Reconstructs the images behind a leak.

        Raises:
            ValueError: No restart is asked for, or a leak that does not hold what the attack needs.
        """
        if self.restarts < 1:
            raise ValueError(f"restarts is {self.restarts}; at least one start is needed")
        jobs = [(self, leak, derive(seed, "restart", number)) for number in range(self.restarts)]
        tried = side_by_side(_attempted, jobs, [])
        if tried is None:
            tried = [_attempted(job) for job in track(jobs, name_of(self), total=len(jobs) if len(jobs) > 1 else None)]
        values = torch.stack([one.value for one in tried]).nan_to_num(nan=torch.inf)
        best = tried[int(values.argmin())]
        notes = {"spread_of_restarts": float(values.max() - values.min())} if len(tried) > 1 else {}
        return Reconstruction(best.images.clamp(0, 1), best.labels, float(best.value), notes)


def _attempted(job: tuple[Search, Leak, int]) -> Attempt:
    attack, leak, seed = job
    return attack.attempt(leak, stream(seed))


# --- what searches share ---------------------------------------------------------------------------------------------


def grey_noise(leak: Leak, rng: torch.Generator) -> Tensor:
    """Returns images [B, C, H, W] of Gaussian noise around middle grey: where the field's searches begin.

    The deviation is 0.25: noise of deviation 1 in the normalised pixels of common data sets.
    """
    noise = torch.randn(leak.count, *leak.shape, generator=rng)
    return (0.5 + 0.25 * noise).to(leak.device, leak.dtype)


def labels_of(leak: Leak, recovery: Recovery) -> Tensor:
    """Returns the labels [B]: those that the server knows, else what the gradient of the last layer says.

    Raises:
        ValueError: Neither: the model does not end with a Linear, or the gradient does not tell.
    """
    if leak.labels is not None:
        return leak.labels
    weight, bias = last_layer(leak)
    noise = torch.rand(NOISE_IMAGES, *leak.shape, generator=stream(0, "noise images")).to(leak.device, leak.dtype)
    with torch.no_grad(), leak.mode():
        habit = leak.model(noise).softmax(1).mean(0)
    scaled = bool(leak.filters) or getattr(leak.sharing, "clip", None) is not None
    return recover(recovery, weight, bias, leak.count, habit, scaled=scaled).to(leak.device)


def last_layer(leak: Leak) -> tuple[Tensor, Tensor | None]:
    """Returns what was shared of the last Linear, weight [K, D] and bias [K] if there is one, as a mean gradient.

    Raises:
        ValueError: The model does not end with a Linear that is trained.
    """
    return layer_gradient(leak, last_linear(leak.model))


def layer_gradient(leak: Leak, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Returns what was shared of a Linear, weight [K, D] and bias [K] if there is one, as a mean gradient.

    Raises:
        ValueError: Its weight is not trained.
    """
    names = {id(parameter): name for name, parameter in trainable(leak.model).items()}
    if id(layer.weight) not in names:
        raise ValueError("the weight of the Linear that the attack reads is not trained, so nothing of it was shared")
    factor = leak.sharing.as_gradient()
    weight = factor * leak.shared[names[id(layer.weight)]]
    has_bias = layer.bias is not None and id(layer.bias) in names
    return weight, factor * leak.shared[names[id(layer.bias)]] if has_bias else None
