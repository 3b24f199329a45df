"""Curvature against the dense Hessian of a tiny network, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mithridate.landscape.curvature import dense_hessian, density, eigenvalues, trace
from mithridate.landscape.losses import Loss


def tiny(hidden: int = 6, norm: bool = False) -> Loss:
    """A network of a few dozen parameters, partly trained, and its data."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(hidden))
    model = nn.Sequential(*layers).double()
    inputs = torch.randn(30, 4, dtype=torch.float64)
    return Loss(model, inputs, (inputs[:, :3].argmax(1) + torch.arange(30) % 2) % 3, batch=7)


def by_hand(loss: Loss) -> Tensor:
    """The Hessian of one function of the flat parameters."""

    def value(point: Tensor) -> Tensor:
        logits = torch.func.functional_call(loss.model, loss.named(point), (loss.inputs,))
        return nn.functional.cross_entropy(logits, loss.labels)

    loss.model.eval()
    return torch.autograd.functional.hessian(value, loss.point)  # pyright: ignore[reportReturnType]


def test_loss_and_gradient_are_those_of_one_pass() -> None:
    loss = tiny(norm=True)
    loss.model.eval()
    whole = nn.functional.cross_entropy(loss.model(loss.inputs), loss.labels)
    whole.backward()
    assert loss.score().loss == pytest.approx(whole.item(), abs=1e-13)
    by_parts = torch.cat([one.grad.reshape(-1) for one in loss.model.parameters() if one.grad is not None])
    assert torch.allclose(loss.gradient(), by_parts, atol=1e-13)
    moved = loss.point + 0.1
    assert loss.score(moved).loss != loss.score().loss
    assert torch.equal(loss.gradient(loss.point), loss.gradient())


def test_looking_changes_nothing() -> None:
    loss = tiny(norm=True)
    loss.model.train()
    before = {name: one.clone() for name, one in loss.model.state_dict().items()}
    loss.score(loss.point + 1)
    loss.gradient()
    loss.hessian_times(torch.ones(loss.size).double())
    assert loss.model.training
    assert all(torch.equal(before[name], one) for name, one in loss.model.state_dict().items())
    assert all(one.grad is None for one in loss.model.parameters())


@pytest.mark.parametrize("norm", [False, True])
def test_products_are_those_of_the_dense_hessian(norm: bool) -> None:
    loss = tiny(norm=norm)
    dense = by_hand(loss)
    vector = torch.randn(loss.size, dtype=torch.float64)
    assert torch.allclose(loss.hessian_times(vector), dense @ vector, atol=1e-12)
    assert torch.allclose(dense_hessian(loss), dense, atol=1e-12)


@pytest.mark.parametrize("hidden", [2, 6, 12])
def test_extreme_eigenvalues_are_those_of_the_dense_hessian(hidden: int) -> None:
    loss = tiny(hidden)
    expected = torch.linalg.eigvalsh(by_hand(loss))
    assert torch.allclose(eigenvalues(loss, 3), expected.flip(0)[:3], atol=1e-7)
    assert torch.allclose(eigenvalues(loss, 2, which="smallest"), expected[:2], atol=1e-7)


def test_the_trace_is_within_its_error() -> None:
    loss = tiny()
    exact = float(by_hand(loss).trace())
    found = trace(loss, 200)
    assert abs(found.value - exact) < 4 * found.error
    assert 0 < found.error < 0.2 * abs(exact)


def test_the_density_adds_up_and_has_the_mean_and_the_negative_share() -> None:
    loss = tiny(2)
    expected = torch.linalg.eigvalsh(by_hand(loss))
    found = density(loss, probes=60, steps=loss.size)
    step = float(found.values[1] - found.values[0])
    assert float(found.heights.sum()) * step == pytest.approx(1, abs=0.01)
    assert found.mean == pytest.approx(float(expected.mean()), rel=0.25)
    assert float(found.nodes.nan_to_num(-9).max()) == pytest.approx(float(expected.max()), rel=1e-6)
    assert found.negative == pytest.approx(float((expected < 0).double().mean()), abs=0.12)
    assert torch.allclose(found.weights.sum(1), torch.ones(60).double())


def test_a_quadratic_loss_has_the_spectrum_that_it_was_given() -> None:
    """Lanczos ends early where there are fewer distinct eigenvalues than steps."""
    loss = tiny(2)
    values = torch.tensor([1.0, 2.0, 5.0]).double().repeat(10)[: loss.size]
    loss.hessian_times = lambda vector: values * vector  # pyright: ignore[reportAttributeAccessIssue]
    found = density(loss, probes=3, steps=15)
    nodes = found.nodes[found.weights > 1e-12]
    assert len(nodes) == 9
    assert torch.allclose(nodes.view(3, 3).sort().values, torch.tensor([1.0, 2.0, 5.0]).double().expand(3, 3))
    assert found.mean == pytest.approx(float(values.mean()))


def test_frozen_parameters_are_no_directions() -> None:
    loss = tiny()
    frozen = loss.model
    assert isinstance(frozen, nn.Sequential)
    frozen[0].requires_grad_(False)
    assert Loss(frozen, loss.inputs, loss.labels).size == 21
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        Loss(frozen, loss.inputs, loss.labels)


def test_bad_input_is_refused() -> None:
    loss = tiny()
    with pytest.raises(ValueError, match="30 inputs and 3 labels"):
        Loss(loss.model, loss.inputs, loss.labels[:3])
    with pytest.raises(ValueError, match="0 eigenvalues"):
        eigenvalues(loss, 0)
    with pytest.raises(ValueError, match="1 probes; give 2 or more"):
        trace(loss, 1)
    with pytest.raises(ValueError, match="0 steps"):
        density(loss, steps=0)
