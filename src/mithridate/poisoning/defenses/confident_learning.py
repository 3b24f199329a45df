"""Confident learning: drop the rows whose label models that have not seen them doubt the most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.extras import extra
from mithridate.core.seeds import derive, stream
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Evidence, Filter, Judgement, evidence_of

Quality = Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"]


@dataclass(frozen=True, kw_only=True)
class ConfidentLearning(Filter):
    """Fit on all but one fold of the rows, let that model judge the labels of the fold, drop the worst, fit again.

    A model that has not seen a row cannot have learnt its label by heart. The score is one minus the label's quality as
    cleanlab computes it; with `self_confidence` that is one minus the predicted share of the label, which is half the
    summed size of the gradient of the logits (softmax minus label): large gradients go. A trigger that is on rows of
    every fold is learnt from the others, so a backdoor's labels are not doubted.

    Needs the extra `cleanlab`.

    Reference: Northcutt, Jiang, Chuang. "Confident Learning: Estimating Uncertainty in Dataset Labels". Journal of
    Artificial Intelligence Research 70, 2021. arXiv 1911.00068; the scores of Kuan, Mueller. "Model-agnostic Label
    Quality Scoring to Detect Real-world Label Errors". ICML 2022 DataPerf Workshop. Deviations: as many rows go as the
    defender expects to be poisoned, times a multiplier, in place of an estimate from the scores.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = ConfidentLearning(contamination=0.1, folds=2)(Recipe(model="mlp", epochs=1)).fit(
    ...     [train], seeds=[0]
    ... )
    >>> len(fitted.kept[0]) >= 80
    True
    """

    reason: ClassVar[str] = "has a label that models trained without it doubt"

    contamination: float = 0.02
    """Share of the training set that the defender expects to be poisoned, a fraction in (0, 1)."""
    multiplier: float = 1.5
    """Rows dropped, in units of that expectation."""
    folds: int = 4
    """Folds of the rows; each takes a training without it."""
    quality: Quality = "self_confidence"
    """What cleanlab scores labels by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multiplier > 0:
            raise ValueError(f"multiplier is {self.multiplier:g}; it must be positive, for example 1.5")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; at least 2 are needed, so that each row is left out once")
        if self.quality not in get_args(Quality):
            raise ValueError(f"quality is {self.quality!r}; use one of {', '.join(get_args(Quality))}")

    def __call__(self, learner: Learner) -> Learner:
        """Returns the filtered learner.

        Raises:
            MissingExtra: cleanlab is not installed.
        """
        extra("cleanlab", "cleanlab", "confident-learning")  # now, not after the folds are trained
        return super().__call__(learner)

    def evidence(
        self, learner: Learner, datasets: Sequence[ImageData], seeds: Sequence[int], *, trusted: ImageData | None
    ) -> list[Evidence]:
        """Trains one model without each fold of each data set, and asks it about that fold.

        Raises:
            ValueError: If there are fewer rows than folds.
        """
        extra("cleanlab", "cleanlab", "confident-learning")
        folds = [self._folds(data, seed) for data, seed in zip(datasets, seeds, strict=True)]
        found: list[list[Evidence]] = [[] for _ in datasets]
        for number in range(self.folds):  # one fit each: member i keeps its architecture where recipes are mixed
            rest = [data.select(data.ids[own != number]) for data, own in zip(datasets, folds, strict=True)]
            models = learner.fit(rest, [derive(seed, "fold", number) for seed in seeds], trusted=trusted).models
            for parts, model, data, own in zip(found, models, datasets, folds, strict=True):
                parts.append(evidence_of(model, data.select(data.ids[own == number])))
        return [_joined(parts, own) for parts, own in zip(found, folds, strict=True)]

    def _folds(self, data: ImageData, seed: int) -> Tensor:
        """The fold of each row, [n]; folds differ by one row at most."""
        if len(data) < self.folds:
            raise ValueError(f"{len(data)} rows cannot be split into {self.folds} folds; use fewer folds")
        order = torch.randperm(len(data), generator=stream(seed, "folds"))
        folds = torch.empty(len(data), dtype=torch.int64)
        folds[order] = torch.arange(len(data)) % self.folds
        return folds.to(data.device)

    def judge(self, evidence: Evidence) -> Judgement:
        """Scores each label and marks the worst, but never all of a class."""
        rank = extra("cleanlab.rank", "cleanlab", "confident-learning")
        shares = evidence.logits.double().softmax(1).cpu().numpy()
        labels = evidence.labels.cpu()
        quality = rank.get_label_quality_scores(labels.numpy(), shares, method=self.quality)
        scores = 1 - torch.from_numpy(quality).double()
        count = math.ceil(round(self.multiplier * self.contamination * len(labels), 6))
        marked = torch.zeros(len(labels), dtype=torch.bool)
        marked[scores.argsort(descending=True, stable=True)[:count]] = True
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            marked[members[scores[members].argmin()]] = False
        device = evidence.labels.device
        return Judgement(scores.to(device), marked.to(device))


def _joined(parts: Sequence[Evidence], folds: Tensor) -> Evidence:
    """Puts the evidence of one fold after the other back into the order of the rows."""
    back = folds.argsort(stable=True).argsort()
    return Evidence(*(torch.cat(pieces)[back] for pieces in zip(*parts, strict=True)))
