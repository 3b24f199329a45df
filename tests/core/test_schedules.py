"""Schedules at their corners, against torch's own where it has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mithridate.core.schedules import Cosine, OneCycle, Schedule, StepDecay
from mithridate.core.schema import choices


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 1), (0.3749, 1), (3 / 8, 0.1), (0.6249, 0.1), (5 / 8, 0.01), (0.8749, 0.01), (7 / 8, 0.001), (1, 0.001)],
)
def test_step_decay_at_its_corners(progress: float, factor: float) -> None:
    assert StepDecay()(progress) == pytest.approx(factor)


def test_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(11):
        assert Cosine()(step / 10) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("peak", [0.1, 0.25, 0.5, 0.9])
def test_one_cycle_is_two_straight_lines(peak: float) -> None:
    at = np.linspace(0, 1, 41)
    expected = np.interp(at, [0, peak, 1], [0, 1, 0])
    np.testing.assert_allclose([OneCycle(peak=peak)(progress) for progress in at], expected, atol=1e-12)


@pytest.mark.parametrize("peak", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_peak_outside_the_training_is_an_error(peak: float) -> None:
    with pytest.raises(ValueError, match=r"peak is .*share of the training"):
        OneCycle(peak=peak)


@pytest.mark.parametrize("cls", choices(Schedule).values())
def test_factors_stay_between_zero_and_one_even_past_the_end(cls: type[Schedule]) -> None:
    factors = [cls()(progress) for progress in np.linspace(0, 1.2, 49)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
