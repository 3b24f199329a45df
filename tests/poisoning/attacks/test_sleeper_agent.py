"""Sleeper agent: which gradient is matched, which rows are changed, when surrogates are trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.sources import Digits
from mithridate.core.training import Fitted, Learner, Recipe
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.sleeper_agent import SleeperAgent, gradient_norms, triggered_gradients
from mithridate.poisoning.goals import Backdoor, Misclassify
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger
from tests.poisoning.cases import quick, three_classes

TRIGGER = PatchTrigger(corner="anywhere")
THREAT = ThreatModel(budget=0.1, ball=Linf(eps=32 / 255), goal=Backdoor(sources="bee", intended="cat", area=0.1))
LEARNER = quick(model="mlp:width=8", transforms=())


class Spy(Learner):
    """Trains as another learner, and remembers on what and with which seeds."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.calls = learner, list[tuple[Sequence[ImageData], list[int]]]()

    @property
    def recipe(self) -> Recipe | None:
        return self.learner.recipe

    def fit(self, datasets: Sequence[ImageData], seeds: Sequence[int], **settings: Any) -> Fitted:
        self.calls.append((datasets, list(seeds)))
        return self.learner.fit(datasets, seeds, **settings)


@pytest.fixture
def task() -> Task:
    return THREAT.draw(*three_classes(), 0)


def test_the_gradient_is_that_of_triggered_source_images_as_the_intended_class(task: Task) -> None:
    models = LEARNER.fit([task.train] * 2, [0, 1]).models
    rows = task.train.ids[task.train.labels == 1]
    found = triggered_gradients(models, task, rows, TRIGGER)
    for model, goal in zip(models, found, strict=True):
        loss = F.cross_entropy(model(TRIGGER(task.train.floats(rows))), torch.full((len(rows),), 2), reduction="sum")
        expected = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(goal, expected, strict=True))


def test_gradients_of_many_images_add_up(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    models = LEARNER.fit([task.train], [0]).models
    (whole,) = triggered_gradients(models, task, task.train.ids, TRIGGER)
    monkeypatch.setattr("mithridate.poisoning.attacks.sleeper_agent.EVALUATION_BATCH", 7)
    (pieces,) = triggered_gradients(models, task, task.train.ids, TRIGGER)
    assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(whole, pieces, strict=True))


def test_images_with_the_longest_gradient_are_changed(task: Task) -> None:
    surrogate = Spy(LEARNER)
    poison = SleeperAgent(steps=1, refits=0, surrogates=2).craft(task, surrogate, 0)
    models = LEARNER.fit([task.train] * 2, [0, 1]).models
    own = task.train.ids[task.train.labels == 2]
    lengths = []
    for row in own.tolist():
        image, label = task.train.floats(torch.tensor([row])), torch.tensor([2])
        norms = []
        for model in models:
            gradient = torch.autograd.grad(F.cross_entropy(model(image), label), list(model.parameters()))
            norms.append(torch.cat([part.flatten() for part in gradient]).norm())
        lengths.append(torch.stack(norms).mean())
    assert torch.allclose(gradient_norms(models, task.train, own), torch.stack(lengths), rtol=1e-4)
    longest = own[torch.stack(lengths).argsort(descending=True)[: task.limit]].sort().values
    assert torch.equal(poison.rows, longest)


@pytest.mark.parametrize(("steps", "refits", "expected"), [(10, 4, 5), (10, 0, 1), (3, 1, 2)])
def test_surrogates_are_trained_again_on_the_poisons_as_they_are(
    task: Task, steps: int, refits: int, expected: int
) -> None:
    surrogate = Spy(LEARNER)
    poison = SleeperAgent(steps=steps, refits=refits, surrogates=2).craft(task, surrogate, 0)
    assert len(surrogate.calls) == expected
    assert [seeds for _, seeds in surrogate.calls] == [[2 * i, 2 * i + 1] for i in range(expected)]
    clean = task.train.images
    seen = [datasets[0].pixels(poison.rows) for datasets, _ in surrogate.calls]
    assert torch.equal(seen[0], clean[poison.rows])
    for images in seen[1:]:
        assert not torch.equal(images, seen[0])
        assert bool(task.ball.contains(clean[poison.rows].float() / 255, images.float() / 255).all())
    others = task.train.drop(poison.rows).ids
    assert all(torch.equal(datasets[0].pixels(others), clean[others]) for datasets, _ in surrogate.calls)


def test_no_poison_carries_the_trigger_or_another_label(task: Task) -> None:
    poison = SleeperAgent(steps=3, refits=1).craft(task, LEARNER, 0)
    task.check(poison)
    assert poison.labels is None
    assert poison.trigger == SleeperAgent().trigger
    assert set(task.train.labels_of(poison.rows).tolist()) == {2}
    assert 0 <= poison.notes["matching_loss"] <= 2


def test_it_sees_training_images_of_the_source_class_alone(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spied(models: Any, task: Task, rows: Tensor, trigger: Any) -> Any:
        seen.append(rows)
        return triggered_gradients(models, task, rows, trigger)

    monkeypatch.setattr("mithridate.poisoning.attacks.sleeper_agent.triggered_gradients", spied)
    SleeperAgent(steps=2, refits=1, sources=5).craft(task, LEARNER, 0)
    assert [len(rows) for rows in seen] == [5, 5]
    assert set(task.train.labels_of(torch.cat(seen)).tolist()) == {1}


def test_what_it_cannot_serve_is_refused(task: Task) -> None:
    other = ThreatModel(goal=Misclassify()).draw(*three_classes(), 0)
    with pytest.raises(TypeError, match="sleeper-agent serves the goal backdoor"):
        SleeperAgent(steps=1).craft(other, LEARNER, 0)
    for name, least in (("steps", 1), ("refits", 0), ("surrogates", 1), ("sources", 1)):
        with pytest.raises(ValueError, match=f"{name} is {least - 1}; at least {least} is needed"):
            SleeperAgent(**{name: least - 1})


@pytest.mark.effect
def test_on_digits_margins_rise_far_above_those_of_noise() -> None:
    """Success itself is rare on so few images of so little detail; the margin of the intended class is not."""
    recipe = Recipe(model="mlp:width=64", epochs=40, batch_size=64, transforms=(), precision="fp32")
    threat = ThreatModel(budget=0.05, ball=Linf(eps=64 / 255), goal=SleeperAgent().assumed().goal)
    train, test = Digits().load()
    for seed in (11, 12, 13):
        task = threat.draw(train, test, seed)
        margins = []
        for attack in (SleeperAgent(), RandomNoise(trigger=SleeperAgent().trigger)):
            poison = attack.craft(task, recipe, seed)
            fitted = recipe.fit([poison.apply(train)] * 2, [101, 102])
            margin = task.outcome(fitted, poison)["margin"]
            assert margin is not None
            margins.append(float(margin.mean()))
        assert margins[0] > margins[1] + 2
