"""Neighbours against scikit-learn's brute force in float64, and against distances written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mithridate.core import neighbours
from mithridate.core.neighbours import nearest
from mithridate.core.seeds import stream


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=stream(seed, "features"), dtype=torch.float64)


def reference(features: Tensor, k: int) -> np.ndarray:
    """Of each row without the row itself, since scikit-learn leaves it out where it is not asked about given rows."""
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features.double().numpy())
    return search.kneighbors(return_distance=False)


def distances(features: Tensor, index: Tensor) -> Tensor:
    """[N, k] float64, by subtraction."""
    points = features.double()
    return (points[:, None] - points[index]).norm(dim=2)


@pytest.mark.parametrize(
    ("rows", "columns", "k"),
    [(2, 1, 1), (50, 3, 7), (40, 200, 39), (300, 16, 1), (1000, 8, 2), (997, 8, 5), (301, 20, 75), (64, 4, 63)],
)
@pytest.mark.parametrize("block", [0, 1, 17, 64, 5000])
def test_neighbours_and_their_order_are_scikit_learns(rows: int, columns: int, k: int, block: int) -> None:
    features = drawn(rows, columns)
    assert np.array_equal(nearest(features, k, block=block).numpy(), reference(features, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_other_number_formats_find_rows_as_near_as_the_nearest(dtype: torch.dtype) -> None:
    """Rounded features have equal distances, so distances are compared, not rows."""
    features = (drawn(200, 12) * 20 + 100).to(dtype)
    found, expected = (distances(features, i) for i in (nearest(features, 9), torch.from_numpy(reference(features, 9))))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_offset_shared_by_all_features_costs_no_digits() -> None:
    """Without centring, squares of 10^4 would leave nothing of squared distances near 1 in float32."""
    near = drawn(300, 24).float()
    far = near + 1e4
    found = distances(far, nearest(far, 10))
    torch.testing.assert_close(found, distances(far, torch.from_numpy(reference(far, 10))), rtol=1e-5, atol=1e-4)


def test_copies_of_a_row_are_its_neighbours_and_the_row_is_not() -> None:
    features = drawn(30, 6).repeat(3, 1)
    index = nearest(features, 2)
    for row, found in enumerate(index.tolist()):
        assert sorted([row, *found]) == [row % 30, row % 30 + 30, row % 30 + 60]


def test_equal_features_have_neighbours_all_the_same() -> None:
    index = nearest(torch.ones(40, 5), 6)
    assert all(len(set(found)) == 6 and row not in found for row, found in enumerate(index.tolist()))


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_bundled_search_finds_what_sorting_finds(groups: int, k: int) -> None:
    scores = torch.rand(20, 480, generator=stream(k, "scores"))
    scores[:, -3:] = torch.inf
    assert torch.equal(neighbours._smallest(scores, k, groups), scores.argsort(1)[:, :k])


def test_what_is_kept_of_a_block_comes_in_the_order_of_the_rows() -> None:
    features, sizes = drawn(100, 4), []

    def first(index: Tensor) -> Tensor:
        sizes.append(tuple(index.shape))
        return index[:, 0]

    assert torch.equal(nearest(features, 3, then=first, block=30), nearest(features, 3)[:, 0])
    assert sizes == [(30, 3), (30, 3), (30, 3), (10, 3)]


def test_where_memory_runs_out_blocks_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    features, smallest = drawn(100, 4), neighbours._smallest

    def scarce(scores: Tensor, k: int, groups: int) -> Tensor:
        if len(scores) > 16:
            raise MemoryError
        return smallest(scores, k, groups)

    monkeypatch.setattr(neighbours, "_smallest", scarce)
    with pytest.warns(UserWarning, match="going on with pieces of 16"):
        found = nearest(features, 3, block=32)
    assert np.array_equal(found.numpy(), reference(features, 3))


def test_features_are_left_as_they_are() -> None:
    features = drawn(50, 4)
    before = features.clone()
    nearest(features, 3)
    assert torch.equal(features, before)


@pytest.mark.parametrize("k", [0, 10, -1])
def test_a_number_of_neighbours_that_is_not_there_is_explained(k: int) -> None:
    with pytest.raises(ValueError, match=rf"{k} neighbours of 10 rows; ask for at least 1 and at most 9"):
        nearest(drawn(10, 2), k)


def test_features_that_are_no_table_or_not_finite_are_explained() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\)"):
        nearest(torch.ones(3, 2, 2), 1)
    with pytest.raises(ValueError, match="not finite: the model has diverged"):
        nearest(torch.tensor([[0.0], [torch.nan], [1.0]]), 1)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    features = drawn(700, 16)
    assert torch.equal(nearest(features.cuda(), 11).cpu(), nearest(features, 11))
