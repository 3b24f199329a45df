"""How the batches of an epoch are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.batch import Sampler


@dataclass(frozen=True, kw_only=True)
class Shuffled(Sampler):
    """Every row once per epoch, in a fresh random order; a last batch of one row joins the batch before it.

    >>> [len(rows) for rows in Shuffled()(torch.arange(9), 4, torch.Generator())]
    [4, 5]
    """

    def __call__(self, rows: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
        order = rows[torch.randperm(len(rows), generator=rng).to(rows.device)]
        sizes = [batch_size] * (self.batches(len(rows), batch_size) - 1)
        yield from order.split([*sizes, len(rows) - sum(sizes)])

    def batches(self, rows: int, batch_size: int) -> int:
        full, rest = divmod(rows, batch_size)
        return max(1, full + (rest > 1))


@dataclass(frozen=True, kw_only=True)
class Poisson(Sampler):
    """Each row is in each batch with probability batch_size / rows, whatever the others do.

    So batches differ in size, and one may be empty. This is the sampling that private training is accounted for: what
    a batch holds of one row says nothing about the others.

    >>> rng = torch.Generator().manual_seed(0)
    >>> [len(rows) for rows in Poisson()(torch.arange(9), 3, rng)]
    [1, 3, 3]
    """

    def __call__(self, rows: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.batches(len(rows), batch_size)):
            drawn = torch.rand(len(rows), dtype=torch.float64, generator=rng) < self.rate(len(rows), batch_size)
            yield rows[drawn.nonzero()[:, 0].to(rows.device, non_blocking=True)]

    def batches(self, rows: int, batch_size: int) -> int:
        return max(1, round(rows / batch_size))

    def rate(self, rows: int, batch_size: int) -> float:
        """Returns the probability that a row is in a batch.

        >>> Poisson().rate(rows=1000, batch_size=100)
        0.1
        """
        return min(1.0, batch_size / rows)


@dataclass(frozen=True, kw_only=True)
class Groups(Sampler):
    """Independent groups of `k` different rows, each drawn uniformly from the whole set, to be mixed into one image.

    A batch holds batch_size groups one after the other, batch_size x k rows; an epoch has as many batches as if rows
    came one by one. A row may be in many groups of an epoch or in none.

    Raises:
        ValueError: Fewer than one row per group; or, when drawing, fewer rows than that.

    >>> next(Groups(k=2)(torch.arange(9), 4, torch.Generator())).shape
    torch.Size([8])
    """

    k: int = 4
    """Rows per group."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"groups k is {self.k}; a group needs at least 1 row")

    def __call__(self, rows: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
        if len(rows) < self.k:
            raise ValueError(f"groups of {self.k} different rows cannot be drawn from {len(rows)}; use a smaller k")
        for _ in range(self.batches(len(rows), batch_size)):
            yield rows[self._drawn(len(rows), batch_size, rng).to(rows.device, non_blocking=True)]

    def batches(self, rows: int, batch_size: int) -> int:
        return Shuffled().batches(rows, batch_size)

    def _drawn(self, rows: int, groups: int, rng: torch.Generator) -> Tensor:
        """Places [groups * k]: the next of a group is uniform among what is left, counted past what is taken."""
        taken = torch.empty(groups, 0, dtype=torch.int64)
        for left in range(rows, rows - self.k, -1):
            place = torch.randint(left, (groups,), generator=rng)
            for earlier in taken.unbind(1):  # in ascending order
                place += place >= earlier
            taken = torch.cat([taken, place[:, None]], dim=1).sort(dim=1).values
        return taken.flatten()
