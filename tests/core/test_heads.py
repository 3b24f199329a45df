"""The last layer against scikit-learn, scipy and its own optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mithridate.core.heads import fit_head
from mithridate.core.seeds import stream


def problem(rows: int = 80, width: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Features of very different scales, and labels that a plane cannot separate."""
    rng = stream(0, "head")
    features = torch.randn(rows, width, generator=rng) * torch.tensor([0.1, 1, 5, 20, 3.0])[:width] + 1
    standard = (features - features.mean(0)) / features.std(0)
    labels = (standard + torch.randn(rows, width, generator=rng)).argmax(1) % classes
    return features, labels


def unit(features: Tensor) -> Tensor:
    return features.double() / features.double().square().mean().sqrt()


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-1])
def test_against_scikit_learn(weight_decay: float) -> None:
    features, labels = problem()
    head, loss = fit_head(features, torch.eye(3)[labels], nn.Linear(5, 3), weight_decay)
    reference = LogisticRegression(C=1 / (len(labels) * weight_decay), tol=1e-10, max_iter=10_000)
    reference.fit(unit(features).numpy(), labels.numpy())
    found = head(features).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(unit(features).numpy()), atol=1e-4)
    picked = reference.predict_proba(unit(features).numpy())[np.arange(len(labels)), labels]
    expected = -np.log(picked).mean() + weight_decay / 2 * (reference.coef_**2).sum()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_against_scipy_with_soft_labels(bias: bool) -> None:
    features, _ = problem()
    targets = torch.softmax(2 * torch.randn(80, 3, generator=stream(1)), 1).double()
    x, y = unit(features).numpy(), targets.numpy()

    def objective(flat: np.ndarray) -> float:
        weight, offset = flat[:15].reshape(3, 5), flat[15:] if bias else np.zeros(3)
        logits = x @ weight.T + offset
        logits -= logits.max(1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(y * log).sum(1).mean() + 0.01 / 2 * (weight**2).sum()

    expected = minimize(objective, np.zeros(18 if bias else 15), tol=1e-12).fun
    head, loss = fit_head(features, targets, nn.Linear(5, 3, bias=bias), 0.01)
    assert loss == pytest.approx(expected, abs=1e-7)
    assert (head.bias is not None) == bias


def test_the_start_does_not_matter_and_is_left_alone() -> None:
    features, labels = problem()
    heads = [nn.Linear(5, 3), nn.Linear(5, 3)]
    with torch.no_grad():
        heads[1].weight.mul_(20)
    copies = [head.weight.clone() for head in heads]
    fitted = [fit_head(features, torch.eye(3)[labels], head, 0.01) for head in heads]
    answers = [head(features).softmax(1) for head, _ in fitted]  # a constant on all logits is free
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)
    assert fitted[0][1] == pytest.approx(fitted[1][1], abs=1e-8)
    assert all(torch.equal(head.weight, copy) for head, copy in zip(heads, copies, strict=True))


def test_the_scale_of_all_features_together_does_not_matter() -> None:
    features, labels = problem()
    targets = torch.eye(3)[labels]
    small, large = (fit_head(factor * features, targets, nn.Linear(5, 3), 0.01) for factor in (1e-3, 1e3))
    answers = small[0](1e-3 * features).softmax(1), large[0](1e3 * features).softmax(1)
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)


def test_the_result_is_deterministic_float32_and_trainable() -> None:
    features, labels = problem()
    start = nn.Linear(5, 3)
    first, again = (fit_head(features, torch.eye(3)[labels], start, 0.01)[0] for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert first.weight.dtype == torch.float32
    assert first.weight.requires_grad


def test_features_that_are_all_zero_leave_the_class_frequencies() -> None:
    targets = torch.eye(2)[[0, 0, 0, 1]]
    head, _ = fit_head(torch.zeros(4, 5), targets, nn.Linear(5, 2), 0.01)
    torch.testing.assert_close(head(torch.zeros(1, 5)).softmax(1), torch.tensor([[0.75, 0.25]]), atol=1e-4, rtol=0)
