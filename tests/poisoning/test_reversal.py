"""Reversed triggers against models whose smallest trigger is known, and the anomaly index against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.poisoning import reversal
from mithridate.poisoning.reversal import anomaly_index, reversed_triggers
from tests.poisoning.cases import CLASSES, images_of

NEEDED = 0.4


class OnePixel(nn.Module):
    """Calls everything class 2 unless the first pixel exceeds `NEEDED`, or half of the image is bright: 1, or 0."""

    def forward(self, images: Tensor) -> Tensor:
        pixel, mean = 20 * images[:, 0, 0, 0] / NEEDED, 40 * images[:, :, 1:].mean((1, 2, 3))
        return torch.stack([mean, pixel, torch.full_like(mean, 20)], 1)


def dark(count: int = 24) -> ImageData:
    images = images_of(torch.arange(count) % 3, 2) // 32  # never above 1/32 in a pixel
    return ImageData(images, torch.arange(count) % 3, CLASSES)


def test_the_smallest_trigger_is_found() -> None:
    found = reversed_triggers(OnePixel(), dark(), steps=400, success=1.0, seed=0)
    assert NEEDED - 1 / 32 < float(found.sizes[1]) < 1.4 * NEEDED
    assert found.masks[1].flatten().argmax() == 0
    assert float(found.patterns[1, 0, 0, 0]) > 0.9
    assert float(found.sizes[0]) > 20  # 56 pixels x 3 channels, half of all that
    torch.testing.assert_close(found.sizes[:2], found.masks.flatten(1).sum(1)[:2])
    clean = dark()
    for label in (0, 1):
        images = clean.floats(clean.ids)
        expected = (1 - found.masks[label]) * images + found.masks[label] * found.patterns[label]
        torch.testing.assert_close(found.put(images, label), expected)
        assert bool((OnePixel()(expected).argmax(1) == label).all())


def test_a_class_that_nothing_turns_into_counts_as_the_whole_image() -> None:
    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean((1, 2, 3)), images.sum((1, 2, 3)) + 9, images.flatten(1)[:, 0] - 9], 1)

    found = reversed_triggers(Never(), dark(), steps=20, success=1.0, seed=0)
    assert found.sizes[[0, 2]].tolist() == [64.0, 64.0]
    assert float(found.sizes[1]) < 64


def test_classes_are_searched_alike_however_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    together = reversed_triggers(model, dark(), steps=15, success=0.9, batch_size=8, seed=1)
    monkeypatch.setattr(reversal, "EVALUATION_BATCH", 8)
    alone = reversed_triggers(model, dark(), steps=15, success=0.9, batch_size=8, seed=1)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert not torch.equal(
        together.sizes, reversed_triggers(model, dark(), steps=15, success=0.9, batch_size=8, seed=2).sizes
    )


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reversed_triggers(model, dark(), steps=3, success=0.9, seed=0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("classes", [3, 10, 11])
def test_the_index_is_scipys(classes: int) -> None:
    sizes = 5 + torch.rand(classes, generator=stream(classes), dtype=torch.float64)
    expected = (np.median(sizes) - sizes.numpy()) / median_abs_deviation(sizes.numpy(), scale="normal")  # type: ignore[arg-type]
    np.testing.assert_allclose(anomaly_index(sizes).numpy(), expected, rtol=1e-3)


def test_equal_sizes_are_not_odd_and_one_below_them_is() -> None:
    assert anomaly_index(torch.full((5,), 7.0)).tolist() == [0.0] * 5
    assert anomaly_index(torch.tensor([7.0, 7.0, 2.0, 7.0, 8.0])).tolist() == [0, 0, float("inf"), 0, -float("inf")]
