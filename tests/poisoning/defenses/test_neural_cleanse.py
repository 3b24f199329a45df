"""Neural Cleanse: what is flagged and left alone, pruning against slow pruning by hand, and a backdoor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.models import last_linear
from mithridate.core.seeds import stream
from mithridate.poisoning.defenses.fine_tuning import FineTuning
from mithridate.poisoning.defenses.neural_cleanse import HARMLESS, NeuralCleanse, excited_units, stamped
from mithridate.poisoning.reversal import Reversed
from tests.poisoning.cases import CLASSES, equal, images_of, quick, three_classes, weights
from tests.poisoning.defenses.digits import backdoored

TRAIN, _ = three_classes()
TRUSTED = ImageData(images_of(torch.arange(30) % 3, 2), torch.arange(30) % 3, CLASSES)
FOUND = Reversed(torch.zeros(3, 1, 8, 8), torch.ones(3, 3, 8, 8), torch.tensor([1.0, 9.0, 9.5]))
FOUND.masks[:, :, 0, 0] = 1


@pytest.mark.parametrize("repair", ["unlearn", "prune"])
def test_without_a_flag_the_weights_stay_bit_for_bit(repair) -> None:
    plain = quick().fit([TRAIN], [0])
    defended = NeuralCleanse(repair=repair, steps=5, threshold=1e9)(quick()).fit([TRAIN], [0], trusted=TRUSTED)
    assert equal(weights(plain), weights(defended))


@pytest.mark.parametrize("repair", ["unlearn", "prune"])
def test_with_a_flag_they_change(repair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeuralCleanse, "flagged", lambda self, sizes: [1])
    plain = quick().fit([TRAIN], [0])
    defense = NeuralCleanse(repair=repair, steps=30, epochs=2, drop=0.5)
    defended = defense(quick()).fit([TRAIN], [0], trusted=TRUSTED)
    assert not equal(weights(plain), weights(defended))
    assert not defended.models[0].training
    changed = [not torch.equal(a, b) for a, b in zip(weights(plain), weights(defended), strict=True)]
    if repair == "prune":  # some columns of one weight
        assert sum(changed) == 1
        head = last_linear(defended.models[0]).weight
        assert head[:, (head != last_linear(plain.models[0]).weight).any(0)].abs().sum().item() == 0
    else:
        assert sum(changed) > 5


def test_only_classes_below_the_others_are_flagged_the_oddest_first() -> None:
    sizes = torch.tensor([9.0, 10.0, 11.0, 10.5, 3.0, 9.5, 30.0, 1.0, 10.2, 9.8])
    assert NeuralCleanse().flagged(sizes) == [7, 4]
    assert NeuralCleanse(threshold=1e3).flagged(sizes) == []


def test_unlearning_shows_a_fifth_of_the_rows_with_the_trigger_and_their_own_label() -> None:
    data = stamped(TRUSTED, FOUND, [0, 2], seed=3)
    assert torch.equal(data.labels_of(data.ids), TRUSTED.labels)
    changed = (data.pixels(data.ids) != TRUSTED.images).any(1)
    assert int(changed.flatten(1).any(1).sum()) == 12
    assert bool(changed[:, 1:].any()) is False
    assert data.pixels(data.ids)[changed.flatten(1).any(1), :, 0, 0].unique().tolist() == [255]
    assert torch.equal(TRUSTED.images, images_of(torch.arange(30) % 3, 2))
    few = TRUSTED.select(TRUSTED.ids[:3])
    assert len(stamped(few, FOUND, [0, 1, 2], seed=3)) == 3


def slowly(clean: Tensor, marked: Tensor, labels: Tensor, head: nn.Linear, label: int, drop: float) -> list[int]:
    """Prunes copies of the Linear, one unit more each time, and evaluates them whole."""
    assert head.bias is not None
    order = (marked.double().mean(0) - clean.double().mean(0)).argsort(descending=True, stable=True).tolist()

    def shares(count: int) -> tuple[float, float]:
        weight = head.weight.detach().double().clone()
        weight[:, order[:count]] = 0
        right, called = ((x.double() @ weight.T + head.bias.detach().double()).argmax(1) for x in (clean, marked))
        return float((right == labels).double().mean()), float((called[labels != label] == label).double().mean())

    count = 0
    while count + 1 < len(order) and shares(count)[1] > HARMLESS and shares(count + 1)[0] >= shares(0)[0] - drop - 1e-9:
        count += 1
    return order[:count]


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_units_go_in_order_until_the_trigger_fails_or_accuracy_falls(seed: int, drop: float) -> None:
    rng = stream(seed, "units")
    clean, labels = torch.rand(40, 12, generator=rng), torch.arange(40) % 4
    clean[:, :4] += 2 * torch.eye(4)[labels]
    marked = clean + torch.rand(12, generator=rng) * torch.linspace(0, 3, 12)
    head = nn.Linear(12, 4)
    with torch.no_grad():
        head.weight.copy_(0.5 * torch.randn(4, 12, generator=rng))
        head.weight[:, :4] += 2 * torch.eye(4)
        head.weight[1, 6:] += 1
    assert excited_units(clean, marked, labels, head, 1, drop).tolist() == slowly(clean, marked, labels, head, 1, drop)


def test_a_trigger_that_does_not_work_costs_no_unit() -> None:
    clean, head = torch.eye(4), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
    assert excited_units(clean, clean, torch.arange(4), head, 2, 0.5).tolist() == []


def test_it_needs_trusted_rows_and_sensible_settings() -> None:
    with pytest.raises(ValueError, match="set trusted= of the trial"):
        NeuralCleanse()(quick()).fit([TRAIN], [0])
    for settings, hint in (
        ({"steps": 0}, "steps is 0"),
        ({"success": 99}, r"use 0\.99 for 99 %"),
        ({"threshold": 0}, "threshold is 0"),
        ({"drop": 4}, "drop is 4"),
        ({"epochs": 0}, "epochs is 0"),
    ):
        with pytest.raises(ValueError, match=hint):
            NeuralCleanse(**settings)  # type: ignore[arg-type]


@pytest.mark.effect
def test_a_backdoor_is_found_and_unlearned_better_than_by_fine_tuning() -> None:
    defenses = [lambda recipe: recipe, NeuralCleanse(steps=150), FineTuning()]
    plain, cleansed, tuned = backdoored(defenses, seeds=3, poisons=40, trusted=100)
    assert np.mean(plain.success) > 0.8
    assert np.mean(cleansed.success) < np.mean(tuned.success) - 0.1
    assert np.mean(plain.accuracy) - np.mean(cleansed.accuracy) < 0.05
