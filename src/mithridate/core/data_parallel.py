"""One model on several devices: each computes with a share of the rows of every batch, and sums go over all of them.

All devices hold the same model and draw the same batches with the same random streams, transforms included; only the
pass through the network is shared out. The gradient is then that of the whole batch, and so are the statistics of
BatchNorm, so what comes out is what one device would have made, up to the rounding of sums in another order.

Reference: Goyal et al. "Accurate, Large Minibatch SGD". 2017. arXiv 1706.02677, for sums of gradients; Peng et al.
"MegDet". CVPR 2018. arXiv 1711.07240, for BatchNorm over all devices. Deviations: the rows of a batch need not be
divisible by the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mithridate.core.batch import Batch, GradientRule
from mithridate.core.gradient_rules import RowSum
from mithridate.core.schema import name_of
from mithridate.core.seeds import derive, seeded

# --- who works together ----------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """The devices that train one model, as one of them sees them."""

    rank: int
    """Which one this is."""
    size: int
    """How many there are."""
    add: Callable[[Tensor], Any]
    """Puts the sum over all devices in place of a contiguous tensor; all must call it in the same order."""

    def bounds(self, rows: int) -> tuple[int, int]:
        """Returns the first of the rows that are this device's, and the one after the last.

        >>> [Group(rank, 3, print).bounds(7) for rank in range(3)]
        [(0, 2), (2, 4), (4, 7)]
        """
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size


_group: ContextVar[Group | None] = ContextVar("group", default=None)


@contextmanager
def together(group: Group) -> Iterator[None]:
    """Whatever is trained inside is trained together with the other devices of a group, which train the same."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def shared_out(rule: GradientRule) -> GradientRule | Shared:
    """Returns the gradient rule, with its batches shared out where several devices train together.

    Raises:
        TypeError: It cannot be.
    """
    group = _group.get()
    return rule if group is None else Shared(rule=divisible(rule), group=group)


def divisible(rule: GradientRule) -> RowSum:
    """Returns the rule if its rows can be shared out.

    Raises:
        TypeError: It is no sum over rows.

    >>> from mithridate.core.gradient_rules import Mean
    >>> divisible(Mean())
    Mean()
    """
    if not isinstance(rule, RowSum):
        raise TypeError(
            f"{name_of(rule)} looks at a whole batch, so its rows cannot be shared out among several devices; let it "
            "derive from RowSum (what rows add up to, and what becomes of the sum), or train on one device"
        )
    return rule


def agreed(rows: Tensor) -> Tensor:
    """Returns the row ids [n] that the first of several devices has; on one device, the rows.

    >>> agreed(torch.tensor([3, 1])).tolist()
    [3, 1]
    """
    group = _group.get()
    if group is None:
        return rows
    first = group.rank == 0
    count = torch.full((1,), len(rows) if first else 0, dtype=torch.int64, device=rows.device)
    group.add(count)
    same = rows.clone() if first else rows.new_zeros(int(count))
    group.add(same)
    return same


# --- the gradient ----------------------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """A gradient rule over several devices, each of which computes with its share of the rows of a batch.

    What layers draw at random (dropout) is drawn on each device for its own rows. What the rule itself draws is the
    same on all. A batch of fewer rows than devices is computed by each of them.
    """

    rule: RowSum
    """What is shared out."""
    group: Group
    """Who takes part."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of each trainable parameter over all rows, by name, and the mean loss [].

        Raises:
            TypeError: Layers whose statistics cannot be taken over several devices.
        """
        count, size = len(batch.images), self.group.size
        if count < size:
            gradients, loss = self.rule.added(model, batch, 1.0)
            parts = [part / size for part in (*gradients.values(), loss)]
        else:
            first, end = self.group.bounds(count)
            with statistics_of_all(model, self.group), _own_draws(self.group, batch.images.device):
                gradients, loss = self.rule.added(model, _rows(batch, first, end), (end - first) / count)
            parts = [*gradients.values(), loss]
        *sums, loss = self._sums(parts)
        return self.rule.finished(dict(zip(gradients, sums, strict=True)), rng), loss

    def _sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Adds tensors up over the devices: one message for all of a number format."""
        sums = [torch.empty_like(tensor) for tensor in tensors]
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [number for number, tensor in enumerate(tensors) if tensor.dtype == dtype]
            message = torch.cat([tensors[number].reshape(-1) for number in same])
            self.group.add(message)
            pieces = message.split([tensors[number].numel() for number in same])
            for number, piece in zip(same, pieces, strict=True):
                sums[number].copy_(piece.view(sums[number].shape))
        return sums


def _rows(batch: Batch, first: int, end: int) -> Batch:
    return batch._replace(images=batch.images[first:end], targets=batch.targets[first:end], rows=batch.rows[first:end])


def _own_draws(group: Group, device: torch.device) -> AbstractContextManager:
    """A context in which layers draw other numbers than those of the other devices do for their rows."""
    if not group.rank:
        return nullcontext()
    return seeded(device, derive(torch.initial_seed(), "rank", group.rank))


# --- BatchNorm -------------------------------------------------------------------------------------------------------

_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Returns the layers that will compute statistics of a batch.

    Raises:
        TypeError: One of them is of a kind whose statistics cannot be taken over several devices.

    >>> len(batch_norms(nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3))))
    1
    """
    found: list[Any] = []
    for name, part in model.named_modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase) or not (part.training or part.running_mean is None):
            continue
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and not part.track_running_stats:
            continue  # of one image alone
        if type(part) not in _KNOWN:
            raise TypeError(
                f"{type(part).__name__} ({name}) computes statistics of a batch in a way of its own, so they cannot be "
                "taken over several devices; use BatchNorm2d or GroupNorm, or train on one device"
            )
        found.append(part)
    return found


@contextmanager
def statistics_of_all(model: nn.Module, group: Group) -> Iterator[None]:
    """A context in which BatchNorm has the mean and the variance of the rows of all devices.

    Args:
        model: Its BatchNorm layers in train mode are changed, and put back.
        group: Who takes part; each with a row at least.

    Raises:
        TypeError: As `batch_norms`.
    """
    changed = batch_norms(model)
    for part in changed:
        part.forward = partial(_normalized, part, group)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for part in changed:
            del part.forward  # the class has its own


def _normalized(layer: nn.modules.batchnorm._BatchNorm, group: Group, images: Tensor) -> Tensor:
    if images.ndim < 2 or images.shape[1] != layer.num_features:
        raise ValueError(f"expected {layer.num_features} channels, got images of shape {list(images.shape)}")
    found: Any = _WholeBatch.apply(images, layer.weight, layer.bias, layer.eps, group)
    out, mean, variance, total = found
    if layer.training and layer.running_mean is not None and layer.running_var is not None:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
            seen: Any = layer.num_batches_tracked
            rate = 1 / seen.float() if layer.momentum is None else layer.momentum
            unbiased = variance * (total / (total - 1))
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), rate)
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), rate)
    return out


class _WholeBatch(torch.autograd.Function):
    """[n, C, ...] images, [C] weight and bias -> the normalised images, mean and variance [C], how many numbers [].

    The statistics of devices are put together as in Chan, Golub, LeVeque. "Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances". 1979.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes, channels = _axes(images), images.shape[1]
        own_variance, own_mean = torch.var_mean(_exact(images), axes, correction=0)
        table = own_mean.new_zeros(group.size, 2 * channels + 1)
        number = images.numel() // channels
        table[group.rank] = torch.cat([own_mean, own_variance * number, own_mean.new_full((1,), number)])
        group.add(table)
        means, squares, numbers = table[:, :channels], table[:, channels:-1], table[:, -1:]
        total = numbers.sum()
        mean = (means * numbers).sum(0) / total
        variance = (squares + numbers * (means - mean).square()).sum(0) / total
        out = F.batch_norm(images, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt(), total)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, total)
        return out, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        # With g the slope, x^ the normalised image, r one over the deviation, w the weight and m the mean over a
        # channel of all devices, the gradient for x is w r (g - m(g) - x^ m(g x^)).
        images, weight, mean, spread, total = ctx.saved_tensors
        slope, normal = _exact(slopes[0]), (_exact(images) - _spread(mean, images)) * _spread(spread, images)
        axes = _axes(images)
        own = torch.stack([slope.sum(axes), (slope * normal).sum(axes)])
        both = own.clone()
        ctx.group.add(both)
        plain, along = both / total
        scale = spread if weight is None else spread * weight
        inner = slope - _spread(plain, images) - normal * _spread(along, images)
        on_images = (inner * _spread(scale, images)).to(images.dtype)
        on_weight, on_bias = (None, None) if weight is None else (own[1].to(weight.dtype), own[0].to(weight.dtype))
        return on_images, on_weight, on_bias, None, None


def _axes(images: Tensor) -> list[int]:
    return [axis for axis in range(images.ndim) if axis != 1]


def _exact(images: Tensor) -> Tensor:
    return images if images.dtype == torch.float64 else images.float()


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """One number per channel, [C], so that it can be combined with images [n, C, ...]."""
    return values.view(-1, *[1] * (images.ndim - 2))
