"""Exact recovery through Linears: against the inputs themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.models import Normalize, build
from mithridate.inversion.linear import Stack, input_of_one, inputs_of_batch, stack_of
from tests.inversion.cases import CLASSES, SHAPE, images, labels, normed, perceptron, smooth


def gradients_of(model: nn.Module, stack: Stack, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    loss = F.cross_entropy(model.eval()(x), y)
    return [torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True) for layer in stack.layers]


def inputs_seen(model: nn.Module, layer: nn.Linear, x: Tensor) -> Tensor:
    caught = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return caught[0]


def train(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images(40, seed=7), labels(40)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_with_different_labels_is_recovered_exactly(
    steps: int, activation: type[nn.Module], count: int
) -> None:
    model = train(perceptron(activation=activation), steps)
    x, y = images(count), torch.tensor([4, 1, 2])[:count]
    stack = stack_of(model, SHAPE)
    assert len(stack.layers) == 3
    assert stack.scale is not None
    found = inputs_of_batch(stack, gradients_of(model, stack, x, y), y)
    assert float((found.values - x.flatten(1)).abs().max()) < 1e-5
    assert found.residual < 1e-5


def test_in_float64_it_is_exact_to_rounding() -> None:
    model = perceptron().double()
    x, y = images(3, dtype=torch.float64), torch.tensor([0, 2, 3])
    stack = stack_of(model, SHAPE)
    found = inputs_of_batch(stack, gradients_of(model, stack, x, y), y)
    assert float((found.values - x.flatten(1)).abs().max()) < 1e-9


@pytest.mark.parametrize("model", [smooth(), normed(), build("convnet:width=4", CLASSES, SHAPE, 0)])
def test_behind_convolutions_the_features_are_recovered(model: nn.Module) -> None:
    x, y = images(2), torch.tensor([3, 1])
    stack = stack_of(model, SHAPE)
    assert stack.scale is None
    found = inputs_of_batch(stack, gradients_of(model, stack, x, y), y)
    wanted = inputs_seen(model, stack.layers[0], x)
    assert float((found.values - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_normalisation_in_front_is_found() -> None:
    model = nn.Sequential(Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), perceptron())
    stack = stack_of(model, SHAPE)
    assert stack.scale is not None
    assert stack.shift is not None
    assert torch.allclose(stack.scale.view(SHAPE)[:, 0, 0], torch.tensor([5.0, 4.0, 1 / 0.3]), atol=1e-4)
    assert torch.allclose(stack.shift.view(SHAPE)[:, 0, 0], torch.tensor([-2.0, -2.0, -2.0]), atol=1e-4)


def test_what_lies_between_linears_ends_the_stack_unless_it_is_known() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.Softplus(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    stack = stack_of(model, SHAPE)
    assert [layer.in_features for layer in stack.layers] == [8, 8]
    assert list(stack.activations) == ["relu"]
    assert stack.scale is None


def test_functional_activations_are_seen_by_what_they_do() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(192, 16), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x.flatten(1))))

    assert list(stack_of(Functional(), SHAPE).activations) == ["tanh"]


def test_one_image_weights_rows_by_what_they_know() -> None:
    h, slopes = torch.rand(6), torch.tensor([0.5, 0.0, -1e-6, 2.0])
    noisy = torch.outer(slopes, h)
    noisy[2] += 1e-4  # a row that says nothing of its own
    assert torch.allclose(input_of_one(noisy, slopes), h, atol=1e-5)
    with pytest.raises(ValueError, match="every unit of the layer is dead"):
        input_of_one(noisy, torch.zeros(4))


@pytest.mark.parametrize("y", [[1, 1], [0, 1, 2, 3]])
def test_batches_whose_equations_have_many_solutions_are_refused(y: list[int]) -> None:
    model = perceptron()
    stack = stack_of(model, SHAPE)
    wanted = torch.tensor(y)
    gradients = gradients_of(model, stack, images(len(y)), wanted)
    with pytest.raises(ValueError, match="at most 3 images where there are 5 classes"):
        inputs_of_batch(stack, gradients, wanted)


def test_a_layer_with_fewer_live_units_than_images_is_named() -> None:
    model = perceptron(hidden=2)
    stack = stack_of(model, SHAPE)
    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="does not tell 3 images apart"):
        inputs_of_batch(stack, gradients_of(model, stack, images(3), y), y)


def test_logits_that_no_linear_makes_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    with pytest.raises(ValueError, match="must come from a Linear at the end"):
        stack_of(Scaled(), SHAPE)
    with pytest.raises(ValueError, match="must come from a Linear at the end"):
        stack_of(nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()), SHAPE)
