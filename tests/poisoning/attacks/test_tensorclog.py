"""tensorclog and class-wise-noise: shorter gradients; one pattern for each class."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.gradients import norm
from mithridate.core.seeds import stream
from mithridate.poisoning.attacks.class_wise_noise import ClassWiseNoise
from mithridate.poisoning.attacks.tensorclog import TensorClog, length
from tests.poisoning.cases import quick, three_classes


def test_length_and_its_derivative() -> None:
    gradient = [torch.randn(4, 3, generator=stream(0)).requires_grad_(), torch.randn(5).requires_grad_()]
    expected = norm(gradient)
    value, slope = length([part.detach() for part in gradient])
    assert torch.allclose(value, expected)
    by_autograd = torch.autograd.grad(expected, gradient)
    assert all(torch.allclose(a, b) for a, b in zip(slope, by_autograd, strict=True))
    assert length([torch.zeros(2)])[1][0].tolist() == [0.0, 0.0]


def test_tensorclog_shortens_the_gradient_of_training() -> None:
    train, test = three_classes()
    task = TensorClog.threat.draw(train, test, 0)
    recipe = quick(epochs=3, transforms=())
    poison = TensorClog(steps=40, precision="fp32").craft(task, recipe, 0)
    model = recipe.fit([train], [0]).models[0]

    def found(images: torch.Tensor) -> float:
        loss = F.cross_entropy(model(images), train.labels)
        return float(norm(torch.autograd.grad(loss, list(model.parameters()))))

    released = found(poison.images.float() / 255)
    assert released < 0.8 * found(train.floats(train.ids))
    assert abs(released - poison.notes["objective"]) < 1e-3 * released


def test_class_wise_noise_is_plus_or_minus_eps_the_same_for_all_images_of_a_class() -> None:
    train, test = three_classes()
    perturb = ClassWiseNoise().prepare(train, Linf(eps=8 / 255), quick(), 0)
    grey = torch.full((30, 3, 8, 8), 128.0) / 255
    change = perturb(grey, test.labels, stream(9)).images.int() - 128
    assert change.unique().tolist() == [-8, 8]
    for label in range(3):
        assert (change[test.labels == label] == change[label]).all()
    agree = (change[0] == change[1]).float().mean()
    assert 0.35 < agree < 0.65
    other = ClassWiseNoise().prepare(train, Linf(eps=8 / 255), quick(), 1)
    assert not torch.equal(other(grey, test.labels, stream(9)).images.int() - 128, change)
