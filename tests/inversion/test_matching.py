"""The objective: its gradient against finite differences, what leaves it unchanged, and its recording."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mithridate.inversion.client import Client
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.mixing import Mixing
from mithridate.inversion.defenses.sparsify import Sparsify
from mithridate.inversion.matching import PAYS_FROM, Matching, penalised, prepared
from mithridate.inversion.priors import colour_total_variation, squared_length, total_variation
from mithridate.inversion.sharing import Gradient, Update
from tests.inversion.cases import images, labels, leak_of, normed, seeded, smooth

CLIENTS = {
    "gradient": Client(batch=2),
    "update": Client(batch=2, sharing=Update(steps=3, rate=0.5, batch_size=1)),
    "clipped": ClipAndNoise(clip=0.01, noise=0.1)(Client(batch=2)),
    "mixed": Sparsify(keep=0.5)(Mixing()(Client(batch=2))),
}


def direction(like: torch.Tensor) -> torch.Tensor:
    return torch.rand(like.shape, generator=seeded(9), dtype=like.dtype) - 0.5


def slope_along(function, x: torch.Tensor, way: torch.Tensor, step: float = 1e-6) -> float:
    return float(function(x + step * way)[0] - function(x - step * way)[0]) / (2 * step)


@pytest.mark.parametrize("distance", ["cosine", "squared-error"])
@pytest.mark.parametrize("name", CLIENTS)
def test_its_gradient_agrees_with_finite_differences(name: str, distance) -> None:
    leak = leak_of(smooth(torch.float64), client=CLIENTS[name])
    matching = Matching(leak, leak.targets(labels(2)), distance)
    x = images(2, seed=5, dtype=torch.float64)
    way = direction(x)
    with leak.mode():
        _, gradient = matching(x)
        assert float((gradient * way).sum()) == pytest.approx(slope_along(matching, x, way), rel=1e-5)


def test_with_batch_statistics_too() -> None:
    client = Client(batch=4, sharing=Gradient(batch_statistics=True))
    model = normed()
    model[2] = torch.nn.Sigmoid()
    leak = leak_of(model.double(), client=client)
    matching = Matching(leak, leak.targets(labels(4)))
    x = images(4, seed=5, dtype=torch.float64)
    with leak.mode():
        _, gradient = matching(x)
        numeric = slope_along(matching, x, direction(x))
    assert float((gradient * direction(x)).sum()) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("prior", [total_variation, colour_total_variation, squared_length])
@pytest.mark.parametrize("channels", [1, 3])
def test_slopes_of_priors(prior, channels: int) -> None:
    x = torch.rand(2, channels, 5, 4, generator=seeded(3), dtype=torch.float64)
    _, gradient = prior(x)
    assert float((gradient * direction(x)).sum()) == pytest.approx(slope_along(prior, x, direction(x), 1e-7), rel=1e-5)


def test_total_variation_is_the_sum_of_two_means() -> None:
    x = torch.rand(2, 3, 5, 4, generator=seeded(3))
    expected = (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()
    assert torch.allclose(total_variation(x)[0], expected)


def test_the_truth_is_at_distance_zero_and_others_are_not() -> None:
    leak = leak_of(smooth(), 2)
    for distance in ("cosine", "squared-error"):
        matching = Matching(leak, leak.targets(labels(2)), distance)
        with leak.mode():
            assert float(matching(images(2))[0]) == pytest.approx(0, abs=1e-6)
            assert float(matching(images(2, seed=1))[0]) > 1e-3


def test_a_cosine_does_not_see_the_length() -> None:
    leak = leak_of(smooth(), 2)
    longer = dataclasses.replace(leak, shared={name: 17 * value for name, value in leak.shared.items()})
    x = images(2, seed=4)
    with leak.mode():
        a, b = (Matching(one, leak.targets(labels(2)))(x) for one in (leak, longer))
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert torch.allclose(a[1], b[1], atol=1e-7)


def test_the_largest_tensors_alone_are_compared() -> None:
    leak = leak_of(smooth(), 2)
    names = sorted(leak.shared, key=lambda name: -float(leak.shared[name].norm()))[:2]
    spoilt = {name: value if name in names else torch.randn_like(value) * 1e-6 for name, value in leak.shared.items()}
    with leak.mode():
        matching = Matching(dataclasses.replace(leak, shared=spoilt), leak.targets(labels(2)), largest=2)
        assert float(matching(images(2))[0]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least one parameter tensor"):
        Matching(leak, leak.targets(labels(2)), largest=0)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_recorded_objective_has_the_same_bits(name: str) -> None:
    leak = leak_of(smooth(), client=CLIENTS[name])
    whole = penalised(Matching(leak, leak.targets(labels(2))), [(0.1, total_variation), (0.0, squared_length)])
    with leak.mode():
        fast = prepared(whole, images(2, seed=5), PAYS_FROM)
        for seed in (6, 7):
            value, gradient = fast(images(2, seed=seed), seeded())
            expected = whole(images(2, seed=seed))
            assert torch.equal(value, expected[0])
            assert torch.equal(gradient, expected[1])
