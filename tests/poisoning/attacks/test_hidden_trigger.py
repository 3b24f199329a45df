"""Hidden trigger: who collides with whom, and that features get there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mithridate.core.balls import Linf
from mithridate.core.ensemble import Ensemble
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import scenario
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run
from mithridate.poisoning.attacks import hidden_trigger
from mithridate.poisoning.attacks.hidden_trigger import HiddenTrigger, partners
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.goals import Backdoor, Misclassify
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import quick, three_classes

THREAT = ThreatModel(budget=0.1, ball=Linf(eps=32 / 255), goal=Backdoor(sources="bee", intended="cat", area=0.1))
LEARNER = quick(model="mlp:width=8", transforms=())


@pytest.fixture
def task() -> Task:
    return THREAT.draw(*three_classes(), 0)


@pytest.mark.parametrize("seed", range(5))
def test_partners_are_the_best_of_all_assignments(seed: int) -> None:
    features, sources = torch.randn(2, 6, 3, generator=stream(seed, "features"))

    def cost(order: tuple[int, ...]) -> float:
        return float((features - sources[list(order)]).square().sum())

    found = tuple(partners(features, sources).tolist())
    best = min(itertools.permutations(range(6)), key=cost)
    assert cost(found) == pytest.approx(cost(best))


def test_poisons_keep_label_and_look_and_carry_no_trigger(task: Task) -> None:
    attack = HiddenTrigger(steps=5)
    poison = attack.craft(task, LEARNER, 0)
    task.check(poison)
    assert poison.labels is None
    assert poison.trigger == attack.trigger
    assert set(task.train.labels_of(poison.rows).tolist()) == {2}
    assert len(poison) == task.limit


def test_features_move_to_those_of_triggered_source_images(task: Task) -> None:
    attack = HiddenTrigger(steps=60)
    poison = attack.craft(task, LEARNER, 0)
    assert poison.notes["feature_distance"] < 0.7
    (model,) = LEARNER.fit([task.train], [0]).models

    def features(images: Tensor) -> Tensor:
        return Ensemble([model]).features(images)[0].detach()

    sources = features(attack.trigger(task.train.floats(task.train.ids[task.train.labels == 1])))
    before, after = (
        torch.cdist(features(x), sources).min(1).values for x in (task.images(poison.rows), poison.images / 255)
    )
    assert float(after.mean()) < float(before.mean())


def test_sources_are_of_the_source_class_and_drawn_anew(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def spied(features: Tensor, sources: Tensor) -> Tensor:
        drawn.append(sources)
        return partners(features, sources)

    monkeypatch.setattr(hidden_trigger, "partners", spied)
    attack = HiddenTrigger(steps=12, every=5, precision="fp32")
    attack.craft(task, LEARNER, 0)
    assert len(drawn) == 3  # before steps 0, 5 and 10
    assert not torch.equal(drawn[0], drawn[1])
    (model,) = LEARNER.fit([task.train], [0]).models
    rows = task.train.ids[task.train.labels == 1]
    known = Ensemble([model]).features(attack.trigger(task.train.floats(rows)))[0].detach()
    for sources in drawn:
        assert bool((torch.cdist(sources, known).min(1).values < 1e-3).all())


def test_with_few_source_images_each_serves_about_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def spied(features: Tensor, sources: Tensor) -> Tensor:
        drawn.append(sources)
        return partners(features, sources)

    monkeypatch.setattr(hidden_trigger, "partners", spied)
    train, test = three_classes(train=60)
    few = train.select(torch.cat([train.ids[train.labels != 1], train.ids[train.labels == 1][:2]]))
    task = ThreatModel(budget=0.12, ball=Linf(eps=0.1), goal=THREAT.goal).draw(few, test, 0)
    HiddenTrigger(steps=2).craft(task, LEARNER, 0)
    _, counts = drawn[0].unique(dim=0, return_counts=True)
    assert counts.tolist() == [3, 3]


def test_what_it_cannot_serve_is_refused(task: Task) -> None:
    other = ThreatModel(goal=Misclassify()).draw(*three_classes(), 0)
    with pytest.raises(TypeError, match="hidden-trigger serves the goal backdoor"):
        HiddenTrigger(steps=1).craft(other, LEARNER, 0)
    for name in ("steps", "every", "surrogates"):
        with pytest.raises(ValueError, match=f"{name} is 0; at least 1 is needed"):
            HiddenTrigger(**{name: 0})


@pytest.mark.effect
def test_on_frozen_features_of_digits_margins_rise_far_above_those_of_noise(tmp_path: Path) -> None:
    """White box: the attacker has the victims' features, and only the head is trained."""
    white_box = scenario("transfer", digits_recipe())
    threat = ThreatModel(budget=0.08, ball=Linf(eps=64 / 255), goal=HiddenTrigger().assumed().goal)
    for seed in (11, 12, 13):
        margins = []
        for attack in (HiddenTrigger(), RandomNoise(trigger=HiddenTrigger().trigger)):
            trial = Trial(
                data=Digits(),
                threat=threat,
                attack=attack,
                learner=white_box.learner,
                pretrain=white_box.pretrain,
                victims=2,
                seed=seed,
            )
            margin = run(trial, Store(tmp_path)).outcome["margin"]
            margins.append(float(torch.tensor(margin).mean()))
        assert margins[0] > margins[1] + 4
