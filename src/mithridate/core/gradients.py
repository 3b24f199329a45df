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

    >>> cosine_slope([torch.tensor([2.0, 0.0])], [torch.tensor([0.0, 1.0])])
    (tensor(0.), [tensor([0.0000, 0.5000])])
    """
    length_a, length_b = norm(a).clamp_min(1e-12), norm(b).clamp_min(1e-12)
    value = dot(a, b) / (length_a * length_b)
    towards, back = 1 / (length_a * length_b), value / length_a.square()
    return value, [towards * y - back * x for x, y in zip(a, b, strict=True)]
