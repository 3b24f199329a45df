"""Larger batches: hide in a crowd."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mithridate.inversion.client import Client, LeakDefense


@dataclass(frozen=True, kw_only=True)
class LargerBatch(LeakDefense):
    """Average the gradient over more images. The server knows how many.

    >>> LargerBatch(factor=4)(Client(batch=2)).batch
    8
    """

    factor: int = 8
    """How many times as many images."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}; a batch can only grow, so use 2 or more")

    def __call__(self, client: Client) -> Client:
        return replace(client, batch=self.factor * client.batch)
