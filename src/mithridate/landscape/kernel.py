"""Kernel: the empirical tangent kernel of a network, and how far training moves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from mithridate.core.ensemble import in_mode
from mithridate.core.gradient_rules import trainable

ROOM = 2**28
"""Bytes of Jacobians at a time, unless one parameter tensor alone takes more."""


def tangent_kernel(model: nn.Module, images: Tensor, *, room: int = ROOM) -> Tensor:
    """Returns the empirical neural tangent kernel: products of the gradients of logits, for every pair of images.

    One Jacobian per image (vmap of reverse mode), the model in eval mode, parameters a few tensors at a time.

    Reference: Jacot, Gabriel, Hongler. "Neural Tangent Kernel: Convergence and Generalization in Neural Networks".
    NeurIPS 2018. arXiv 1806.07572.

    Args:
        model: Any module that `torch.func` can follow.
        images: [N, ...] that it takes.
        room: Bytes of Jacobians to hold.

    Returns:
        [N, K, N, K]: [i, a, j, b] is the product of the gradients of logit a of image i and of logit b of image j.

    Raises:
        ValueError: No images, or no trainable parameters.

    >>> tangent_kernel(nn.Linear(2, 3), torch.tensor([[1.0, 2.0]]))[0, :, 0, :]  # |x|^2 + 1 for the bias
    tensor([[6., 0., 0.],
            [0., 6., 0.],
            [0., 0., 6.]])
    """
    parameters = {name: one.detach() for name, one in trainable(model).items()}
    if not len(images) or not parameters:
        raise ValueError(f"{len(images)} images and {len(parameters)} trainable parameters; the kernel needs both")
    with in_mode(model, train=False), torch.no_grad():
        classes = model(images[:1]).shape[1]
        kernel = torch.zeros(len(images) * classes, len(images) * classes, dtype=images.dtype, device=images.device)
        for group in _groups(parameters, room // max(1, len(images) * classes * images.element_size())):
            rows = _jacobian(model, {name: parameters[name] for name in group}, images)
            kernel += rows @ rows.T
    return kernel.view(len(images), classes, len(images), classes)


def _groups(parameters: dict[str, Tensor], most: int) -> Iterator[list[str]]:
    """Names of parameters that have at most so many numbers together, or are alone."""
    group: list[str] = []
    size = 0
    for name, one in parameters.items():
        if group and size + one.numel() > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += one.numel()
    yield group


def _jacobian(model: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
    """[N * K, P] the gradients of all logits of all images."""

    def logits(chosen: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, chosen, (image[None],))[0]

    found = vmap(jacrev(logits), in_dims=(None, 0), chunk_size=8)(parameters, images)
    return torch.cat([part.flatten(2) for part in found.values()], dim=2).flatten(0, 1)


class Drift(NamedTuple):
    """How far one kernel is from another."""

    relative: float
    """Mean of |difference| / (|first| + 1e-4)."""
    norm: float
    """Norm of the difference over the norm of the first."""
    correlation: float
    """Of the entries."""
    cosine: float
    """Of the kernels as vectors: 1 is the same up to scale."""


def drift(before: Tensor, after: Tensor) -> Drift:
    """Compares the kernels of the same images.

    Raises:
        ValueError: Other shapes.

    >>> kernel = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> [round(value, 3) for value in drift(kernel, 2 * kernel)]
    [1.0, 1.0, 1.0, 1.0]
    """
    if before.shape != after.shape:
        raise ValueError(f"kernels of shapes {list(before.shape)} and {list(after.shape)} are not of the same images")
    first, second = before.double().flatten(), after.double().flatten()
    change = second - first
    return Drift(
        float((change.abs() / (first.abs() + 1e-4)).mean()),
        float(change.norm() / first.norm()),
        float(torch.corrcoef(torch.stack([first, second]))[0, 1]),
        float(torch.nn.functional.cosine_similarity(first, second, dim=0)),
    )
