"""Analytic recovery: the inputs of a Linear, solved for instead of searched for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mithridate.core.balls import AnyImage
from mithridate.core.perturbation import minimise
from mithridate.core.seeds import stream
from mithridate.core.updates import SignedAdam
from mithridate.inversion.attack import Inversion, Reconstruction, grey_noise, labels_of, layer_gradient
from mithridate.inversion.labels import Recovery
from mithridate.inversion.leak import Leak
from mithridate.inversion.linear import Stack, input_of_one, inputs_of_batch, stack_of
from mithridate.inversion.matching import Matching, Prior, penalised, prepared
from mithridate.inversion.priors import total_variation
from mithridate.inversion.sharing import Update

EXACT = 1e-3
"""Largest relative error of the equations up to which their solution counts as one."""


@dataclass(frozen=True, kw_only=True)
class AnalyticLinear(Inversion):
    """Solve for the inputs of the first of the Linears at the end of the model: exact, without iterations over pixels.

    For one image, or a batch with different labels. In a network of Linears the inputs are the images themselves. After
    convolutions they are features; the images are then those whose features come nearest, found by signed Adam.

    Reference: Geiping, Bauermeister, Dröge, Moeller. "Inverting Gradients". NeurIPS 2020. arXiv 2003.14053, Proposition
    3.1. Extended: batches with different labels, and the way back through a stack of Linears (see
    `mithridate.inversion.linear`).

    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> leak = Client().share(
    ...     nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images, torch.tensor([2]), seed=0
    ... )
    >>> torch.allclose(AnalyticLinear().reconstruct(leak, seed=0).images, images, atol=1e-4)
    True
    """

    distinct_labels: ClassVar[bool] = True
    steps: int = 1000
    """Iterations of the search for images, where the Linear's inputs are no pixels."""
    lr: float = 0.025
    """Step of that search in pixels of [0, 1]."""
    total_variation: float = 1e-3
    """Weight of the total variation in that search."""
    labels: Recovery = "sign"
    """How labels are recovered where the server does not know them."""

    def reconstruct(self, leak: Leak, seed: int) -> Reconstruction:
        """Reconstructs the images behind a gradient; the note ``residual`` says how well the equations are solved.

        Raises:
            ValueError: An update of several steps; a model that does not end with a Linear, or whose Linears have no
                bias; a batch with repeated labels or as many images as the model has classes.
        """
        if isinstance(leak.sharing, Update) and leak.sharing.steps > 1:
            raise ValueError(
                f"analytic-linear solves for a gradient at one point, but this update comes from {leak.sharing.steps} "
                "local steps; use inverting-gradients, which differentiates through them"
            )
        labels = labels_of(leak, self.labels)
        stack = stack_of(leak.model, leak.shape)
        inputs, residual = solved(leak, stack, labels)
        if residual > EXACT:
            warnings.warn(
                f"the equations of the Linears are solved with a relative error of {residual:.1g}, so the gradient was "
                "changed on its way or the labels are wrong; the images are their least-squares answer",
                stacklevel=2,
            )
        if stack.scale is not None and stack.shift is not None:
            pixels = (inputs - stack.shift.double()) / stack.scale.double()
            images = pixels.view(leak.count, *leak.shape).to(leak.dtype).clamp(0, 1)
        else:
            images = self._with_features(leak, stack, inputs.to(leak.dtype), seed)
        with leak.mode():
            value, _ = Matching(leak, leak.targets(labels))(images)
        return Reconstruction(images, labels, float(value), {"residual": residual})

    def _with_features(self, leak: Leak, stack: Stack, wanted: Tensor, seed: int) -> Tensor:
        rng = stream(seed, "features")
        begin = grey_noise(leak, rng)
        with leak.mode():
            objective = penalised(features_distance(leak, stack, wanted), [(self.total_variation, total_variation)])
            fast = prepared(objective, begin, self.steps)
            update = SignedAdam(lr=self.lr)
            found = minimise(fast, begin, AnyImage(), steps=self.steps, update=update, pixels="float", rng=rng)
        return found.images


def solved(leak: Leak, stack: Stack, labels: Tensor) -> tuple[Tensor, float]:
    """Returns the inputs [B, D] of the first layer of a stack in float64, and the relative error of their equations.

    Raises:
        ValueError: Layers without bias; labels for which the equations have many solutions.
    """
    gradients = []
    for layer in stack.layers:
        weight, bias = layer_gradient(leak, layer)
        if bias is None:
            raise ValueError(f"{layer} shares no bias, whose gradient is what a row of the weight's is divided by")
        gradients.append((weight, bias))
    if leak.count == 1:
        weight, bias = (part.double() for part in gradients[0])
        found = input_of_one(weight, bias)
        apart = torch.outer(bias, found) - weight
        return found[None], float(apart.norm() / weight.norm().clamp_min(1e-30))
    return inputs_of_batch(stack, gradients, labels)


def features_distance(leak: Leak, stack: Stack, wanted: Tensor) -> Prior:
    """Returns the squared distance [] of a Linear's inputs from wanted ones [B, D], relative to their length, and its
    slope, as a function of images."""
    length = wanted.square().sum().clamp_min(1e-30)

    def distance(images: Tensor) -> tuple[Tensor, Tensor]:
        caught: list[Tensor] = []
        handle = stack.layers[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        leaf = images.detach().requires_grad_()
        try:
            with torch.enable_grad():
                leak.model(leaf)
                value = (caught[0].flatten(1) - wanted).square().sum() / length
                (slope,) = torch.autograd.grad(value, leaf)
        finally:
            handle.remove()
        return value.detach(), slope

    return distance
