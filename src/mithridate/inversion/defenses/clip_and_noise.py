"""Clipping and noise: bound what one image can contribute, and drown it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mithridate.core.gaussian import gaussian_epsilon
from mithridate.core.guarantees import Guarantee
from mithridate.inversion.client import Client, LeakDefense, filtered
from mithridate.inversion.filters import Clipped, Noisy
from mithridate.inversion.sharing import Gradient


@dataclass(frozen=True, kw_only=True)
class ClipAndNoise(LeakDefense):
    """Clip the gradient of each image, then add Gaussian noise: differential privacy for one message.

    For a gradient, the unit that is protected is one image, added or removed; for an update of local training it is
    everything the client has, because only the update as a whole can be clipped. Epsilon is that of this one message: a
    client that answers in many rounds spends more.

    Reference: Abadi et al. "Deep Learning with Differential Privacy". CCS 2016. arXiv 1607.00133; for updates McMahan,
    Ramage, Talwar, Zhang. "Learning Differentially Private Recurrent Language Models". ICLR 2018. arXiv 1710.06963.

    Raises:
        TypeError: A client that has mixed its images: then one image is in several gradients.
        ValueError: A clip that is not positive, negative noise, or a client with batch statistics.

    >>> client = ClipAndNoise(clip=1.0, noise=2.0)(Client(batch=4))
    >>> client.sharing.clip, client.filters[0].std, round(client.guarantees[0].values["epsilon"], 2)
    (1.0, 0.5, 1.99)
    """

    clip: float = 1.0
    """Largest Euclidean norm of the gradient of one image, or of the whole update."""
    noise: float = 0.01
    """Standard deviation of the noise on the sum of the clipped gradients, in units of the clip."""
    delta: float = 1e-5
    """Delta for which epsilon is given."""

    def __call__(self, client: Client) -> Client:
        if client.mixing is not None:
            raise TypeError("clip-and-noise bounds the gradient of each image, so it goes before mixing in a stack")
        if isinstance(client.sharing, Gradient):
            bounded = replace(client, sharing=replace(client.sharing, clip=self.clip))
            std, unit = self.noise * self.clip / client.batch, "one image of the batch"
        else:
            bounded, std, unit = (
                filtered(client, Clipped(norm=self.clip)),
                self.noise * self.clip,
                "all of a client's data",
            )
        defended = filtered(bounded, Noisy(std=std))
        if not self.noise:
            return defended
        return replace(defended, guarantees=(*client.guarantees, self._guarantee(unit)))

    def _guarantee(self, unit: str) -> Guarantee:
        epsilon = gaussian_epsilon(self.noise, self.delta)
        return Guarantee(
            kind="differential-privacy",
            statement=f"one message is ({epsilon:.4g}, {self.delta:g})-differentially private for {unit}",
            assumptions=(
                f"neighbours differ by adding or removing {unit}; the number of images is public",
                "the labels are part of what is protected; a server that is told them is not covered",
                "this message alone: every further round adds to epsilon",
            ),
            values={"epsilon": epsilon, "delta": self.delta, "noise_multiplier": self.noise},
        )
