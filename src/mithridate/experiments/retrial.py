"""Whether poison works as it was stored: fresh models trained on it and on clean data, asked about its targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mithridate.core.balls import to_floats
from mithridate.core.data import ImageData
from mithridate.core.seeds import derive
from mithridate.core.training import Fitted, Learner
from mithridate.experiments.protection import Check, check
from mithridate.experiments.rates import Rate, rate
from mithridate.experiments.statistics import Mean, difference, mean
from mithridate.experiments.words import share_text, signed, span
from mithridate.poisoning.exchange.checks import pasted
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.task import predict


@dataclass(frozen=True)
class Retrial:
    """What models make of the targets of a parcel."""

    poisoned: Rate
    """How many targets get the intended class from models trained on the poison."""
    clean: Rate
    """The same of models trained on clean data."""
    accuracy: Mean
    """Of the former on clean test images."""
    cost: Mean
    """Accuracy of the latter minus that."""
    models: int

    def __str__(self) -> str:
        ends = f" ({span(self.cost, 100, 1)})" if self.cost.low is not None else ""
        lost = f"{signed(100 * self.cost.value).lstrip('+')} points{ends} less than clean models"
        return "\n".join(
            [
                f"trained again: {self.models} models on the poison as stored, {self.models} on clean data",
                f"  targets that get the intended class: {self.poisoned}; from clean models {self.clean}",
                f"  accuracy on clean test images: {share_text(self.accuracy)}, {lost}",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        rates = {name: vars(getattr(self, name)) for name in ("poisoned", "clean")}
        means = {name: vars(getattr(self, name)) for name in ("accuracy", "cost")}
        return rates | means | {"models": self.models}


def retrain(parcel: Parcel, data: Reference, learner: Learner, *, models: int = 8, seed: int = 0) -> Retrial | Check:
    """Trains models on the stored bytes of a parcel and on clean data.

    Args:
        parcel: With its rows; where it names targets, with the class that they should get.
        data: What its rows are of.
        learner: How the models are trained.
        models: Of each kind.
        seed: Of their seeds.

    Returns:
        What the models make of the targets; where a parcel names none, how accurate they are.

    Raises:
        ValueError: If the parcel names targets, but not the class that they should get.
    """
    poisoned = parcel.poison().apply(data.train)
    if parcel.target_rows is None and parcel.target_images is None:
        return check(learner, data.train, poisoned, data.test, models=models, seed=seed)
    if parcel.intended is None:
        raise ValueError("the format does not say which class the targets should get, so success cannot be counted")
    seeds = [derive(seed, "retrial", i) for i in range(models)]
    fits = [learner.fit([train] * models, seeds) for train in (poisoned, data.train)]
    images = _targets(parcel, data)
    hits = [_hits(fitted, images, parcel.intended) for fitted in fits]
    accuracies = [_accuracies(fitted, data.test) for fitted in fits]
    return Retrial(
        poisoned=rate(hits[0]),
        clean=rate(hits[1]),
        accuracy=mean(accuracies[0]),
        cost=difference(accuracies[1], accuracies[0]),
        models=models,
    )


def _targets(parcel: Parcel, data: Reference) -> Tensor:
    """Images [T, C, H, W] in [0, 1] that models are asked about, with the trigger on them where there is one."""
    if parcel.target_images is not None:
        images = parcel.target_images
    else:
        assert parcel.target_rows is not None
        images = data.test.pixels(parcel.target_rows.to(data.test.device)).cpu()
    return to_floats(pasted(images, parcel))


def _hits(fitted: Fitted, images: Tensor, intended: Tensor) -> list[list[int]]:
    """Whether each target gets its intended class, [T][M]."""
    with torch.no_grad():
        answer = fitted.predictor(images.to(next(fitted.models[0].parameters()).device))
    right = (answer.scores.argmax(2).cpu() == intended) & ~answer.abstained.cpu()
    return right.T.int().tolist()


def _accuracies(fitted: Fitted, test: ImageData) -> list[float]:
    answer = predict(fitted.predictor, test, test.ids)
    right = (answer.scores.argmax(2) == test.labels_of(test.ids).cpu()) & ~answer.abstained
    return right.float().mean(1).tolist()
