"""Sparsification: send only the largest numbers."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.inversion.client import Client, LeakDefense, filtered
from mithridate.inversion.filters import Sparse


@dataclass(frozen=True, kw_only=True)
class Sparsify(LeakDefense):
    """Keep only the share of the numbers that is largest in magnitude over the whole vector.

    Reference: Lin, Han, Mao, Wang, Dally. "Deep Gradient Compression". ICLR 2018. arXiv 1712.01887; as a defence Zhu,
    Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. arXiv 1906.08935. Deviation: nothing is carried over from
    round to round.

    >>> Sparsify(keep=0.01)(Client()).filters
    (Sparse(keep=0.01),)
    """

    keep: float = 0.1
    """Share of the numbers that is sent, 0..1."""

    def __call__(self, client: Client) -> Client:
        return filtered(client, Sparse(keep=self.keep))
