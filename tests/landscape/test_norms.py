"""Norm-bias: with norm 0 weight decay bit for bit, otherwise a pull to the norm from both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import mithridate as mi
from mithridate.core.batch import Batch
from mithridate.core.gradient_rules import Mean, NormBias, Shaped
from mithridate.landscape.norms import pulled, weight_norm


@pytest.fixture(scope="module")
def data() -> mi.ImageData:
    return mi.Digits(train=200).load()[0]


def recipe(**changes: object) -> mi.Recipe:
    plain = mi.Recipe(model="convnet:width=4", epochs=3, learning_rate=0.05, precision="fp32", weight_decay=0.01)
    return replace(plain, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_norm_zero_is_weight_decay_bit_for_bit(data: mi.ImageData, precision: str) -> None:
    decayed = recipe(precision=precision)
    biased = recipe(precision=precision, weight_decay=0.0, gradient=NormBias(strength=0.01))
    one, other = (list(way.fit([data], [0]).models[0].parameters()) for way in (decayed, biased))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    plain = list(recipe(weight_decay=0.0, precision=precision).fit([data], [0]).models[0].parameters())
    assert not all(torch.equal(a, b) for a, b in zip(one, plain, strict=True))


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    for norm in (0.1, 10.0):
        squares = sum(one.square().sum() for one in model.parameters())
        assert isinstance(squares, torch.Tensor)
        penalty = 0.3 / 2 * (squares - norm**2).abs()
        loss = nn.functional.cross_entropy(model(batch.images), batch.targets) + penalty
        expected = torch.autograd.grad(loss, list(model.parameters()))
        found, plain = NormBias(strength=0.3, norm=norm)(model, batch, torch.Generator())
        assert all(
            torch.allclose(found[name], one) for (name, _), one in zip(model.named_parameters(), expected, strict=True)
        )
        assert torch.equal(plain, Mean()(model, batch, torch.Generator())[1])


def test_shares_of_a_batch_add_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    images, targets = torch.rand(4, 1, 2, 2), torch.eye(2)[[0, 1, 0, 1]]
    rule = NormBias(strength=0.3, norm=5.0)
    whole, _ = rule.added(model, Batch(images, targets, torch.arange(4), 0.0), 1.0)
    halves = [
        rule.added(model, Batch(images[rows], targets[rows], torch.tensor(rows), 0.0), 0.5)[0]
        for rows in ([0, 1], [2, 3])
    ]
    assert all(torch.allclose(halves[0][name] + halves[1][name], one, atol=1e-6) for name, one in whole.items())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_strong_pull_ends_near_its_norm(data: mi.ImageData, factor: float) -> None:
    start = weight_norm(recipe().module(data, 0))
    (pulled_recipe,) = pulled(recipe(epochs=20, momentum=0.0, batch_size=20), [factor * start], strength=0.3)
    assert pulled_recipe.weight_decay == 0
    found = weight_norm(pulled_recipe.fit([data], [0]).models[0])
    assert found == pytest.approx(factor * start, rel=0.05)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="norm-bias strength is -1"):
        NormBias(strength=-1)
    with pytest.raises(ValueError, match="norm-bias norm is inf"):
        NormBias(norm=float("inf"))
    with pytest.raises(ValueError, match="no weight decay"):
        next(pulled(recipe(weight_decay=0.0), [1.0]))
    with pytest.raises(ValueError, match="norm-bias says how a step gets its gradient"):
        next(pulled(recipe(gradient=Shaped()), [1.0]))
