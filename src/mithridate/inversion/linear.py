"""What the gradient of a Linear says exactly about its inputs, for one image or a batch with different labels.

With inputs h [B, D] of a Linear and slopes d [B, O] of the mean loss in its outputs, weight gradient and bias gradient
are ``d.T @ h`` and ``d.T @ 1``. For one image every row of the first over the same entry of the second is h. For a
batch the slopes must be known. At the last layer they are (softmax(W h + b) - y) / B: slopes give h by least squares, h
gives slopes, and this is repeated until nothing changes. At the Linear before it they follow from those behind it and
the derivative of the activation between them, which h tells.

References: Geiping et al. "Inverting Gradients". NeurIPS 2020. arXiv 2003.14053, Proposition 3.1; for one image Phong
et al. "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption". IEEE TIFS 2018. The system for batches
with different labels and its way back through a stack of layers are derived here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.ensemble import in_mode

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "identity": (lambda z: z, torch.ones_like),
    "relu": (torch.relu, lambda h: (h > 0).to(h.dtype)),
    "sigmoid": (torch.sigmoid, lambda h: h * (1 - h)),
    "tanh": (torch.tanh, lambda h: 1 - h.square()),
}
"""Functions between two Linears: the function, and its derivative as a function of its *result*."""
PASSES = 200
"""Repetitions of the system at the last layer, at most; more of them where steps are shorter."""
STEPS = (1.0, 0.2, 0.05)
"""Lengths of a step from the old predictions towards the new ones."""
SETTLED = 1e-12
"""Change of a prediction below which the system is solved."""
ZEROS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Shares of an image's largest activation below which one may be a zero that rounding moved."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The Linears at the end of a model that follow each other, first to last, and what lies around them."""

    layers: Sequence[nn.Linear]
    """At least one; the last makes the logits."""
    activations: Sequence[str]
    """Between each layer and the next: a name in `ACTIVATIONS`."""
    scale: Tensor | None
    """[D] how the first layer's input follows from the pixels, input = scale * pixel + shift; None where it does not,
    because there are other layers before it."""
    shift: Tensor | None
    """[D]."""


class Inputs(NamedTuple):
    """What was found of the inputs of the first layer of a stack."""

    values: Tensor
    """[B, D], in the order of the labels."""
    residual: float
    """Distance of the gradients that follow from them, relative to those that were shared; 0: exact."""


def stack_of(model: nn.Module, shape: tuple[int, int, int]) -> Stack:
    """Finds the Linears at the end of a model by looking at what flows between them on random images.

    Raises:
        ValueError: The model's logits are not what its last Linear returns.
    """
    seen: list[tuple[Any, Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        seen.append((layer, inputs[0], output))

    handles = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, nn.Linear)]
    like = next(model.parameters())
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    images[2:] = torch.stack([torch.zeros_like(images[0]), torch.ones_like(images[0])])
    try:
        with torch.no_grad(), in_mode(model, train=False):
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or seen[-1][2].shape != logits.shape or not torch.allclose(seen[-1][2].to(logits), logits):
        raise ValueError(
            "analytic-linear starts at the logits, which must come from a Linear at the end of the model; use "
            "inverting-gradients for other models"
        )
    layers, between = [seen[-1][0]], []
    for (layer, _, output), (_, following, _) in zip(reversed(seen[:-1]), reversed(seen[1:]), strict=True):
        name = next((n for n, (f, _) in ACTIVATIONS.items() if _same(f(output), following)), None)
        if name is None or layer in layers:
            break
        layers.insert(0, layer)
        between.insert(0, name)
    first = next(inputs for layer, inputs, _ in seen if layer is layers[0])
    return Stack(layers, between, *_affine(images, first))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def _affine(images: Tensor, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Whether the inputs are the pixels, each scaled and shifted (images 2 and 3 are black and white)."""
    flat = images.flatten(1)
    if inputs.shape != flat.shape:
        return None, None
    shift, scale = inputs[2], inputs[3] - inputs[2]
    fits = torch.allclose(flat[:2] * scale + shift, inputs[:2], rtol=1e-4, atol=1e-5) and bool((scale != 0).all())
    return (scale, shift) if fits else (None, None)


# --- one image -------------------------------------------------------------------------------------------------------


def input_of_one(weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the input [D] of a Linear for one image, from the gradients of its weight [O, D] and bias [O].

    Each row gives the same answer; they are averaged with the squares of the bias's entries as weights, which is the
    answer of least squares.

    Raises:
        ValueError: The gradient of the bias is zero: nothing went through the layer.

    >>> input_of_one(torch.tensor([[2.0, 4.0], [-1.0, -2.0]]), torch.tensor([2.0, -1.0]))
    tensor([1., 2.])
    """
    length = bias.square().sum()
    if not bool(length > 0):
        raise ValueError(
            "the gradient of the layer's bias is zero, so its input is lost: every unit of the layer is dead"
        )
    return (bias @ weight) / length


# --- batches ---------------------------------------------------------------------------------------------------------


def inputs_of_batch(stack: Stack, gradients: Sequence[tuple[Tensor, Tensor]], labels: Tensor) -> Inputs:
    """Returns the inputs [B, D] of the first layer of a stack, from the gradients of all its layers.

    Args:
        stack: The Linears, with the weights that the gradients were computed at.
        gradients: (weight, bias) of the mean loss for each layer, first to last.
        labels: [B] different labels, at least two fewer than the model has classes: with more, other inputs solve the
            same equations.

    Raises:
        ValueError: Labels that repeat, or a layer with fewer units than there are images.
    """
    exact = [(weight.double(), bias.double()) for weight, bias in gradients]
    count, last = len(labels), stack.layers[-1]
    if len(labels.unique()) < count or count > last.out_features - 2:
        raise ValueError(
            f"labels {labels.tolist()}: the equations of a batch can be solved for different labels, and for at most "
            f"{last.out_features - 2} images where there are {last.out_features} classes; use inverting-gradients for "
            "other batches"
        )
    inputs, slopes = _last_inputs(last, *exact[-1], labels)
    for layer, name, after, gradient in zip(
        reversed(stack.layers[:-1]),
        reversed(stack.activations),
        reversed(stack.layers[1:]),
        reversed(exact[:-1]),
        strict=True,
    ):
        through = slopes @ after.weight.detach().double()
        tried = [_before(through * slope, gradient) for slope in _derivatives(inputs, name)]
        found = min((one for one in tried if one is not None), key=lambda one: one[0], default=None)
        if found is None:
            raise ValueError(
                f"a layer of {layer.out_features} units does not tell {count} images apart: too many of its units are "
                "dead; use a smaller batch or inverting-gradients"
            )
        _, inputs, slopes = found
    return Inputs(inputs, _residual(inputs, slopes, exact[0]))


def _derivatives(inputs: Tensor, name: str) -> list[Tensor]:
    """The derivative of an activation at results that are known up to rounding.

    For ReLU that is asked of zeros which rounding moved, so there are several: each takes for zero what is small in
    another measure, and the equations of the layer before say which is right.
    """
    derivative = ACTIVATIONS[name][1]
    if name != "relu":
        return [derivative(inputs)]
    size = inputs.abs().amax(1, keepdim=True)
    return [derivative(torch.where(inputs < share * size, 0, inputs)) for share in ZEROS]


def _before(slopes: Tensor, gradient: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor] | None:
    """The inputs [B, D] of a layer whose slopes [B, O] are known, and how well they fit; None where they are not
    determined."""
    if int(torch.linalg.matrix_rank(slopes)) < len(slopes):
        return None
    inputs = torch.linalg.lstsq(slopes.T, gradient[0]).solution
    return _residual(inputs, slopes, gradient), inputs, slopes


def _last_inputs(layer: nn.Linear, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs [B, D] and slopes [B, K] of the last layer: the fixed point of slopes -> inputs -> slopes.

    Whole steps settle for most batches; of those for which they circle, shorter ones do.
    """
    wanted = torch.nn.functional.one_hot(labels, layer.out_features).double()
    own, offset = layer.weight.detach().double(), layer.bias.detach().double() if layer.bias is not None else 0
    count = len(labels)
    share = (bias + wanted.sum(0) / count).clamp_min(1e-12)  # the mean prediction, exactly
    best: tuple[float, Tensor, Tensor] | None = None
    for length in STEPS:
        predicted = (share / share.sum()).expand(count, -1)
        for _ in range(int(PASSES / length)):
            slopes = (predicted - wanted) / count
            inputs = torch.linalg.lstsq(slopes.T, weight).solution
            again = (inputs @ own.T + offset).softmax(1)
            gap = float((again - predicted).abs().amax())
            if best is None or gap < best[0]:
                best = (gap, inputs, slopes)
            if gap < SETTLED:
                return inputs, slopes
            predicted = predicted + length * (again - predicted)
    assert best is not None
    return best[1], best[2]


def _residual(inputs: Tensor, slopes: Tensor, gradient: tuple[Tensor, Tensor]) -> float:
    weight, bias = gradient
    apart = (slopes.T @ inputs - weight).norm().square() + (slopes.sum(0) - bias).norm().square()
    return float(apart.sqrt() / (weight.norm().square() + bias.norm().square()).sqrt().clamp_min(1e-30))
