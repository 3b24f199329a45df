"""Fine-pruning: units against slow pruning by hand, weights that stay off, and a backdoor."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mithridate.core.batch import Batch, GradientRule
from mithridate.core.data import ImageData
from mithridate.core.ensemble import features
from mithridate.core.gradient_rules import Mean
from mithridate.core.models import last_linear
from mithridate.core.seeds import stream
from mithridate.poisoning.defenses.fine_pruning import FinePruning, idle_units
from mithridate.poisoning.defenses.fine_tuning import FineTuning
from tests.poisoning.cases import CLASSES, images_of, quick, three_classes
from tests.poisoning.defenses.digits import backdoored

TRAIN, _ = three_classes()
TRUSTED = ImageData(images_of(torch.arange(30) % 3, 2), torch.arange(30) % 3, CLASSES)


def slowly(given: Tensor, labels: Tensor, head: nn.Linear, drop: float) -> list[int]:
    """Prunes copies of the Linear, one unit more each time, and evaluates them whole."""
    order = given.abs().mean(0).argsort(stable=True).tolist()

    def accuracy(count: int) -> float:
        weight = head.weight.detach().double().clone()
        weight[:, order[:count]] = 0
        assert head.bias is not None
        return float(((given.double() @ weight.T + head.bias.double()).argmax(1) == labels).double().mean())

    count = 0
    while count + 1 < len(order) and accuracy(count + 1) >= accuracy(0) - drop - 1e-9:
        count += 1
    return order[:count]


@dataclass(frozen=True)
class Noisy(GradientRule):
    """Adds noise to the gradient of every weight, also where it is zero, as it must be for these units."""

    idle: tuple[int, ...]

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        slopes, loss = Mean()(model, batch, rng)
        (head,) = (name for name, weight in model.named_parameters() if weight is last_linear(model).weight)
        assert float(slopes[head][:, list(self.idle)].abs().max()) == 0
        return {name: slope + 0.01 * torch.randn(slope.shape, generator=rng) for name, slope in slopes.items()}, loss


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_units_go_in_order_until_accuracy_would_fall(seed: int, drop: float) -> None:
    rng = stream(seed, "units")
    given, labels = torch.rand(40, 12, generator=rng) * torch.linspace(0, 2, 12), torch.arange(40) % 4
    given[:, 8:] += 3 * torch.eye(4)[labels]
    head = nn.Linear(12, 4)
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, 12, generator=rng))
        head.weight[:, 8:] += 3 * torch.eye(4)
    assert idle_units(given, labels, head, drop).tolist() == slowly(given, labels, head, drop)


def test_some_unit_is_always_left() -> None:
    head = nn.Linear(5, 2)
    assert len(idle_units(torch.zeros(6, 5), torch.zeros(6, dtype=torch.int64), head, 0.9)) <= 4


def test_what_is_off_stays_off_through_training_and_the_rest_moves() -> None:
    recipe = quick(weight_decay=0.01)
    before = recipe.fit([TRAIN], [0]).models[0]
    after = FinePruning(epochs=3, drop=0.3)(recipe).fit([TRAIN], [0], trusted=TRUSTED).models[0]
    with torch.no_grad():
        idle = idle_units(features(before, TRUSTED.floats(TRUSTED.ids)), TRUSTED.labels, last_linear(before), 0.3)
    assert len(idle) > 0
    weight = last_linear(after).weight.detach()
    assert float(weight[:, idle].abs().max()) == 0
    others = [unit for unit in range(weight.shape[1]) if unit not in idle]
    assert bool((weight[:, others] != last_linear(before).weight[:, others]).any())
    assert not after.training


def test_without_anything_to_prune_it_is_fine_tuning() -> None:
    """Of units that all matter none goes, and training continues as `fine-tuning` does."""
    labels = torch.arange(30) % 3
    images = torch.zeros(30, 3, 8, 8, dtype=torch.uint8)
    for row in range(30):
        images[row, labels[row]] = 200
    trusted = ImageData(images, labels, CLASSES)
    head, same = nn.Linear(3, 3), nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        same.weight.copy_(torch.eye(3)[:, :, None, None])
        head.weight.copy_(10 * torch.eye(3))
        head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # without its unit class 0 is called 1
    defenses = FinePruning(epochs=2, drop=0.0), FineTuning(epochs=2)
    recipe = quick(model="lenet")
    network = nn.Sequential(same, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    copies = [copy.deepcopy(network) for _ in defenses]
    pruned = defenses[0].pruned(copies[0], recipe, TRAIN, trusted, 5)
    tuned = defenses[1].tuned(copies[1], recipe, TRAIN, trusted, 5)
    assert torch.equal(last_linear(pruned).weight, last_linear(tuned).weight)


def test_noise_on_the_gradient_does_not_bring_units_back() -> None:
    recipe = quick(model="convnet:norm=group", transforms=())
    body = recipe.fit([TRAIN], [0]).models[0]
    with torch.no_grad():
        idle = idle_units(features(body, TRUSTED.floats(TRUSTED.ids)), TRUSTED.labels, last_linear(body), 0.3)
    assert len(idle) > 0
    noisy = replace(recipe, gradient=Noisy(tuple(idle.tolist())))
    after = FinePruning(epochs=2, drop=0.3).pruned(body, noisy, TRAIN, TRUSTED, 1)
    assert float(last_linear(after).weight.detach()[:, idle].abs().max()) == 0


def test_a_model_without_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no Conv2d before its last Linear; use fine-tuning"):
        FinePruning()(quick(model="mlp")).fit([TRAIN], [0], trusted=TRUSTED)


def test_it_needs_trusted_rows_and_sensible_settings() -> None:
    with pytest.raises(ValueError, match="set trusted= of the trial"):
        FinePruning()(quick()).fit([TRAIN], [0])
    with pytest.raises(ValueError, match="drop is 4"):
        FinePruning(drop=4)
    with pytest.raises(ValueError, match="epochs is 0"):
        FinePruning(epochs=0)


@pytest.mark.effect
def test_a_backdoor_is_weakened_at_the_price_of_little_accuracy() -> None:
    plain, pruned = backdoored([lambda recipe: recipe, FinePruning()], seeds=4, trusted=100)
    assert np.mean(pruned.success) < np.mean(plain.success)
    assert sum(a > b for a, b in zip(plain.success, pruned.success, strict=True)) >= 3
    assert np.mean(plain.accuracy) - np.mean(pruned.accuracy) < 0.05
