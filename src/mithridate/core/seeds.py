"""Named random streams from one integer: no draw ever depends on the order in which other draws were made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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


def aside(rng: torch.Generator, name: str) -> torch.Generator:
    """Opens a stream beside a generator: it depends on where the generator is, and the generator stays there.

    >>> rng = torch.Generator().manual_seed(1)
    >>> before = rng.get_state()
    >>> first = torch.rand(1, generator=aside(rng, "attack"))
    >>> bool(first == torch.rand(1, generator=aside(rng, "attack"))), torch.equal(before, rng.get_state())
    (True, True)
    """
    twin = torch.Generator()
    twin.set_state(rng.get_state())
    return stream(int(torch.randint(2**62, (1,), generator=twin)), name)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's global generators, which dropout and the like draw from; the old state comes back.

    >>> with seeded(torch.device("cpu"), 3):
    ...     first = torch.rand(1)
    >>> with seeded(torch.device("cpu"), 3):
    ...     first == torch.rand(1)
    tensor([True])
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
