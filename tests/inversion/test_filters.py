"""What happens to shared numbers, and that an attacker who knows it finds the true images consistent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mithridate.core.schema import choices, parse
from mithridate.inversion.filters import Clipped, Filter, Noisy, Quantized, Sparse
from tests.inversion.cases import seeded

ALL = [Clipped(norm=0.5), Noisy(std=0.01), Sparse(keep=0.25), Quantized(bits=3)]


def numbers(seed: int = 0) -> list[Tensor]:
    rng = seeded(seed)
    return [torch.randn(7, 5, generator=rng), 0.1 * torch.randn(9, generator=rng)]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def test_every_filter_is_here() -> None:
    assert {type(one) for one in ALL} == set(choices(Filter).values())
    assert parse(Filter, "quantized:bits=3") == Quantized(bits=3)


def test_clipping_shortens_and_keeps_the_direction() -> None:
    before = numbers()
    after = Clipped(norm=0.5)(before, seeded())
    assert float(flat(after).norm()) == pytest.approx(0.5, rel=1e-6)
    assert torch.allclose(flat(after) / 0.5, flat(before) / flat(before).norm(), atol=1e-6)
    assert torch.equal(flat(Clipped(norm=1e3)(before, seeded())), flat(before))


def test_noise_has_its_deviation_and_follows_the_generator() -> None:
    zeros = [torch.zeros(200, 200), torch.zeros(5)]
    noise = Noisy(std=0.3)(zeros, seeded(1))
    assert float(noise[0].std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise[0].mean())) < 0.01
    assert torch.equal(noise[0], Noisy(std=0.3)(zeros, seeded(1))[0])
    assert not torch.equal(noise[0], Noisy(std=0.3)(zeros, seeded(2))[0])


def test_the_largest_numbers_are_kept_over_all_tensors() -> None:
    before = numbers()
    after = flat(Sparse(keep=0.25)(before, seeded()))
    expected = flat(before).clone()
    expected[flat(before).abs().argsort()[: 44 - 11]] = 0
    assert torch.equal(after, expected)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantised_numbers_are_few_and_near(bits: int) -> None:
    before = numbers()
    for old, new in zip(before, Quantized(bits=bits)(before, seeded()), strict=True):
        step = (old.max() - old.min()) / (2**bits - 1)
        assert len(new.unique()) <= 2**bits
        assert float((old - new).abs().max()) <= float(step) / 2 * 1.001
    constant = torch.full((3,), 0.7)
    assert torch.equal(Quantized(bits=bits)([constant], seeded())[0], constant)


@pytest.mark.parametrize("one", [Clipped(norm=0.5), Sparse(keep=0.25), Quantized(bits=3)])
def test_to_who_knows_the_filter_the_truth_fits_exactly(one: Filter) -> None:
    truth = numbers()
    candidate, sent = one.seen(truth, one(truth, seeded()))
    assert torch.allclose(flat(candidate), flat(sent), atol=1e-6)
    other, sent = one.seen(numbers(seed=1), one(truth, seeded()))
    assert not torch.allclose(flat(other), flat(sent), atol=1e-2)


def test_to_who_knows_the_noise_a_drowned_tensor_counts_for_nothing() -> None:
    loud, quiet = torch.full((50,), 3.0), torch.full((50,), 0.001)
    sent = Noisy(std=0.1)([loud, quiet], seeded())
    sent[1] = sent[1] * 0.9  # shorter than noise alone would be on average
    candidate, weighted = Noisy(std=0.1).seen([loud, quiet], sent)
    weight = (1 - 50 * 0.01 / float(sent[0].square().sum())) ** 0.5
    assert torch.allclose(candidate[0], weight * loud)
    assert torch.allclose(weighted[0], weight * sent[0])
    assert not candidate[1].any()
    assert not weighted[1].any()


def test_where_all_is_drowned_all_counts_alike() -> None:
    sent = [0.01 * torch.ones(4)]
    candidate, weighted = Noisy(std=10.0).seen([torch.ones(4)], sent)
    assert torch.equal(candidate[0], torch.ones(4))
    assert torch.equal(weighted[0], sent[0])


@pytest.mark.parametrize("one", ALL)
def test_what_is_seen_can_be_differentiated(one: Filter) -> None:
    leaf = numbers()[0].requires_grad_()
    candidate, _ = one.seen([leaf], one([numbers(seed=1)[0]], seeded()))
    (slope,) = torch.autograd.grad(candidate[0].square().sum(), leaf)
    assert bool(slope.isfinite().all())
    assert bool(slope.any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clipped(norm=0), "must be positive"),
        (lambda: Noisy(std=-1), "0 or more"),
        (lambda: Sparse(keep=10), "share of the numbers, so use 0.1"),
        (lambda: Quantized(bits=0), "1 to 16 bits"),
    ],
)
def test_impossible_strengths_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
