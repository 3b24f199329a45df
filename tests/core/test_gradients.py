"""Algebra on gradients against numpy on one long vector, autograd and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.core.gradients import cosine, cosine_slope, dot, norm

SHAPES = {"weight": (3, 4), "bias": (3,), "scale": ()}


def gradient(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in SHAPES.items()}


def vector(of: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([value.numpy().ravel() for value in of.values()])


A, B = gradient(0), gradient(1)


def test_against_one_long_numpy_vector() -> None:
    a, b = vector(A), vector(B)
    assert dot(A, B).item() == pytest.approx(a @ b)
    assert norm(A).item() == pytest.approx(np.linalg.norm(a))
    assert cosine(A, B).item() == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_sequences_and_mappings_mean_the_same() -> None:
    assert torch.equal(dot(list(A.values()), tuple(B.values())), dot(A, B))
    assert torch.equal(cosine(list(A.values()), B), cosine(A, B))


def test_the_cosine_is_not_a_mean_over_layers() -> None:
    a, b = [torch.tensor([1.0]), torch.tensor([10.0])], [torch.tensor([-1.0]), torch.tensor([10.0])]
    assert cosine(a, b).item() == pytest.approx(99 / 101)


def test_different_numbers_of_parameters_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        dot([torch.ones(1)], [torch.ones(1), torch.ones(1)])


def test_a_zero_gradient_has_cosine_zero() -> None:
    zero = {name: torch.zeros_like(value) for name, value in A.items()}
    assert cosine(zero, B).item() == 0
    value, slope = cosine_slope(list(zero.values()), list(B.values()))
    assert value.item() == 0
    assert all(part.isfinite().all() for part in slope)


def test_the_slope_is_that_of_autograd() -> None:
    leaves = [value.clone().requires_grad_() for value in A.values()]
    expected = torch.autograd.grad(cosine(leaves, list(B.values())), leaves)
    value, slope = cosine_slope(list(A.values()), list(B.values()))
    torch.testing.assert_close(value, cosine(A, B))
    torch.testing.assert_close(slope, list(expected))


def test_the_slope_is_that_of_finite_differences() -> None:
    _, slope = cosine_slope(list(A.values()), list(B.values()))
    step = 1e-6
    for part, (name, values) in zip(slope, A.items(), strict=True):
        for index in range(values.numel()):
            change = torch.zeros(values.numel(), dtype=torch.float64)
            change[index] = step
            change = change.view(values.shape)
            up, down = (cosine({**A, name: values + sign * change}, B).item() for sign in (1, -1))
            assert part.flatten()[index].item() == pytest.approx((up - down) / (2 * step), abs=1e-8)
