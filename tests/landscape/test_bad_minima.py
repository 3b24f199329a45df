"""Bad minima: the embedded network is one, training freely goes below it, and bad starts end as they should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.landscape.bad_minima import (
    Bias,
    certify,
    continued,
    dead_share,
    embedded,
    linear_minimum,
    set_biases,
)
from mithridate.landscape.losses import Loss


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Six principal components of 400 digits, which no plane separates."""
    train, _ = mi.Digits(train=400).load()
    pixels = train.floats(train.ids).flatten(1).double()
    pixels = pixels - pixels.mean(0)
    _, _, ways = torch.linalg.svd(pixels, full_matrices=False)
    found = pixels @ ways[:6].T
    return found / found.std(0), train.labels_of(train.ids)


def test_the_linear_minimum_is_one(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    found = linear_minimum(features, labels)
    model = nn.Linear(6, 10, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(found.weight)
        model.bias.copy_(found.bias)
    loss = Loss(model, features, labels)
    assert loss.score().loss == pytest.approx(found.loss, abs=1e-12)
    assert float(loss.gradient().norm()) < 1e-8
    assert certify(model, features, labels, directions=20).holds()


@pytest.mark.parametrize(("hidden", "width"), [(1, None), (2, None), (4, None), (2, 9)])
def test_the_deep_network_has_the_same_loss_and_no_way_down(
    digits: tuple[Tensor, Tensor], hidden: int, width: int | None
) -> None:
    features, labels = digits
    minimum = linear_minimum(features, labels)
    deep = embedded(minimum, features, hidden=hidden, width=width)
    found = certify(deep, features, labels, directions=30, steps=50)
    assert found.loss == pytest.approx(minimum.loss, abs=1e-12)
    assert found.gradient_norm < 1e-6
    assert found.smallest > -1e-7
    assert found.largest > 0.01
    assert min(found.rises.values()) > 0
    assert found.descended <= 1e-12
    assert found.holds()
    assert dead_share(deep, features) == 0


def test_training_freely_goes_below_it_and_training_from_it_does_not(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    minimum = linear_minimum(features, labels)
    deep = embedded(minimum, features, hidden=2, width=12)
    _, stayed = continued(deep, features, labels, epochs=10, learning_rate=1e-4)
    assert all(abs(score.loss - minimum.loss) < 0.005 for score in stayed)
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10)).double()
    _, free = continued(fresh, features, labels, epochs=150, learning_rate=0.03)
    assert free[-1].loss < minimum.loss - 0.1


def test_a_point_on_a_slope_and_a_saddle_are_no_minimum(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10)).double()
    assert not certify(model, features, labels, directions=5, steps=5).holds()
    saddle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    with torch.no_grad():
        for parameter in saddle.parameters():
            parameter.zero_()
        saddle[2].bias.copy_(labels.bincount(minlength=10).double().log())  # the best that a constant can do
    found = certify(saddle, features, labels, directions=5, steps=5)
    assert found.gradient_norm < 1e-9
    assert found.smallest < -1e-3
    assert not found.holds()


def test_classes_that_a_plane_separates_have_no_minimum() -> None:
    features = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
    with pytest.raises(ValueError, match="a plane separates the classes, so that there is no minimum of 4 images"):
        linear_minimum(features, torch.tensor([0, 0, 1, 1]))


def test_bad_input_is_refused(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    minimum = linear_minimum(features, labels)
    with pytest.raises(ValueError, match="0 hidden layers"):
        embedded(minimum, features, hidden=0)
    with pytest.raises(ValueError, match="of 4 units"):
        embedded(minimum, features, width=4)
    with pytest.raises(ValueError, match=r"expected \[N, D\] and \[N\]"):
        linear_minimum(features, labels[:-1])
    with pytest.raises(ValueError, match="give lengths above 0"):
        certify(nn.Linear(6, 10).double(), features, labels, radii=())
    with pytest.raises(ValueError, match="0 epochs"):
        continued(nn.Linear(6, 10).double(), features, labels, epochs=0, learning_rate=0.1)


# --- starts ----------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).double()


@pytest.mark.parametrize(
    ("how", "below"),
    [("default", (0.3, 0.7)), ("zero", (0.3, 0.7)), ("low", (1, 1)), ("high", (0, 0.1)), ("equal", (0, 0.7))],
)
def test_biases_kill_or_open_the_relus(digits: tuple[Tensor, Tensor], how: Bias, below: tuple[float, float]) -> None:
    model = network()
    set_biases(model, how)
    assert below[0] <= dead_share(model, digits[0]) <= below[1]


def test_variance_moves_biases_alone_and_by_its_seed() -> None:
    first, second, third = network(), network(), network()
    set_biases(first, "variance", spread=0.5)
    set_biases(second, "variance", spread=0.5)
    set_biases(third, "variance", spread=0.5, seed=1)
    assert torch.equal(first[0].bias, second[0].bias)
    assert not torch.equal(first[0].bias, third[0].bias)
    assert float(first[0].bias.detach().abs().max()) <= 0.5
    assert torch.equal(first[0].weight, network()[0].weight)
    assert torch.equal(first[4].bias, network()[4].bias)


def test_dead_and_linear_networks_learn_what_they_can(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    found = {}
    for how in ("default", "low", "high"):
        model = network()
        set_biases(model, how)
        found[how] = continued(model, features, labels, epochs=40, learning_rate=0.01)[1][-1].loss
    assert found["low"] == pytest.approx(math.log(10), abs=0.02)  # nothing comes through: a constant answer
    assert found["default"] < found["high"]


def test_another_start_is_refused() -> None:
    with pytest.raises(ValueError, match="no start is called 'lower'; these are: default, zero"):
        set_biases(network(), "lower")  # pyright: ignore[reportArgumentType]
    assert math.isnan(dead_share(nn.Linear(2, 2), torch.zeros(1, 2)))
