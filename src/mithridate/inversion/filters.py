"""Filters: what happens to shared numbers before they are sent, and how an attacker who knows it looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mithridate.core.gradients import norm
from mithridate.core.schema import Choice

Pair = tuple[list[Tensor], list[Tensor]]
"""What an attacker computed of a candidate, and what was sent, made comparable."""


class Filter(Choice, ABC):
    """Changes a list of tensors, one per parameter.

    >>> from mithridate.core.schema import parse
    >>> parse(Filter, "sparse:keep=0.1").keep
    0.1
    """

    home: ClassVar[str] = "mithridate.inversion.filters"

    @abstractmethod
    def __call__(self, shared: list[Tensor], rng: torch.Generator) -> list[Tensor]:
        """Returns what is sent."""

    @abstractmethod
    def seen(self, candidate: list[Tensor], sent: list[Tensor]) -> Pair:
        """Makes the tensors of a candidate comparable with what was sent, differentiably, knowing the filter."""


@dataclass(frozen=True, kw_only=True)
class Clipped(Filter):
    """Shortens the whole vector to a largest Euclidean norm.

    >>> Clipped(norm=1.0)([torch.tensor([3.0, 4.0])], torch.Generator())
    [tensor([0.6000, 0.8000])]
    """

    norm: float
    """Largest Euclidean norm over all parameters."""

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise ValueError(f"norm is {self.norm}; the largest norm of what is sent must be positive")

    def __call__(self, shared: list[Tensor], rng: torch.Generator) -> list[Tensor]:
        return list(torch._foreach_mul(shared, (self.norm / norm(shared).clamp_min(1e-12)).clamp_max(1)))

    def seen(self, candidate: list[Tensor], sent: list[Tensor]) -> Pair:
        factor = (self.norm / norm(candidate).clamp_min(1e-12)).clamp_max(1)
        return [factor * part for part in candidate], sent


@dataclass(frozen=True, kw_only=True)
class Noisy(Filter):
    """Adds Gaussian noise to every number.

    An attacker who knows the deviation trusts each tensor as far as it rises above the noise: both sides are weighted
    by the square root of the shrinkage 1 - d std^2 / |sent|^2 of its d numbers (James, Stein, "Estimation with
    Quadratic Loss", 1961), not below zero.

    >>> Noisy(std=1.0).seen([torch.ones(4)], [torch.full((4,), 2.0)])[1]
    [tensor([1.7321, 1.7321, 1.7321, 1.7321])]
    """

    std: float
    """Standard deviation of the noise."""

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"std is {self.std}; a standard deviation is 0 or more")

    def __call__(self, shared: list[Tensor], rng: torch.Generator) -> list[Tensor]:
        draws = [torch.randn(part.shape, generator=rng).to(part) for part in shared]
        return list(torch._foreach_add(shared, draws, alpha=self.std))

    def seen(self, candidate: list[Tensor], sent: list[Tensor]) -> Pair:
        weights = [
            (1 - part.numel() * self.std**2 / part.square().sum().clamp_min(1e-30)).clamp_min(0).sqrt() for part in sent
        ]
        weights = weights if any(bool(w > 0) for w in weights) else [torch.ones_like(w) for w in weights]
        return list(torch._foreach_mul(candidate, weights)), list(torch._foreach_mul(sent, weights))


@dataclass(frozen=True, kw_only=True)
class Sparse(Filter):
    """Keeps the largest numbers of the whole vector and sets the others to zero.

    An attacker who knows it compares only where something was sent.

    >>> Sparse(keep=0.5)([torch.tensor([3.0, -4.0]), torch.tensor([1.0, 0.5])], torch.Generator())
    [tensor([ 3., -4.]), tensor([0., 0.])]
    """

    keep: float
    """Share of the numbers that is sent, 0..1."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; it is a share of the numbers, so use 0.1 for 10 %")

    def __call__(self, shared: list[Tensor], rng: torch.Generator) -> list[Tensor]:
        sizes = torch.cat([part.abs().flatten() for part in shared])
        count = max(1, round(self.keep * len(sizes)))
        least = sizes.kthvalue(len(sizes) - count + 1).values
        return [torch.where(part.abs() >= least, part, 0) for part in shared]

    def seen(self, candidate: list[Tensor], sent: list[Tensor]) -> Pair:
        return [torch.where(there != 0, part, 0) for part, there in zip(candidate, sent, strict=True)], sent


@dataclass(frozen=True, kw_only=True)
class Quantized(Filter):
    """Rounds the numbers of each tensor to 2^bits evenly spaced values between its extremes.

    An attacker who knows it counts a difference only where it leaves the interval that was rounded to one value.

    >>> Quantized(bits=1)([torch.tensor([-1.0, -0.2, 0.4, 1.0])], torch.Generator())
    [tensor([-1., -1.,  1.,  1.])]
    """

    bits: int = 8
    """Bits per number."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; 1 to 16 bits per number are meaningful")

    def __call__(self, shared: list[Tensor], rng: torch.Generator) -> list[Tensor]:
        return [self._rounded(part) for part in shared]

    def _rounded(self, part: Tensor) -> Tensor:
        step = self._step(part)
        if not step > 0:
            return part
        return part.amin() + ((part - part.amin()) / step).round() * step

    def _step(self, part: Tensor) -> Tensor:
        return (part.amax() - part.amin()) / (2**self.bits - 1)

    def seen(self, candidate: list[Tensor], sent: list[Tensor]) -> Pair:
        half = [self._step(part) / 2 for part in sent]
        inside = [
            torch.minimum(torch.maximum(part - there, -width), width)
            for part, there, width in zip(candidate, sent, half, strict=True)
        ]
        return [part - within for part, within in zip(candidate, inside, strict=True)], sent
