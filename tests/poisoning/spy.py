"""A learner that writes down what wrappers ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mithridate.core.data import ImageData
from mithridate.core.guarantees import Guarantee
from mithridate.core.training import Fitted, Learner, Recipe, Watch


@dataclass(frozen=True)
class Spy(Learner):
    """A recipe that writes down what it was asked, claims a guarantee, and drops its first row from `kept`."""

    inner: Recipe
    asked: list
    keeps: bool = False

    @property
    def recipe(self) -> Recipe | None:
        return self.inner

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        self.asked.append(([data.ids.tolist() for data in datasets], list(seeds), trusted, watch))
        fitted = self.inner.fit(datasets, seeds, watch=watch)
        kept = [data.ids[1:] for data in datasets] if self.keeps else fitted.kept
        return fitted._replace(guarantees=(Guarantee(kind="dp", statement="private"),), kept=kept)
