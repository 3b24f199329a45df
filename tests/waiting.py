"""Counts the places where a program would wait for a GPU, on a machine that has none.

What is computed from an image set (or from a model's parameters) would lie on the GPU; draws of a CPU generator would
not. A value that lies there and is read by Python, or that decides the shape of a result, makes the program wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2", "bincount")
"""Operations whose result is a Python value, or has a shape that depends on values."""
METHODS = ("tolist", "numpy", "cpu", "item")


class Waits(TorchDispatchMode):
    """Follows tensors from given ones through every operation, and counts where one of them is waited for."""

    def __init__(self, roots: Iterable[Tensor]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._alive: dict[int, Any] = {}  # kept, so that no other storage gets the same address
        for root in roots:
            self._mark(root)

    def _mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = storage

    def on_gpu(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(self.on_gpu(tensor) for tensor in inputs)
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            tensor.dtype == torch.bool and self.on_gpu(tensor) for tensor in inputs[1:]
        )
        if there and (name in READS or masks):
            self.seen.append(name)
        result = func(*args, **kwargs)
        if there:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._mark(leaf)
        return result


@contextmanager
def waits(monkeypatch: pytest.MonkeyPatch, roots: Iterable[Tensor]) -> Iterator[list[str]]:
    """Yields the list that names of waits are added to inside the block."""
    mode = Waits(roots)

    def watched(name: str) -> Any:
        plain = getattr(Tensor, name)

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if mode.on_gpu(tensor):
                mode.seen.append(name)
            return plain(tensor, *args, **kwargs)

        return method

    with monkeypatch.context() as patch, mode:
        for name in METHODS:
            patch.setattr(Tensor, name, watched(name))
        yield mode.seen
