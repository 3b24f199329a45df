"""Named random streams from one integer: no draw ever depends on the order in which other draws were made."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """Derives a 63-bit seed from a seed and a path of names.

    >>> derive(0, "init") == derive(0, "init"), derive(0, "init") == derive(0, "batches")
    (True, False)
    """
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Opens the random stream of that name.

    The generator lives on the CPU whatever the device: draws are made there and moved, so that a result does not depend
    on the device it was computed on.

    >>> torch.rand(1, generator=stream(3, "craft", 0)).item() == torch.rand(
    ...     1, generator=stream(3, "craft", 0)
    ... ).item()
    True
    """
    return torch.Generator().manual_seed(derive(seed, *names))
