"""BatchNorm in train mode for code that differentiates a gradient: the second derivative in few passes.

PyTorch puts the double backward pass of BatchNorm together from elementwise operations, which on a CPU take half of the
time of an unrolled training step. Written out, what has to be known is a sum of three tensors that are there already,
with one number per channel before each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mithridate.core.networks import ConvNorm


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """A context in which every ``BatchNorm2d`` in train mode is fast to differentiate twice, and keeps no statistics.

    >>> layer = nn.BatchNorm2d(3)
    >>> with twice_differentiable(layer):
    ...     layer(torch.rand(4, 3, 2, 2)).mean().abs() < 1e-6
    tensor(True)
    >>> layer.num_batches_tracked
    tensor(0)
    """
    changed = [part for part in module.modules() if type(part) is nn.BatchNorm2d and part.training]
    for part in changed:
        part.forward = partial(_normalized, part)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for part in changed:
            del part.forward  # the class has its own


@contextmanager
def watching_statistics(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """A context that notes, at every forward pass, mean and variance [C] of what comes to each BatchNorm, with graph.

    Yields a dict from the layer's name to (mean, variance over batch and positions), which each pass fills anew.

    >>> layer = nn.Sequential(nn.BatchNorm2d(3)).eval()
    >>> with watching_statistics(layer) as seen:
    ...     _ = layer(torch.ones(4, 3, 2, 2))
    >>> seen["0"][0].tolist(), seen["0"][1].tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], axes, correction=0)
        seen[name] = mean, variance

    handles = [
        part.register_forward_pre_hook(partial(note, name))
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        with unfolded(module):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unfolded(module: nn.Module) -> Iterator[None]:
    """Makes every `ConvNorm` run its convolution and its norm one after the other, so that hooks on them see inputs."""
    folded = [part for part in module.modules() if isinstance(part, ConvNorm) and part.folding]
    for part in folded:
        part.folding = False
    try:
        yield
    finally:
        for part in folded:
            del part.folding  # the class says so


def _normalized(layer: nn.BatchNorm2d, images: Tensor) -> Tensor:
    count = len(layer.running_mean) if layer.running_mean is not None else images.shape[1]
    weight = images.new_ones(count, dtype=_exact(images)) if layer.weight is None else layer.weight
    bias = torch.zeros_like(weight) if layer.bias is None else layer.bias
    return _BatchNorm.apply(images, weight, bias, layer.eps)  # pyright: ignore[reportReturnType]


class _BatchNorm(torch.autograd.Function):
    """[B, C, H, W] images, [C] weight and bias -> the normalised images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, spread = torch.native_batch_norm(images, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(images, weight, mean, spread)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, spread = ctx.saved_tensors
        return *_Backward.apply(grads[0], images, weight, mean, spread), None


class _Backward(torch.autograd.Function):
    """Gradient of the result, and what the layer saw -> gradients of images, weight and bias."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, images: Tensor, weight: Tensor, mean: Tensor, spread: Tensor) -> tuple:
        plain, along, total = _plain(slope, images, mean, spread)
        ctx.save_for_backward(plain, images, weight, mean, spread, along)
        return _combined([(plain, weight)]), along, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # With u, a, b the gradients that arrive for the three results, g the slope, x^ the normalised image, r one over
        # the deviation, w the weight, m the mean over a channel, and B(z) = r (z - m(z) - x^ m(z x^)), the gradient is
        #   for g: w B(u) + a x^ + b
        #   for w: sum u B(g)
        #   for x: -w r m(g x^) B(u) + (a - w r m(u x^)) B(g) - w r m(u B(g)) x^
        plain, images, weight, mean, spread, slope_along = ctx.saved_tensors
        u, a, b = grads
        again, along, _ = _plain(u.to(images.dtype), images, mean, spread)
        count = images.numel() // images.shape[1]
        inner = _summed(u, plain)
        scale = weight * spread / count
        on_image = -scale * spread * inner
        towards_slope = _combined([(again, weight), (images, a * spread)], b - a * spread * mean)
        terms = [(again, -scale * slope_along), (plain, a - scale * along), (images, on_image)]
        return towards_slope, _combined(terms, -on_image * mean), inner, None, None


def _plain(slope: Tensor, images: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass without weight: gradient like the images, and per channel sum of slope x^ and sum of slope."""
    ones = torch.ones_like(spread)
    mask = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(
        slope.contiguous(memory_format=_layout(images)), images, ones, None, None, mean, spread, True, 0.0, mask
    )


def _combined(terms: Sequence[tuple[Tensor, Tensor]], constant: Tensor | None = None) -> Tensor:
    """Sum of tensors [B, C, H, W], each times a number per channel, and of a number per channel."""
    first = terms[0][0]
    rows = [_spread(value, first) for _, value in terms]
    if constant is None:
        total = first * rows[0]
    else:
        total = torch.addcmul(_spread(constant, first), first, rows[0])
    for (tensor, _), row in zip(terms[1:], rows[1:], strict=True):
        total.addcmul_(tensor, row)
    return total


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """One number per channel, [C], as an image [C, H, W] of the layout of a batch: a short row is slow to broadcast."""
    _, channels, height, width = images.shape
    values = values.to(images.dtype)
    if _layout(images) is torch.contiguous_format:
        return values[:, None, None]
    return values.expand(height, width, channels).contiguous().permute(2, 0, 1)


def _summed(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per channel, [C]."""
    return (a * b).sum((0, 2, 3), dtype=_exact(a))


def _exact(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
