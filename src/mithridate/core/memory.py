"""Doing work in pieces that fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out, on a GPU or on the CPU.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes do not fit"))
    (True, False)
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def shrinking(work: Callable[[int], T], size: int) -> T:
    """Runs ``work(size)``; where memory runs out, says so and tries again with half the size.

    >>> shrinking(lambda size: size * 2, 8)
    16
    """
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or size == 1:
                raise
        size //= 2
        warnings.warn(f"out of memory; going on with pieces of {size}", stacklevel=2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def in_chunks(function: Callable[[Tensor], Tensor], items: Tensor, size: int, dim: int = 0) -> Tensor:
    """Applies a function to pieces of a tensor [N, ...] and concatenates the results along ``dim``.

    >>> in_chunks(lambda x: x * 2, torch.arange(5), 2)
    tensor([0, 2, 4, 6, 8])
    """

    def work(chunk: int) -> Tensor:
        return torch.cat([function(part) for part in items.split(chunk)], dim)

    return shrinking(work, size)
