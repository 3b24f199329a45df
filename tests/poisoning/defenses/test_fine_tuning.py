"""Fine-tuning against one step of gradient descent by hand, and against a backdoor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.data import ImageData
from mithridate.core.learners import learner
from mithridate.poisoning.defenses.fine_tuning import FineTuning
from tests.poisoning.cases import CLASSES, equal, images_of, quick, three_classes, weights
from tests.poisoning.defenses.digits import backdoored

TRAIN, TEST = three_classes()
TRUSTED = ImageData(images_of(torch.arange(24) % 3, 2), torch.arange(24) % 3, CLASSES)
LEARNING_RATE = 0.05


def plain_linear(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


def stepped(model: nn.Module, images: Tensor, labels: Tensor, step: float = LEARNING_RATE) -> list[Tensor]:
    """The parameters after one step on all images at once."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)
    return [(p - step * g).detach() for p, g in zip(parameters, gradients, strict=True)]


def test_it_is_gradient_descent_on_the_trusted_rows_from_the_trained_weights() -> None:
    recipe = quick(model=plain_linear, transforms=(), momentum=0.0, weight_decay=0.0)
    trained = recipe.fit([TRAIN], [3]).models[0]
    tuned = FineTuning(epochs=1, learning_rate=LEARNING_RATE)(recipe).fit([TRAIN], [3], trusted=TRUSTED).models[0]
    expected = stepped(trained, TRUSTED.floats(TRUSTED.ids), TRUSTED.labels)
    for found, right, before in zip(tuned.parameters(), expected, trained.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), right, atol=1e-5, rtol=1e-4)
        assert not torch.equal(found, before)
    for name, buffer in trained.named_buffers():
        assert torch.equal(tuned.get_buffer(name), buffer), "normalisation stays that of the training set"


def test_code_of_the_users_own_is_continued_with_plain_descent() -> None:
    def train(dataset, seed: int) -> nn.Module:
        return plain_linear(3)

    fitted = FineTuning(epochs=1, learning_rate=LEARNING_RATE)(learner(train)).fit([TRAIN], [3], trusted=TRUSTED)
    before = learner(train).fit([TRAIN], [3]).models[0]
    after = fitted.models[0]
    assert type(after) is type(before)
    expected = stepped(before, TRUSTED.floats(TRUSTED.ids), TRUSTED.labels, 1.9 * LEARNING_RATE)
    for found, right in zip(after.parameters(), expected, strict=True):  # Nesterov's first step: 1 + momentum 0.9
        torch.testing.assert_close(found.detach(), right, atol=1e-4, rtol=0)  # weight decay takes 5e-5 of a weight
    images = TEST.floats(TEST.ids)
    assert torch.equal(fitted.predictor(images).scores[0], after(images).detach())


def test_a_frozen_body_stays_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    body = quick().fit([TRAIN], [0]).models[0]
    save_file({name: value.contiguous() for name, value in body.state_dict().items()}, tmp_path / "body.safetensors")
    head = quick(start_from=tmp_path / "body.safetensors", trainable="head", transforms=())
    trained = head.fit([TRAIN], [1]).models[0].state_dict()
    tuned = FineTuning(epochs=2)(head).fit([TRAIN], [1], trusted=TRUSTED).models[0]
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, trained[name])}
    assert len(changed) == 2
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "bias"}
    assert not tuned.training


def test_training_rows_and_their_poison_play_no_part_in_it() -> None:
    model = quick().fit([TRAIN], [0]).models[0]
    tuning = FineTuning(epochs=2)
    results = []
    for data in (TRAIN, TRAIN.drop([0, 1])):
        copy = quick().module(TRAIN, 0)
        copy.load_state_dict(model.state_dict())
        results.append([value.clone() for value in tuning.tuned(copy, quick(), data, TRUSTED, 7).state_dict().values()])
    assert equal(*results)


def test_the_recipes_transforms_are_part_of_it() -> None:
    fits = [
        weights(FineTuning(epochs=1)(quick(transforms=transforms)).fit([TRAIN], [0], trusted=TRUSTED))
        for transforms in ((), quick().transforms)
    ]
    assert not equal(*fits)


def test_without_trusted_rows_it_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"set trusted= of the trial, for example trusted=100"):
        FineTuning()(quick()).fit([TRAIN], [0])
    with pytest.raises(ValueError, match=r"fine-tuning works on clean rows; set trusted="):
        FineTuning().tuned(plain_linear(3), None, TRAIN, None, 0)


def test_an_adaptive_attacker_crafts_through_the_learner_itself() -> None:
    recipe = quick()
    assert FineTuning().seen_by_attacker(recipe) is recipe


def test_wrong_settings_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match="epochs is 0"):
        FineTuning(epochs=0)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        FineTuning(learning_rate=0)


@pytest.mark.effect
def test_a_backdoor_of_few_poisons_is_partly_forgotten() -> None:
    """Twenty marked digits of 900; a hundred clean ones to continue on."""
    plain, tuned = backdoored([lambda recipe: recipe, FineTuning()], seeds=4, trusted=100)
    assert np.mean(tuned.success) < np.mean(plain.success)
    assert sum(a > b for a, b in zip(plain.success, tuned.success, strict=True)) >= 3
    assert np.mean(plain.accuracy) - np.mean(tuned.accuracy) < 0.02
