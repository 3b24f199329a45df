"""The controls: random noise as strong as the ball allows, and nothing at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mithridate.core.balls import L2, AnyImage, Linf, Patch, to_floats
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.threat import Backdoor, ThreatModel
from mithridate.poisoning.triggers import PatchTrigger
from tests.poisoning.cases import quick, three_classes

TRAIN, TEST = three_classes()


@pytest.mark.parametrize("ball", [Linf(eps=16 / 255), L2(eps=1.0), AnyImage(), Patch(area=0.1)])
def test_noise_changes_the_rows_an_attack_would_change_and_stays_inside(ball) -> None:
    task = ThreatModel(budget=0.1, ball=ball).draw(TRAIN, TEST, 0)
    poison = RandomNoise().craft(task, quick(), 0)
    task.check(poison)
    assert torch.equal(poison.rows, task.choose(0))
    assert poison.labels is None
    assert poison.trigger is None
    assert bool((poison.images != TRAIN.pixels(poison.rows)).flatten(1).any(1).all())


def test_noise_is_as_strong_as_the_ball_allows() -> None:
    task = ThreatModel(budget=0.1, ball=Linf(eps=16 / 255)).draw(TRAIN, TEST, 0)
    poison = RandomNoise().craft(task, quick(), 0)
    change = (to_floats(poison.images) - task.images(poison.rows)).abs() * 255
    assert float((change > 15.5).float().mean()) > 0.8  # the rest is clipped at black and white


@pytest.mark.parametrize("name", ["intended", "target", "third", "any"])
@pytest.mark.parametrize("relabel", [False, True])
def test_noise_is_of_the_class_that_the_threat_model_names(name, relabel: bool) -> None:
    task = ThreatModel(budget=0.2, poison_class=name, relabel=relabel).draw(TRAIN, TEST, 0)
    poison = RandomNoise().craft(task, quick(), 0)
    task.check(poison)
    true, intended = int(task.true_labels[0]), int(task.intended[0])
    third = 3 - true - intended
    rest = {true, third} if relabel else {0, 1, 2}  # relabelling a row of the intended class would change nothing
    classes = {"intended": {intended}, "target": {true}, "third": {third}, "any": rest}
    assert set(TRAIN.labels_of(poison.rows).tolist()) == classes[name]
    assert (poison.labels is not None) == relabel
    assert poison.labels is None or set(poison.labels.tolist()) == {intended}


def test_under_a_backdoor_noise_shares_rows_labels_and_trigger_with_badnets_but_not_its_patch() -> None:
    task = replace(BadNets.threat, budget=0.1).draw(TRAIN, TEST, 0)
    noise, attack = RandomNoise().craft(task, quick(), 0), BadNets().craft(task, quick(), 0)
    task.check(noise)
    assert torch.equal(noise.rows, attack.rows)
    assert noise.labels is not None
    assert attack.labels is not None
    assert torch.equal(noise.labels, attack.labels)
    assert noise.trigger == attack.trigger == PatchTrigger()
    assert not torch.equal(noise.images, attack.images)


def test_no_attack_changes_nothing_and_carries_the_trigger_where_one_is_measured() -> None:
    plain = ThreatModel(budget=0.1).draw(TRAIN, TEST, 0)
    poison = NoAttack().craft(plain, quick(), 0)
    plain.check(poison)
    assert len(poison) == 0
    assert poison.trigger is None
    triggered = ThreatModel(budget=0.1, goal=Backdoor()).draw(TRAIN, TEST, 0)
    poison = NoAttack(trigger=PatchTrigger(corner="top-left")).craft(triggered, quick(), 0)
    triggered.check(poison)
    assert poison.trigger == PatchTrigger(corner="top-left")
