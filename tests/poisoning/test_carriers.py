"""Which training images a trigger is tried on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.hidden_trigger import HiddenTrigger
from mithridate.poisoning.attacks.sleeper_agent import SleeperAgent
from mithridate.poisoning.carriers import source_rows
from mithridate.poisoning.goals import Backdoor
from tests.poisoning.cases import quick, three_classes

TRAIN, TEST = three_classes()
hidden = pytest.mark.parametrize("attack", [HiddenTrigger(steps=1), SleeperAgent(steps=1, refits=0)])


def threat(attack: Attack, sources: str):
    return replace(attack.threat, budget=0.1, goal=Backdoor(sources=sources, intended="cat"))


@hidden
@pytest.mark.parametrize(("sources", "classes"), [("ant", {0}), ("bee", {1}), ("all", {0, 1})])
def test_they_are_all_of_the_source_classes(attack: Attack, sources: str, classes: set[int]) -> None:
    rows = source_rows(attack, threat(attack, sources).draw(TRAIN, TEST, 0))
    expected = [row for row, label in enumerate(TRAIN.labels.tolist()) if label in classes]
    assert rows.sort().values.tolist() == expected


@hidden
def test_a_training_set_without_the_source_class_is_refused_in_words(attack: Attack) -> None:
    without = TRAIN.drop(torch.arange(len(TRAIN))[TRAIN.labels == 1])
    task = threat(attack, "bee").draw(without, TEST, 0)
    with pytest.raises(ValueError, match="has no image of class 'bee'; use other sources, or add training images"):
        attack.craft(task, quick(epochs=1), 0)
