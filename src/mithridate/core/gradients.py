"""Algebra on parameter gradients: sequences of tensors, one per parameter, seen as one long vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Gradient = Mapping[str, Tensor] | Sequence[Tensor]


def _tensors(gradient: Gradient) -> list[Tensor]:
    values: Iterable[Tensor] = gradient.values() if isinstance(gradient, Mapping) else gradient
    return list(values)


def dot(a: Gradient, b: Gradient) -> Tensor:
    """Returns the inner product [] over all parameters.

    Raises:
        ValueError: the two have different numbers of parameters.

    >>> dot({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])})
    tensor(3.)
    """
    products = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(_tensors(a), _tensors(b), strict=True)]
    return torch.stack(products).sum()


def norm(a: Gradient) -> Tensor:
    """Returns the Euclidean norm [] over all parameters.

    >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    return torch.stack([x.norm() for x in _tensors(a)]).norm()


def cosine(a: Gradient, b: Gradient) -> Tensor:
    """Returns the cosine [] of the whole parameter vectors, not the mean of layer-wise cosines.

    >>> cosine([torch.tensor([1.0]), torch.tensor([0.0])], [torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(0.6000)
    """
    return dot(a, b) / (norm(a) * norm(b)).clamp_min(1e-12)


def cosine_slope(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns ``cosine(a, b)`` and its derivative with respect to ``a``, in closed form.

    With the derivative v in hand, the gradient of the cosine with respect to whatever ``a`` was computed from is one
    vector-Jacobian product of ``a``, in pieces if need be.

    >>> value, slope = cosine_slope(
    ...     [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([1.0]), torch.tensor([0.0])]
    ... )
    >>> round(float(value), 4), [round(float(part), 4) for part in slope]
    (0.6, [0.128, -0.096])
    """
    # In foreach operations alone: a gradient has hundreds of parts, and each would cost several launches on a GPU.
    (length_a, unit_a), (_, unit_b) = _unit(a), _unit(b)
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(unit_a, unit_b))).norm().square()
    squares = [torch.stack(torch._foreach_norm(unit)).norm().square() for unit in (unit_a, unit_b)]
    value = (sum(squares) - apart) / 2
    return value, list(torch._foreach_div(torch._foreach_sub(unit_b, torch._foreach_mul(unit_a, value)), length_a))


def squared_error_slope(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the squared distance of ``a`` and ``b`` relative to the length of ``b``, |a - b|^2 / 2 |b|^2, and its
    derivative with respect to ``a``.

    >>> squared_error_slope([torch.tensor([3.0])], [torch.tensor([1.0])])
    (tensor(2.), [tensor([2.])])
    """
    length = torch.stack(torch._foreach_norm(list(b))).norm().clamp_min(1e-12).square()
    apart = torch._foreach_sub(list(a), list(b))
    value = torch.stack(torch._foreach_norm(apart)).norm().square() / (2 * length)
    return value, list(torch._foreach_div(apart, length))


def _unit(a: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns the length [] of a gradient and the gradient over its length; zeros where it is zero."""
    parts = list(a)
    length = torch.stack(torch._foreach_norm(parts)).norm().clamp_min(1e-12)
    return length, torch._foreach_div(parts, length)
