"""Objectives by hand, and the search loop against closed forms and recorded calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mithridate.core.balls import AnyImage, Ball, Linf, to_bytes, to_floats
from mithridate.core.perturbation import Found, Objective, average, by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.updates import Adam, SignedAdam, SignStep
from tests.core.ball_cases import ANY_BALL, pictures


def test_by_autograd_in_closed_form_joint_and_per_image() -> None:
    images = pictures(11)
    value, slope = by_autograd(lambda x, rng: x.square().flatten(1).sum(1))(images, stream(0))
    torch.testing.assert_close(value, images.square().sum((1, 2, 3)))
    torch.testing.assert_close(slope, 2 * images)
    joint, same = by_autograd(lambda x, rng: x.square().sum())(images, stream(0))
    torch.testing.assert_close(joint, value.sum())
    torch.testing.assert_close(same, slope)
    assert not any(tensor.requires_grad for tensor in (value, slope, images))


def test_by_autograd_works_without_gradients_and_leaves_parameters_alone() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)), pictures(12)
    with torch.no_grad():
        value, slope = by_autograd(lambda x, rng: model(x)[:, 0])(images, stream(0))
    torch.testing.assert_close(slope, model[1].weight[0].view(1, 3, 8, 8).expand(4, -1, -1, -1))
    assert value.shape == (4,)
    assert all(parameter.grad is None for parameter in model.parameters())


def noisy(factor: float, seen: list[Tensor]) -> Objective:
    def value(images: Tensor, rng: torch.Generator) -> Tensor:
        seen.append(torch.rand(3, generator=rng))
        return factor * (seen[-1].sum() * images).flatten(1).sum(1)

    return by_autograd(value)


def test_an_average_is_the_mean_and_every_member_sees_the_same_draws() -> None:
    images, seen = pictures(13), []
    value, slope = average([noisy(factor, seen) for factor in (1.0, 2.0, 6.0)])(images, stream(0))
    weight = torch.rand(3, generator=stream(0)).sum()
    torch.testing.assert_close(value, 3 * weight * images.sum((1, 2, 3)))
    torch.testing.assert_close(slope, (3 * weight).expand_as(images))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_an_average_of_one_is_that_one_and_later_draws_are_new() -> None:
    images, seen, rng = pictures(14), [], stream(0)
    objective = average([noisy(2.0, seen)])
    value, slope = objective(images, rng)
    objective(images, rng)
    expected = noisy(2.0, [])(images, stream(0))
    torch.testing.assert_close((value, slope), expected)
    assert not torch.equal(seen[0], seen[1])


def test_a_search_on_an_average_is_the_search_on_the_mean() -> None:
    goals = [pictures(seed) for seed in (15, 16)]
    parts = [by_autograd(lambda x, rng, goal=goal: (x - goal).square().sum()) for goal in goals]
    whole = by_autograd(lambda x, rng: sum((x - goal).square().sum() for goal in goals) / 2)
    found = [
        minimise(f, pictures(17), Linf(eps=0.1), steps=10, update=Adam(), pixels="float", rng=stream(0))
        for f in (average(parts), whole)
    ]
    torch.testing.assert_close(found[0].images, found[1].images, atol=1e-4, rtol=0)


# --- the loop --------------------------------------------------------------------------------------------------------


def waves(images: Tensor, rng: torch.Generator) -> Tensor:
    """Many local minima per image: where a search ends depends on where it starts."""
    return torch.sin(60 * images).flatten(1).sum(1)


class Recorded:
    """Keeps what an objective was asked and what it answered."""

    def __init__(self, function: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        self.inner, self.images, self.values, self.states = by_autograd(function), [], [], []

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        self.states.append(rng.get_state())
        value, slope = self.inner(images, rng)
        self.images.append(images.clone())
        self.values.append(value)
        return value, slope


def test_the_last_iterate_of_sign_steps_in_closed_form() -> None:
    base, direction = pictures(18), torch.randn(3, 8, 8, generator=stream(0))
    step = 3.3 / 255
    found = minimise(
        by_autograd(lambda x, rng: (x * direction).sum()),
        base,
        Linf(eps=8 / 255),
        steps=2,
        update=SignStep(low=step, high=step),
        init=base,
        rng=stream(0),
    )
    moved = np.rint(255 * base.double().numpy() - 2 * 3.3 * np.sign(direction.numpy()))
    np.testing.assert_array_equal(found.images.numpy(), np.clip(moved, 0, 255))
    torch.testing.assert_close(found.value, (to_floats(found.images) * direction).sum())


@ANY_BALL
def test_the_result_is_8_bit_inside_the_ball_and_its_value_is_its_own(ball: Ball) -> None:
    base = pictures(19)
    found = minimise(by_autograd(waves), base, ball, steps=5, restarts=2, rng=stream(1))
    assert found.images.dtype == torch.uint8
    assert ball.contains(base, to_floats(found.images)).all()
    torch.testing.assert_close(found.value, waves(to_floats(found.images), stream(0)))


def test_float_results_are_the_last_iterate_as_it_is() -> None:
    base, goal = pictures(20), pictures(21)
    found = minimise(
        by_autograd(lambda x, rng: (x - goal).square().sum()),
        base,
        AnyImage(),
        steps=400,
        update=Adam(lr=0.02),
        pixels="float",
        rng=stream(0),
    )
    torch.testing.assert_close(found.images, goal, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.value, (found.images - goal).square().sum())


@pytest.mark.parametrize("joint", [True, False])
def test_each_restart_adds_a_candidate_and_the_lowest_wins(joint: bool) -> None:
    base, steps = pictures(22), 4
    function = (lambda x, rng: waves(x, rng).sum()) if joint else waves
    previous = None
    for restarts in (1, 2, 5):
        objective = Recorded(function)
        found = minimise(objective, base, Linf(eps=16 / 255), steps=steps, restarts=restarts, rng=stream(2))
        assert len(objective.values) == restarts * (steps + 1)
        finals = torch.stack(objective.values[steps :: steps + 1])
        candidates = torch.stack([to_bytes(images) for images in objective.images[steps :: steps + 1]])
        torch.testing.assert_close(found.value, finals.amin(0))
        chosen = finals.argmin(0).expand(len(base))
        assert torch.equal(found.images, candidates[chosen, torch.arange(len(base))])
        assert previous is None or (found.value <= previous).all()
        previous = found.value
    assert joint or len(set(chosen.tolist())) > 1


def test_restarts_are_judged_with_the_same_draws_which_are_not_those_of_the_search() -> None:
    objective = Recorded(waves)
    minimise(objective, pictures(23), Linf(eps=0.1), steps=2, restarts=3, rng=stream(3))
    judges, searches = objective.states[2::3], objective.states[0::3] + objective.states[1::3]
    assert all(torch.equal(state, judges[0]) for state in judges)
    assert not any(torch.equal(state, judges[0]) for state in searches)


def test_between_sees_every_step_and_the_images_before_it() -> None:
    base, seen, objective = pictures(24), [], Recorded(waves)
    minimise(objective, base, AnyImage(), steps=3, between=lambda step, x: seen.append((step, x)), rng=stream(4))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], base)
    assert all(torch.equal(x, y) for (_, x), y in zip(seen, objective.images, strict=False))


def test_the_same_generator_finds_the_same_and_the_start_is_left_alone() -> None:
    base = pictures(25)
    copy = base.clone()
    first, again, other = (
        minimise(by_autograd(waves), base, Linf(eps=0.1), steps=3, rng=stream(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(base, copy)


def test_a_starting_point_is_projected_and_no_steps_return_it() -> None:
    base = pictures(26)
    found = minimise(by_autograd(waves), base, Linf(eps=8 / 255), steps=0, init=1 - base, rng=stream(0))
    expected = Linf(eps=8 / 255).project(base, 1 - base)
    assert torch.equal(found.images, to_bytes(expected))


def test_no_restart_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one start"):
        minimise(by_autograd(waves), pictures(27), AnyImage(), steps=1, restarts=0, rng=stream(0))


def test_signed_adam_is_the_default() -> None:
    base = pictures(28)
    found = [
        minimise(by_autograd(waves), base, Linf(eps=0.1), steps=4, update=update, rng=stream(0))
        for update in (None, SignedAdam())
    ]
    assert torch.equal(found[0].images, found[1].images)


def test_a_single_start_need_not_be_judged() -> None:
    """The same images, one evaluation less, no value; of several starts the best must be known."""
    calls: list[int] = []

    def objective(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return images.sum(), torch.ones_like(images)

    def search(**settings: Any) -> Found:
        calls.clear()
        base = torch.full((2, 1, 2, 2), 0.5)
        return minimise(objective, base, Linf(eps=0.1), steps=3, pixels="float", rng=stream(0), **settings)

    judged = search()
    assert len(calls) == 4
    bare = search(judged=False)
    assert len(calls) == 3
    assert torch.equal(judged.images, bare.images)
    assert bool(bare.value.isnan())
    assert bool(search(judged=False, restarts=2).value.isfinite())
    assert len(calls) == 8
