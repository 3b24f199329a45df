"""The watermark, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mithridate.core.balls import AnyImage, Linf
from mithridate.poisoning.attacks.watermark import Watermark
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import quick, three_classes


def case(**threat: object) -> Task:
    train, test = three_classes()
    return ThreatModel(**({"ball": AnyImage(), "budget": 0.05} | threat)).draw(train, test, seed=0)  # type: ignore[arg-type]


def blended(task: Task, rows: torch.Tensor, dealt: list[int], opacity: float) -> np.ndarray:
    base = task.train.pixels(rows).numpy().astype(np.float64)
    target = task.test.pixels(task.target_rows).numpy().astype(np.float64)[dealt]
    return (1 - opacity) * base + opacity * target


@pytest.mark.parametrize("opacity", [0.2, 0.3, 1.0])
def test_pixels_are_the_blend_rounded_to_8_bits(opacity: float) -> None:
    task = case()
    poison = Watermark(opacity=opacity).craft(task, quick(), seed=0)
    assert len(poison) == task.limit == 3
    expected = blended(task, poison.rows, [0, 0, 0], opacity)
    assert np.abs(poison.images.numpy() - expected).max() <= 0.5 + 1e-3
    assert poison.labels is None


def test_in_a_ball_the_blend_is_cut_off_at_its_edge() -> None:
    task = case(ball=Linf(eps=8 / 255))
    poison = Watermark().craft(task, quick(), seed=0)
    base = task.train.pixels(poison.rows).numpy().astype(np.float64)
    expected = base + np.clip(blended(task, poison.rows, [0, 0, 0], 0.3) - base, -8, 8)
    assert np.abs(poison.images.numpy() - expected).max() <= 0.5 + 1e-3
    task.check(poison)


def test_several_targets_are_dealt_in_turn() -> None:
    task = case(targets=2, budget=0.08)
    poison = Watermark(opacity=1.0).craft(task, quick(), seed=0)
    assert torch.equal(poison.images, task.test.pixels(task.target_rows)[[0, 1, 0, 1, 0][: len(poison)]])
    with pytest.warns(UserWarning, match="3 poisons for 5 targets"):
        Watermark().craft(case(targets=5), quick(), seed=0)


def test_bases_have_the_intended_class() -> None:
    task = case(poison_class="any")
    poison = Watermark().craft(task, quick(), seed=0)
    assert set(task.train.labels_of(poison.rows).tolist()) == {int(task.intended[0])}


def test_errors_say_what_to_do() -> None:
    for opacity in (0, 30):
        with pytest.raises(ValueError, match=r"opacity is .*0\.3 for 30 %"):
            Watermark(opacity=opacity)
    with pytest.raises(TypeError, match="serves the goal misclassify"):
        Watermark().craft(case(goal=Backdoor()), quick(), seed=0)
