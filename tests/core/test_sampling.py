"""Shuffled batches, independent rows, independent groups: sizes by hand, and what is drawn how often."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mithridate.core.sampling import Groups, Poisson, Shuffled
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


# --- each row on its own ---------------------------------------------------------------------------------------------


def test_poisson_draws_each_row_with_the_same_probability_whatever_the_others_do() -> None:
    rows, epochs = torch.tensor([40, 7, 9, 100, 3, 55, 21, 8]), 500
    rng = stream(3)
    batches = [batch for _ in range(epochs) for batch in Poisson()(rows, 2, rng)]
    assert len(batches) == 4 * epochs
    drawn = torch.stack([torch.isin(rows, batch) for batch in batches]).double().numpy()
    assert all(len(batch) == len(batch.unique()) and torch.isin(batch, rows).all() for batch in batches)
    assert np.abs(drawn.mean(0) - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / len(batches))
    patterns = np.bincount((drawn @ 2 ** np.arange(8)).astype(int), minlength=256)
    members = np.array([number.bit_count() for number in range(256)])
    expected = len(batches) * 0.25**members * 0.75 ** (8 - members)
    by_size = [[counts[members == size].sum() for size in range(6)] for counts in (patterns, expected)]
    observed, calculated = (np.append(each, len(batches) - sum(each)) for each in by_size)
    assert stats.chisquare(observed, calculated).pvalue > 0.001  # sizes are binomial only if rows are independent
    assert observed[0] > 0, "a batch may be empty"
    covariance = np.cov(drawn.T)[~np.eye(8, dtype=bool)]
    assert np.abs(covariance).max() < 4.5 * 0.25 * 0.75 / np.sqrt(len(batches))


@pytest.mark.parametrize(
    ("rows", "batch_size", "batches", "rate"), [(10, 4, 2, 0.4), (11, 4, 3, 4 / 11), (3, 8, 1, 1.0), (7, 1, 7, 1 / 7)]
)
def test_poisson_counts(rows: int, batch_size: int, batches: int, rate: float) -> None:
    assert Poisson().batches(rows, batch_size) == batches
    assert Poisson().rate(rows, batch_size) == rate
    drawn = list(Poisson()(torch.arange(rows), batch_size, stream(4)))
    assert len(drawn) == batches
    if rate == 1:
        assert drawn[0].tolist() == list(range(rows))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_every_group_of_different_rows_is_equally_likely() -> None:
    rows, rng = torch.tensor([40, 7, 9, 100, 3]), stream(5)
    drawn = torch.cat([next(Groups(k=3)(rows, 500, rng)) for _ in range(4)]).view(-1, 3)
    names = sorted(tuple(sorted(group)) for group in drawn.tolist())
    kinds, counts = np.unique(names, axis=0, return_counts=True)
    assert len(kinds) == 10  # of 5 rows 3, none twice
    assert stats.chisquare(counts).pvalue > 0.001


def test_groups_are_independent_of_each_other() -> None:
    drawn = next(Groups(k=1)(torch.arange(4), 4000, stream(6))).view(-1, 2)
    pairs = np.bincount((drawn[:, 0] * 4 + drawn[:, 1]).numpy(), minlength=16)
    assert stats.chisquare(pairs).pvalue > 0.001


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_batch_of_groups_is_full_and_an_epoch_has_as_many_as_without(k: int) -> None:
    batches = list(Groups(k=k)(torch.arange(9), 4, stream(7)))
    assert (
        [len(batch) for batch in batches] == [4 * k] * Shuffled().batches(9, 4) == [4 * k] * Groups(k=k).batches(9, 4)
    )
    for batch in batches:
        assert all(len(set(group)) == k for group in batch.view(4, k).tolist())
    assert not torch.equal(*batches)


def test_a_group_of_all_rows() -> None:
    batch = next(Groups(k=5)(torch.arange(5), 3, stream(8)))
    assert all(sorted(group) == [0, 1, 2, 3, 4] for group in batch.view(3, 5).tolist())


def test_groups_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 different rows cannot be drawn from 3; use a smaller k"):
        next(Groups(k=4)(torch.arange(3), 2, stream(0)))
    with pytest.raises(ValueError, match="k is 0"):
        Groups(k=0)
