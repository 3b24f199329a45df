"""Whether a protected copy does what it is for: models trained on it and on the originals, tested on clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mithridate.core.data import ImageData
from mithridate.core.seeds import derive
from mithridate.core.training import Learner
from mithridate.experiments.statistics import Mean, difference, higher, mean
from mithridate.experiments.words import p_text, share_text, span
from mithridate.poisoning.task import Curve


@dataclass(frozen=True)
class Check:
    """Accuracy of models trained on clean and on protected data."""

    clean: Mean
    protected: Mean
    best: Mean
    """Of those trained on protected data after the epoch that was best for them."""
    lost: Mean
    """Clean minus protected, with Welch's interval."""
    p: float
    """Of Welch's one-sided test that training on the copy is worse."""
    train: int
    test: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        size = f"{self.shape[2]}x{self.shape[1]}"
        lines = [f"check: {self.clean.n} models each, {self.train:,} images of {size}, {self.test:,} clean test images"]
        kinds = (("clean", self.clean), ("protected", self.protected), ("protected, best epoch", self.best))
        for name, found in kinds:
            lines.append(f"  trained on {name}: accuracy {share_text(found)}")
        ends = f", {span(self.lost, 100, 1)}" if self.lost.low is not None else ""
        lines.append(f"  lost: {100 * self.lost.value:.1f} points{ends}; Welch's test, one-sided: {p_text(self.p)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        numbers = {name: _plain(getattr(self, name)) for name in ("clean", "protected", "best", "lost")}
        return numbers | {"p": self.p, "train": self.train, "test": self.test, "shape": list(self.shape)}


def _plain(found: Mean) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def check(
    learner: Learner, clean: ImageData, protected: ImageData, test: ImageData, *, models: int = 3, seed: int = 0
) -> Check:
    """Trains models on both and compares them; none of them was a surrogate.

    Args:
        learner: How they are trained.
        clean: Training images as they were.
        protected: The same rows as they are published.
        test: Clean images that are in neither.
        models: Of each kind.
        seed: Of their seeds.
    """
    kept, _ = _accuracies(learner, clean, test, models, seed)
    left, best = _accuracies(learner, protected, test, models, seed)
    return Check(
        clean=mean(kept),
        protected=mean(left),
        best=mean(best),
        lost=difference(kept, left),
        p=higher(kept, left).p,
        train=len(clean),
        test=len(test),
        shape=clean.shape,
    )


def _accuracies(
    learner: Learner, data: ImageData, test: ImageData, models: int, seed: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Accuracy of each model at the end, and after its best epoch."""
    curve = Curve(test)
    learner.fit([data] * models, [derive(seed, "check", i) for i in range(models)], watch=curve)
    table = curve.table(models)
    assert table is not None
    return table[:, -1].tolist(), table.amax(1).tolist()
