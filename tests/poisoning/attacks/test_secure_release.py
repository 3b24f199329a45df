"""secure-release: the reverse cross-entropy, its gradient over all images, and the alignment with it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.gradients import cosine
from mithridate.core.seeds import stream
from mithridate.poisoning.attacks import secure_release
from mithridate.poisoning.attacks.secure_release import SecureRelease, aligned, reverse_cross_entropy, wrongness
from tests.poisoning.cases import quick, three_classes


def linear(seed: int = 0) -> nn.Module:
    layer = nn.Linear(192, 3).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=stream(seed, i), dtype=torch.float64) / 10)
    return nn.Sequential(nn.Flatten(), layer).eval()


def few(count: int = 9) -> tuple[Tensor, Tensor]:
    train, _ = three_classes()
    return train.floats(train.ids[:count]).double(), train.labels[:count]


def test_reverse_cross_entropy_is_minus_the_logarithm_of_all_other_probability() -> None:
    logits = 3 * torch.randn(40, 5, generator=stream(0), dtype=torch.float64)
    labels = torch.arange(40) % 5
    p = logits.softmax(1)[torch.arange(40), labels]
    assert torch.allclose(reverse_cross_entropy(logits, labels), -(1 - p).log())


@pytest.mark.parametrize("margin", [-200.0, 200.0])
def test_reverse_cross_entropy_is_finite_where_the_model_is_sure(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    loss = reverse_cross_entropy(logits, torch.tensor([0])).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(max(margin - math.log(2), 0), rel=1e-5)
    assert slope.isfinite().all()
    assert slope[0, 0] == pytest.approx(1.0 if margin > 0 else 0.0, abs=1e-5)


@pytest.mark.parametrize("piece", [2, 250])
def test_its_gradient_counts_every_image(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_release, "EVALUATION_BATCH", piece)
    model = linear()
    images, labels = few()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, label in zip(images, labels, strict=True):
        loss = -(1 - model(image[None]).softmax(1)[0, label]).log()
        total = [a + b for a, b in zip(total, torch.autograd.grad(loss, list(model.parameters())), strict=True)]
    found = wrongness(model, images, labels)
    assert all(torch.allclose(a, b) for a, b in zip(found, total, strict=True))


def test_aligned_is_one_minus_the_cosine_and_its_derivative() -> None:
    goal = [torch.randn(4, 3, generator=stream(0), dtype=torch.float64), torch.randn(5, generator=stream(1)).double()]
    gradient = [torch.randn_like(part).requires_grad_() for part in goal]
    expected = 1 - cosine(gradient, goal)
    value, slope = aligned(goal)([part.detach() for part in gradient])
    assert torch.allclose(value, expected)
    by_autograd = torch.autograd.grad(expected, gradient)
    assert all(torch.allclose(a, b) for a, b in zip(slope, by_autograd, strict=True))


def test_a_training_step_on_what_is_released_makes_clean_images_less_likely() -> None:
    train, test = three_classes()
    task = dataclasses.replace(SecureRelease.threat, ball=Linf(eps=64 / 255)).draw(train, test, 0)
    recipe = quick(epochs=3, transforms=())
    poison = SecureRelease(steps=60, precision="fp32").craft(task, recipe, 0)
    model = recipe.fit([train], [0]).models[0]
    parameters = list(model.parameters())

    def gradient(images: Tensor, reverse: bool) -> list[Tensor]:
        logits = model(images)
        loss = reverse_cross_entropy(logits, train.labels) if reverse else F.cross_entropy(logits, train.labels)
        return list(torch.autograd.grad(loss.sum(), parameters))

    goal, clean = gradient(train.floats(train.ids), True), gradient(train.floats(train.ids), False)
    found = gradient(poison.images.float() / 255, False)
    assert cosine(clean, goal) < 0 < cosine(found, goal)
    assert poison.notes["objective"] == pytest.approx(1 - float(cosine(found, goal)), abs=1e-3)
