"""Quantisation: send few bits per number."""

from __future__ import annotations

from dataclasses import dataclass

from mithridate.inversion.client import Client, LeakDefense, filtered
from mithridate.inversion.filters import Quantized


@dataclass(frozen=True, kw_only=True)
class Quantize(LeakDefense):
    """Round the numbers of each tensor to evenly spaced values between its extremes.

    Reference: as a defence Zhu, Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. arXiv 1906.08935, section 5.1.

    >>> Quantize(bits=4)(Client()).filters
    (Quantized(bits=4),)
    """

    bits: int = 8
    """Bits per number."""

    def __call__(self, client: Client) -> Client:
        return filtered(client, Quantized(bits=self.bits))
