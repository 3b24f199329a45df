"""Models trained again on what was stored: what is counted, with the control beside it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mithridate.core.balls import Patch
from mithridate.core.data import ImageData
from mithridate.core.seeds import derive
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.protection import Check
from mithridate.experiments.retrial import Retrial, retrain
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.threat import ThreatModel

LEARNER = Recipe(model="mlp:width=32", epochs=8, batch_size=32, transforms=())


@pytest.fixture(scope="module")
def data() -> Reference:
    train, test = Digits(train=400).load()
    return Reference(train, test.select(test.ids[:200]))


@pytest.fixture(scope="module")
def parcel(data: Reference) -> Parcel:
    """Copies of two test images, relabelled, on 30 rows: what moves any model."""
    targets = data.test.ids[data.test.labels_of(data.test.ids) != 4][:2]
    rows = data.train.ids[:30]
    return Parcel(
        data.test.pixels(targets).repeat(15, 1, 1, 1),
        labels=torch.full((30,), 4),
        rows=rows,
        target_rows=targets,
        intended=torch.tensor([4, 4]),
    )


def test_poison_is_told_from_clean_data(data: Reference, parcel: Parcel) -> None:
    found = retrain(parcel, data, LEARNER, models=3)
    assert isinstance(found, Retrial)
    assert (found.poisoned.successes, found.poisoned.n, found.poisoned.n_eff) == (6, 6, 2)
    assert found.clean.successes <= 1
    assert "targets that get the intended class: 100 %" in str(found)
    assert found.to_json()["models"] == 3


def test_it_counts_what_the_models_say(data: Reference, parcel: Parcel) -> None:
    found = retrain(parcel, data, LEARNER, models=2, seed=5)
    assert isinstance(found, Retrial)
    seeds = [derive(5, "retrial", i) for i in range(2)]
    poisoned = data.train.replace(parcel.rows, parcel.images, parcel.labels)
    right = []
    for model in LEARNER.fit([poisoned] * 2, seeds).models:
        with torch.no_grad():
            guess = model(data.test.floats(data.test.ids)).argmax(1)
        right.append(float((guess == data.test.labels_of(data.test.ids)).float().mean()))
    assert found.accuracy.value == pytest.approx(sum(right) / 2)


def test_a_patch_is_put_on_the_targets(data: Reference) -> None:
    """A bright square that means 7: part of the training images, put on the target when it is asked about."""
    rows = data.train.ids[data.train.labels_of(data.train.ids) != 7][:120]
    images = data.train.pixels(rows).clone()
    images[:, :, 0:3, 1:4] = 255
    target = data.test.ids[data.test.labels_of(data.test.ids) != 7][:1]
    parcel = Parcel(
        images,
        labels=torch.full((120,), 7),
        rows=rows,
        target_images=data.test.pixels(target),
        intended=torch.tensor([7]),
        patch=torch.ones(1, 3, 3),
        place=(0, 1),
    )
    marked, plain = (retrain(one, data, LEARNER, models=3) for one in (parcel, dataclasses.replace(parcel, patch=None)))
    assert isinstance(marked, Retrial)
    assert isinstance(plain, Retrial)
    assert marked.poisoned.successes == 3
    assert plain.poisoned.successes == 0


def test_the_trigger_of_a_backdoor_is_on_the_test_images(data: Reference) -> None:
    threat = ThreatModel(budget=0.1, goal=Backdoor(), ball=Patch(area=0.1), relabel=True, poison_class="any")
    task = threat.draw(data.train, data.test, seed=0)
    poison = BadNets().craft(task, LEARNER, seed=0)
    parcel = Parcel(
        poison.images,
        poison.labels,
        poison.rows,
        target_rows=task.target_rows,
        intended=task.intended,
        trigger=poison.trigger,
    )
    marked, plain = (
        retrain(one, data, LEARNER, models=2) for one in (parcel, dataclasses.replace(parcel, trigger=None))
    )
    assert isinstance(marked, Retrial)
    assert isinstance(plain, Retrial)
    assert marked.poisoned.share > 0.8
    assert plain.poisoned.share < 0.1


def test_without_targets_accuracy_is_compared(data: Reference) -> None:
    others = ImageData(data.train.images.flip(0), data.train.labels, data.train.classes)
    found = retrain(Parcel(others.images, rows=data.train.ids), data, LEARNER, models=2)
    assert isinstance(found, Check)
    assert found.lost.value > 0.2


def test_targets_without_an_intended_class_are_refused(data: Reference, parcel: Parcel) -> None:
    with pytest.raises(ValueError, match="does not say which class the targets should get"):
        retrain(dataclasses.replace(parcel, intended=None), data, LEARNER)
