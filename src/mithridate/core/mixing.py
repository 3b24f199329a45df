"""Mixing with noise: images that are released once and trained on, with a guarantee of differential privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from mithridate.core.augmentation import Noise
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.data import ImageData
from mithridate.core.guarantees import Guarantee
from mithridate.core.privacy import at_most, mixing_epsilon, shift, shuffled_epsilon
from mithridate.core.sampling import Groups, Shuffled

if TYPE_CHECKING:
    from mithridate.core.training import Recipe


@dataclass(frozen=True, kw_only=True)
class NoisyMix(BatchTransform):
    """Replaces images by means of k of them with equal weights, adds Laplace noise, clips to [0, 1]; mixes targets too.

    Pixels are clipped to [0, 1] before they are mixed as well, which the guarantee needs where a transform before this
    one leaves the interval (noise, say). Clipping afterwards costs nothing: it looks at what is released already.

    Reference: Borgnia, Geiping, Cherepanova, Fowl, Gupta, Ghiasi, Huang, Goldblum, Goldstein. "DP-InstaHide: Provably
    Defusing Poisoning and Backdoor Attacks with Differentially Private Data Augmentations". 2021. arXiv 2103.02079.

    Raises:
        ValueError: Fewer than one image per mixture, or negative noise; when called, a batch that is no whole number
            of groups.

    >>> batch = Batch(torch.ones(4, 1, 8, 8), torch.eye(4), torch.arange(4), 0.0)
    >>> mixed = NoisyMix(k=2, scale=0.0, grouped=True)(batch, nn.Identity(), torch.Generator())
    >>> mixed.images.shape, mixed.targets.tolist()
    (torch.Size([2, 1, 8, 8]), [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    """

    mixes_rows: ClassVar[bool] = True
    k: int = 4
    """Images per mixture."""
    scale: float = 16 / 255
    """Parameter b of the Laplace noise, in pixels of [0, 1]; its deviation is the root of two times that."""
    grouped: bool = False
    """True: average each k neighbours, as `Groups` draws them, so that B * k images become B. False: average each image
    with k - 1 others of its batch, by random permutations; a mixture may then hold an image twice."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"noisy-mix k is {self.k}; a mixture needs at least 1 image")
        if not self.scale >= 0:
            raise ValueError(f"noisy-mix scale is {self.scale}; it is 0 or more, in pixels of [0, 1] (say 16/255)")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        clipped = batch._replace(images=batch.images.clamp(0, 1))
        mixed = self._neighbours(clipped) if self.grouped else self._permuted(clipped, rng)
        noisy = Noise(kind="laplace", scale=self.scale)(mixed, model, rng)
        return noisy._replace(images=noisy.images.clamp(0, 1))

    def _neighbours(self, batch: Batch) -> Batch:
        if len(batch.images) % self.k:
            raise ValueError(
                f"noisy-mix averages each {self.k} neighbours of a batch, but there are {len(batch.images)} images; "
                f"draw batches by Groups(k={self.k}), or set grouped=False to mix inside any batch"
            )
        images, targets = (x.unflatten(0, (-1, self.k)).mean(1) for x in (batch.images, batch.targets))
        return batch._replace(images=images, targets=targets, rows=batch.rows[:: self.k])

    def _permuted(self, batch: Batch, rng: torch.Generator) -> Batch:
        images, targets = batch.images, batch.targets
        for _ in range(self.k - 1):
            order = torch.randperm(len(batch.images), generator=rng).to(images.device, non_blocking=True)
            images, targets = images + batch.images[order], targets + batch.targets[order]
        return batch._replace(images=images / self.k, targets=targets / self.k)

    def guarantee(self, recipe: Recipe, data: ImageData) -> Guarantee | None:
        """The privacy of a whole training run on mixed images.

        None where something else than the mixed images reaches the training: a normalisation by the data, a row rule,
        a transform before this one that looks at other rows, another sampler than the mixing counts on; or without
        noise.
        """
        before = recipe.transforms[: recipe.transforms.index(self)]
        leaks = recipe.normalize == "data" or recipe.row_rule is not None or any(one.mixes_rows for one in before)
        drawn = recipe.sampler == (Groups(k=self.k) if self.grouped else Shuffled())
        if leaks or not drawn or not self.scale:
            return None
        diameter = float(math.prod(data.shape))
        batches = recipe.sampler.batches(len(data), recipe.batch_size)
        samples = recipe.epochs * (batches * recipe.batch_size if self.grouped else len(data))
        values = {
            "samples": float(samples),
            "mixed": float(self.k),
            "scale": self.scale,
            "diameter": diameter,
        }
        if not self.grouped:
            total = shuffled_epsilon(recipe.epochs, self.scale, diameter)
            values |= {"epsilon": total, "epsilon_per_sample": shift(diameter, 1, self.scale)}
            return _promised(values, "this holds for any weights, and nobody need be kept from knowing what was mixed")
        smallest = _smallest_class(data)
        total, one = (
            mixing_epsilon(count, self.k, self.scale, diameter, smallest) for count in (samples, min(1, samples))
        )
        values |= {"epsilon": total, "epsilon_per_sample": one, "smallest_class": float(smallest)}
        return _promised(
            values,
            "mixed labels say how many of a class a group holds, so a group hides an image among those of its class "
            f"alone: {smallest} in the smallest",
        )


def _smallest_class(data: ImageData) -> int:
    """Size of the smallest class that has a row."""
    counts = torch.bincount(data.labels_of(data.ids), minlength=len(data.classes))
    return int(counts[counts > 0].min())


def _promised(values: dict[str, float], own: str) -> Guarantee:
    epsilon = at_most(values["epsilon"])
    return Guarantee(
        kind="differential-privacy",
        statement=f"the mixed images, and so the model, are {epsilon}-differentially private: replacing one image by "
        f"another of the same label changes how likely any outcome is by a factor of at most exp({epsilon})",
        assumptions=(
            "neighbours are data sets in which one image is replaced and its label kept; labels are public",
            f"two images are at most {values['diameter']:.0f} apart in l1: pixels are clipped to [0, 1] before mixing",
            "transforms before the mixing look at one image at a time; those after it see what is released alone",
            own,
            "the seed is secret: whoever knows it knows the noise",
            "weights that training starts from (start_from) are public or owe nothing to these images",
            "one training run is released; several on the same images add up",
            "draws of a pseudo-random generator and sums of floating-point numbers count as exact",
            "where images stay legible epsilon is astronomical: the effect on poison is measured, not explained by it",
        ),
        values=values,
    )
