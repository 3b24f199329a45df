"""Shuffled batches: every row once, sizes by hand, fresh order, ids instead of positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mithridate.core.sampling import Shuffled
from mithridate.core.seeds import stream


@pytest.mark.parametrize(
    ("rows", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),  # one row alone would have no batch statistics
        (10, 4, [4, 4, 2]),
        (3, 8, [3]),
        (1, 8, [1]),
        (5, 1, [1] * 5),
        (5, 5, [5]),
        (6, 5, [6]),
    ],
)
def test_sizes(rows: int, batch_size: int, sizes: list[int]) -> None:
    batches = list(Shuffled()(torch.arange(rows), batch_size, stream(0)))
    assert [len(batch) for batch in batches] == sizes
    assert Shuffled().batches(rows, batch_size) == len(sizes)


def test_every_row_id_comes_once_per_epoch() -> None:
    rows = torch.tensor([40, 7, 9, 100, 3, 55, 21])
    drawn = torch.cat(list(Shuffled()(rows, 3, stream(1))))
    assert sorted(drawn.tolist()) == sorted(rows.tolist())


def test_the_order_is_fresh_in_each_epoch_and_follows_the_generator() -> None:
    def epochs(seed: int) -> list[list[int]]:
        rng = stream(seed)
        return [torch.cat(list(Shuffled()(torch.arange(30), 8, rng))).tolist() for _ in range(2)]

    assert epochs(0) == epochs(0)
    assert epochs(0)[0] != epochs(0)[1]
    assert epochs(0) != epochs(1)


def test_every_row_is_equally_likely_to_come_first() -> None:
    rng = stream(2)
    first = [int(next(Shuffled()(torch.arange(6), 2, rng))[0]) for _ in range(600)]
    assert stats.chisquare(np.bincount(first, minlength=6)).pvalue > 0.001
