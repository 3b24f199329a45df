"""Arithmetic that a piece of work needs, and the arithmetic that the machine can do: a large matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from mithridate.core.classifier import bf16_pays

SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices: on the machines tried, larger ones are not multiplied faster."""
PRODUCTS = {"cpu": 2, "cuda": 20}
"""Products in one timing, so that it lasts tens of milliseconds."""


def flops_of(work: Callable[[], object]) -> float:
    """Run once and count the floating-point operations of convolutions and matrix products; nothing else counts.

    A multiplication and an addition are two. What runs inside compiled code or a replayed CUDA graph is not seen, so
    count an ordinary form of the same work.
    """
    with _Counter() as counter:
        work()
    return float(counter.total)


class _Counter(TorchDispatchMode):
    """Adds up PyTorch's own formulas; its FlopCounterMode also follows modules, and fails on a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.formulas = flop_registry | {
            torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward),
        }

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        self.total += 0 if formula is None else formula(*args, **(kwargs or {}), out_val=out)
        return out


def _convolution_backward(grad: list[int], images: list[int], weight: list[int], *settings, **shapes) -> int:
    """Each of the two gradients asked for costs what the forward pass costs.

    In place of PyTorch's own formula, which counts the weight gradient of grouped convolutions `groups` times.
    """
    transposed, mask = settings[4], settings[7]
    positions = images[2:] if transposed else grad[2:]
    return sum(mask[:2]) * 2 * grad[0] * math.prod(positions) * math.prod(weight)


def format_of(device: str) -> torch.dtype:
    """The number format in which mithridate trains and crafts there, unless told otherwise."""
    return torch.bfloat16 if bf16_pays(torch.device(device)) else torch.float32


def ceiling(device: str, dtype: torch.dtype, *, small: bool = False) -> tuple[Callable[[], object], float]:
    """A few large matrix products, and their floating-point operations.

    Args:
        device: Where.
        dtype: Number format of the factors.
        small: Tiny matrices, to show that it runs.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    side, products = (64, 1) if small else (SIDES[kind], PRODUCTS[kind])
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=rng).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b, out=out)

    return multiply, 2.0 * products * side**3
