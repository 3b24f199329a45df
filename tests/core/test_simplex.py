"""Projection onto the simplex and convex combinations, against scipy and against what is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from mithridate.core.seeds import stream
from mithridate.core.simplex import Quadratic, convex_coefficients, onto_simplex, spectral_norm


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, "points"), dtype=torch.float64)


def by_nnls(points: Tensor, target: Tensor, weight: float = 1e5) -> Tensor:
    """Least squares with non-negative weights, and a heavy row that makes them sum to one."""
    matrix = np.vstack([points.T.numpy(), np.full(len(points), weight)])
    return torch.from_numpy(nnls(matrix, np.append(target.numpy(), weight))[0])


def half_square(points: Tensor, target: Tensor, weights: Tensor) -> float:
    return float((weights @ points - target).square().sum() / 2)


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_the_projection_is_the_nearest_point_of_the_simplex(k: int) -> None:
    for seed in range(3):
        vector = 2 * drawn(k, seed=seed)
        found = onto_simplex(vector)
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
        assert torch.allclose(found, by_nnls(torch.eye(k, dtype=torch.float64), vector), atol=1e-5)


def test_the_projection_leaves_the_simplex_alone_and_works_row_by_row() -> None:
    inside = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert torch.allclose(onto_simplex(inside), inside)
    rows = drawn(2, 3, 4)
    assert torch.equal(onto_simplex(rows)[1, 2], onto_simplex(rows[1, 2]))


def test_the_projection_does_not_change_its_argument() -> None:
    vector = drawn(4)
    before = vector.clone()
    onto_simplex(vector)
    assert torch.equal(vector, before)


@pytest.mark.parametrize("k", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("far", [0.0, 5.0])
def test_coefficients_are_those_of_nnls(k: int, far: float) -> None:
    points, target = drawn(k, 64, seed=k) + far, drawn(64, seed=99)
    assert (convex_coefficients(points, target) - by_nnls(points, target)).abs().max() < 1e-5


def test_coefficients_are_those_of_slsqp() -> None:
    points, target = drawn(4, 7), drawn(7, seed=1)
    reference = minimize(
        lambda s: half_square(points, target, torch.from_numpy(s)),
        np.full(4, 0.25),
        jac=lambda s: (points @ (torch.from_numpy(s) @ points - target)).numpy(),
        method="SLSQP",
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda s: s.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert np.abs(convex_coefficients(points, target).numpy() - reference.x).max() < 1e-5


SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


def at(*place: float) -> Tensor:
    return torch.tensor(place, dtype=torch.float64)


CASES = {
    "inside, where many weights do": (SQUARE, at(0.3, 0.6), [0.3, 0.6]),
    "on an edge": (SQUARE, at(0.25, 0.0), [0.25, 0.0]),
    "nearest to an edge": (SQUARE, at(0.25, -3.0), [0.25, 0.0]),
    "at a vertex": (SQUARE, at(1.0, 1.0), [1.0, 1.0]),
    "beyond a vertex": (SQUARE, at(9.0, 9.0), [1.0, 1.0]),
    "repeated points": (SQUARE[[1, 1, 2, 2, 2]], at(0.5, 0.5), [0.5, 0.5]),
    "one point": (SQUARE[:1], at(3.0, 4.0), [0.0, 0.0]),
    "all points the same": (SQUARE[[3, 3, 3]], at(0.0, 4.0), [1.0, 1.0]),
    "all points far away": (SQUARE + 1e4, at(1e4 + 0.3, 1e4), [1e4 + 0.3, 1e4]),
}


@pytest.mark.parametrize("name", CASES)
def test_where_the_nearest_combination_is_known(name: str) -> None:
    points, target, nearest = CASES[name]
    weights = convex_coefficients(points, target)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (weights @ points - at(*nearest)).abs().max() < 1e-5


@pytest.mark.parametrize("iterations", [0, 3, 30])
def test_the_gap_bounds_the_distance_to_the_minimum(iterations: int) -> None:
    points, target = drawn(6, 10), drawn(10, seed=1)
    problem = Quadratic.of(points, target)
    weights = problem.minimiser(iterations=iterations)
    above = half_square(points, target, weights) - half_square(points, target, by_nnls(points, target))
    assert -1e-9 < above <= float(problem.gap(weights)) + 1e-9


def test_the_gap_falls_to_nothing() -> None:
    problem = Quadratic.of(drawn(20, 64), drawn(64, seed=1))
    assert problem.gap(problem.minimiser(iterations=0)) > 1
    assert problem.gap(problem.minimiser(iterations=1000)) < 1e-10


def test_from_a_start_near_the_answer_a_few_iterations_do() -> None:
    points, target = drawn(5, 64), drawn(64, seed=1)
    near = convex_coefficients(points + 0.001 * drawn(5, 64, seed=2), target)
    problem = Quadratic.of(points, target)
    assert 10 * problem.gap(problem.minimiser(near, iterations=3)) < problem.gap(problem.minimiser(iterations=3))


def test_several_problems_are_solved_as_each_alone() -> None:
    points, target = drawn(2, 3, 5, 8), drawn(2, 3, 8, seed=1)
    together = convex_coefficients(points, target)
    assert together.shape == (2, 3, 5)
    assert torch.allclose(together[1, 2], convex_coefficients(points[1, 2], target[1, 2]), atol=1e-9)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_spectral_norm_is_that_of_linalg_and_never_below(k: int) -> None:
    root = drawn(3, k, k) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    found, exact = spectral_norm(root @ root.mT), torch.linalg.matrix_norm(root @ root.mT, ord=2)
    assert (found >= exact * (1 - 1e-12)).all()
    assert (found <= exact * 1.006).all()


def test_the_spectral_norm_of_equal_eigenvalues_is_nearly_exact_too() -> None:
    assert float(spectral_norm(torch.eye(500, dtype=torch.float64))) == pytest.approx(1, rel=0.0062)
