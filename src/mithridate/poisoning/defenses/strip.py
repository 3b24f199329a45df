"""STRIP: refuse images whose prediction stays sure however they are blended with other images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.memory import in_chunks
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Learner, Predictor
from mithridate.poisoning.defense import Defense, Guarded, Kind, Rejection


@dataclass(frozen=True, kw_only=True)
class Strip(Defense):
    """Blend each image with clean ones and refuse to answer where the predictions stay too sure.

    A trigger decides the label whatever it is blended with, so the mean entropy of the predictions is low. The
    threshold is the quantile `false_alarms` of a normal distribution fitted to the entropies of clean images. Clean
    images are the trusted rows, or, where there are none, the rows of the training set, poisoned ones among them. Half
    of them at most are blended in, the others set the threshold. Weights do not change, so an adaptive attacker crafts
    through the learner as it is.

    Reference: Gao, Xu, Wang, Chen, Ranasinghe, Nepal. "STRIP: A Defence Against Trojan Attacks on Deep Neural
    Networks". ACSAC 2019. arXiv 1902.06531. Deviations: the sum of two images (which the authors' code takes too) is
    clipped to [0, 1]; all images are blended with the same clean ones; entropies are in nats.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> defended = Strip(overlays=4, calibration=50)(Recipe(model="mlp", epochs=1))
    >>> defended.fit([train], seeds=[0]).predictor(train.floats(train.ids[:2])).abstained.shape
    torch.Size([1, 2])
    """

    kind: ClassVar[Kind] = "guard"

    overlays: int = 100
    """Clean images that each image is blended with; each costs a prediction."""
    blend: Literal["sum", "mean"] = "sum"
    """Sum of two images, clipped to [0, 1], or their mean, which halves the trigger too: small ones stop working."""
    false_alarms: float = 0.01
    """Share of clean images that may be refused, a fraction in (0, 1)."""
    calibration: int = 500
    """Clean images that set the threshold, at most."""

    def __post_init__(self) -> None:
        if self.overlays < 1:
            raise ValueError(f"overlays is {self.overlays}; at least one image must be blended in")
        if self.blend not in _BLENDS:
            raise ValueError(f"blend is {self.blend!r}; use one of {', '.join(_BLENDS)}")
        if not 0 < self.false_alarms < 1:
            raise ValueError(f"false_alarms is {self.false_alarms:g}; it is a fraction, so use 0.01 for 1 %")
        if self.calibration < 2:
            raise ValueError(f"calibration is {self.calibration}; a spread needs at least 2 images")

    def __call__(self, learner: Learner) -> Learner:
        return Guarded(learner, self.calibrated)

    def seen_by_attacker(self, learner: Learner) -> Learner:
        return learner

    def calibrated(self, predictor: Predictor, clean: ImageData, seed: int) -> Rejection:
        """Sets the threshold of each of the predictor's M models; returns images [B, C, H, W] -> [M, B] bool.

        Raises:
            ValueError: Fewer than 4 clean rows.
        """
        if len(clean) < 4:
            raise ValueError(f"strip has {len(clean)} clean images; it needs 4 or more: raise trusted= of the trial")
        order = clean.ids[torch.randperm(len(clean), generator=stream(seed, "strip")).to(clean.device)]
        count = min(self.overlays, len(order) // 2)
        overlays, held = clean.floats(order[:count]), clean.floats(order[count:][: self.calibration])
        shares = shares_of(predictor(held).scores)

        def entropy(images: Tensor) -> Tensor:
            blends = _BLENDS[self.blend](images[:, None], overlays)
            return mean_entropy(shares(predictor(blends.flatten(0, 1)).scores), len(overlays))

        def entropies(images: Tensor) -> Tensor:
            return in_chunks(entropy, images, max(1, EVALUATION_BATCH // count), dim=1)

        known = entropies(held)
        quantile = torch.special.ndtri(torch.tensor(self.false_alarms, dtype=known.dtype))
        threshold = known.mean(1, keepdim=True) + known.std(1, keepdim=True) * quantile.to(known.device)
        return lambda images: entropies(images) < threshold


def _sum(images: Tensor, overlays: Tensor) -> Tensor:
    return (images + overlays).clamp(0, 1)


def _mean(images: Tensor, overlays: Tensor) -> Tensor:
    return (images + overlays) / 2


_BLENDS = {"sum": _sum, "mean": _mean}


def mean_entropy(probabilities: Tensor, overlays: int) -> Tensor:
    """Returns the mean entropy in nats of each image's predictions, [M, B], from [M, B * overlays, K] image by image.

    >>> mean_entropy(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]), overlays=2)
    tensor([[0.3466]])
    """
    return torch.special.entr(probabilities).sum(-1).unflatten(1, (-1, overlays)).mean(2)


def shares_of(scores: Tensor) -> Callable[[Tensor], Tensor]:
    """Says how scores like these [M, B, K] become probabilities: votes by their share, logits by softmax.

    Votes are whole numbers and not negative, probabilities are not negative and sum to one.

    >>> votes = torch.tensor([[[3.0, 1.0]]])
    >>> shares_of(votes)(votes).tolist()
    [[[0.75, 0.25]]]
    """
    whole = bool((scores == scores.round()).all())
    sums = bool(((scores.sum(-1) - 1).abs() < 1e-4).all())
    return _counted if bool((scores >= 0).all()) and (whole or sums) else lambda logits: logits.softmax(-1)


def _counted(counts: Tensor) -> Tensor:
    """Shares of the votes; where no one voted, all classes alike."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp_min(1e-12), 1 / counts.shape[-1])
