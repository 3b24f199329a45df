"""Mixing: compute the gradient of mixed images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mithridate.core.augmentation import Mixup
from mithridate.inversion.client import Client, LeakDefense


@dataclass(frozen=True, kw_only=True)
class Mixing(LeakDefense):
    """Replace each image of the batch, and its label, by a weighted mean of several images of the batch.

    An attacker who knows the defence is given the weights and the partners: the worst case, in which mixing is a known
    linear map.

    Reference: Zhang, Cissé, Dauphin, Lopez-Paz. "mixup: Beyond Empirical Risk Minimization". ICLR 2018. arXiv
    1710.09412; as a defence of shared gradients Huang, Song, Li, Arora. "InstaHide". ICML 2020. arXiv 2010.02772, here
    without the flipping of signs.

    Raises:
        ValueError: A client with one image.

    >>> Mixing(k=3)(Client(batch=4)).mixing
    Mixup(k=3, alpha=1.0)
    """

    k: int = 2
    """Images per mixture."""
    alpha: float = 1.0
    """Concentration of the weights (Dirichlet); 1.0 draws them uniformly."""

    def __call__(self, client: Client) -> Client:
        return replace(client, mixing=Mixup(k=self.k, alpha=self.alpha))
