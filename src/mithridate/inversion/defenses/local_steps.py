"""Local steps: send the update of several steps of training instead of one gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mithridate.inversion.client import Client, LeakDefense
from mithridate.inversion.sharing import Update


@dataclass(frozen=True, kw_only=True)
class LocalSteps(LeakDefense):
    """Train locally and send the difference of the weights: federated averaging.

    An attacker who does not know of it takes the update for a gradient; one who does differentiates through the steps.

    Reference: McMahan et al. "Communication-Efficient Learning of Deep Networks from Decentralized Data". AISTATS 2017.
    arXiv 1602.05629.

    Raises:
        TypeError: A client that clips each image's gradient: the steps would not.

    >>> LocalSteps(steps=5, rate=0.1)(Client(batch=4)).sharing.steps
    5
    """

    steps: int = 5
    """Local steps of SGD."""
    rate: float = 0.1
    """Their learning rate."""
    batch_size: int | None = None
    """Images per step; None: all."""

    def __call__(self, client: Client) -> Client:
        if getattr(client.sharing, "clip", None) is not None:
            raise TypeError("local-steps goes before clip-and-noise in a stack, which then clips the whole update")
        statistics = client.sharing.batch_statistics
        sharing = Update(steps=self.steps, rate=self.rate, batch_size=self.batch_size, batch_statistics=statistics)
        return replace(client, sharing=sharing)
