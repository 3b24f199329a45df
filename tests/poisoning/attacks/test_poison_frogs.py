"""Feature collision where the answer is known in closed form: features that are the pixels themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mithridate.core.balls import Linf, to_floats
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import OwnCode, quick, three_classes

HALF_STEP = 0.5 / 255 + 1e-6  # what rounding to 8 bits may cost


def pixels_are_features(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


LEARNER = quick(model=pixels_are_features, normalize="none", epochs=0)


def case(**threat: object) -> Task:
    train, test = three_classes()
    return ThreatModel(**({"ball": PoisonFrogs.threat.ball, "budget": 0.02} | threat)).draw(train, test, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0, 1e9])
def test_forward_backward_splitting_reaches_the_minimiser_in_closed_form(beta: float) -> None:
    """With features = pixels: |x - target|^2 + beta/2 |x - base|^2 is least at (2 target + beta base) / (2 + beta)."""
    task = case()
    poison = PoisonFrogs(steps=400, beta=beta, precision="fp32").craft(task, LEARNER, seed=0)
    base = task.images(poison.rows)
    expected = (2 * task.targets + beta * base) / (2 + beta)
    assert (to_floats(poison.images) - expected).abs().max() <= HALF_STEP + 1e-4


def test_in_a_ball_the_projection_takes_the_place_of_the_penalty() -> None:
    task = case(ball=Linf(eps=16 / 255))
    poison = PoisonFrogs(steps=200).craft(task, LEARNER, seed=0)
    base = task.images(poison.rows)
    expected = base + (task.targets - base).clamp(-16 / 255, 16 / 255)
    assert (to_floats(poison.images) - expected).abs().max() <= HALF_STEP
    task.check(poison)


def test_the_watermark_blends_the_target_into_the_base() -> None:
    task = case()
    poison = PoisonFrogs(steps=1, watermark=0.3).craft(task, LEARNER, seed=0)  # one step: the start, judged
    expected = 0.7 * task.images(poison.rows) + 0.3 * task.targets
    assert (to_floats(poison.images) - expected).abs().max() <= HALF_STEP


def test_several_targets_are_dealt_in_turn() -> None:
    task = case(targets=2, budget=0.06)
    poison = PoisonFrogs(steps=400, beta=0.0, precision="fp32").craft(task, LEARNER, seed=0)
    assert len(poison.rows) == 4
    dealt = task.targets[[0, 1, 0, 1]]
    assert (to_floats(poison.images) - dealt).abs().max() <= HALF_STEP + 1e-4


def test_the_note_is_the_remaining_share_of_the_feature_distance() -> None:
    task = case()
    poison = PoisonFrogs(steps=400, beta=2.0, precision="fp32").craft(task, LEARNER, seed=0)
    base = task.images(poison.rows)
    distance = [(images - task.targets).flatten(1).square().sum(1) for images in (to_floats(poison.images), base)]
    assert poison.notes["feature_distance"] == pytest.approx(float((distance[0] / distance[1]).mean()), rel=1e-4)


def test_one_poison_by_default() -> None:
    train, test = three_classes()
    assert PoisonFrogs.threat.draw(train, test, seed=0).limit == 1


@pytest.mark.parametrize("name", ["target", "third"])
def test_poisons_that_carry_another_label_are_refused(name: str) -> None:
    """A collision teaches the poison's own label: under self-concealment it would defend the target."""
    with pytest.raises(TypeError, match=r"changes images of the intended class .* poison_class='intended' or 'any'"):
        PoisonFrogs(steps=1).craft(case(poison_class=name), LEARNER, seed=0)


def test_where_any_class_may_change_bases_are_of_the_intended_one() -> None:
    task, narrow = case(poison_class="any", budget=0.1), case(budget=0.1)
    poison = PoisonFrogs(steps=2).craft(task, LEARNER, seed=0)
    assert poison.labels is None
    assert set(task.train.labels_of(poison.rows).tolist()) == {int(task.intended[0])}
    assert len(task.candidates) > len(narrow.candidates)
    assert len(poison) == task.limit == 6


def test_targets_without_a_poison_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="2 poisons for 3 targets"):
        PoisonFrogs(steps=1).craft(case(targets=3), LEARNER, seed=0)


def test_each_surrogate_weighs_the_base_by_its_own_number_of_features() -> None:
    """Features = pixels, and half of them twice: beta is the mean of 1 and 1/4 of the square of features per pixel."""

    class Half(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images[:, :, :4])

    def half(classes: int) -> nn.Module:
        return Half(nn.Flatten(), nn.Linear(3 * 4 * 8, classes))

    learner = OwnCode(LEARNER, quick(model=half, normalize="none", epochs=0))
    task, beta = case(), 2.0
    poison = PoisonFrogs(steps=400, beta=beta, surrogates=2, precision="fp32").craft(task, learner, seed=0)
    base, weight = task.images(poison.rows), beta * (1 + 1 / 4) / 2
    pull = torch.full_like(base, 0.5)
    pull[:, :, :4] = 1.0  # both members see these pixels, one the others; distances are averaged
    expected = (2 * pull * task.targets + weight * base) / (2 * pull + weight)
    assert (to_floats(poison.images) - expected).abs().max() <= HALF_STEP + 1e-4


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"watermark is 30.*0\.3 for 30 %"):
        PoisonFrogs(watermark=30)
    with pytest.raises(TypeError, match="serves the goal misclassify"):
        PoisonFrogs().craft(case(goal=Backdoor()), LEARNER, seed=0)

    def no_linear(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, classes, 8), nn.Flatten())

    with pytest.raises(ValueError, match="no final Linear"):
        PoisonFrogs(steps=1).craft(case(), quick(model=no_linear, epochs=0), seed=0)


def test_the_watermark_start_is_inside_a_ball() -> None:
    task = case(ball=Linf(eps=8 / 255))
    poison = PoisonFrogs(steps=1, watermark=0.9).craft(task, LEARNER, seed=0)
    task.check(poison)
    assert not torch.equal(poison.images, task.train.pixels(poison.rows))
