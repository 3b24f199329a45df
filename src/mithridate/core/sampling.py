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
