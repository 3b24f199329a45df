"""Defense: a learner made from a learner, and the two wrapping learners (filter, vote) that defences build."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.ensemble import features
from mithridate.core.memory import in_chunks
from mithridate.core.schema import Choice, name_of
from mithridate.core.training import EVALUATION_BATCH, Fitted, Learner, Recipe, Watch
from mithridate.poisoning.voting import Voting

Kind = Literal["transform", "gradient rule", "sampler", "row rule", "filter", "vote", "purification", "guard"]


class Defense(Choice, ABC):
    """Makes a learner out of a learner. Adding a file with a subclass to `poisoning/defenses/` adds the defence.

    Defences stack: each is given what the one before it made. Those that change the recipe come first, those that wrap
    come after them. A defence sees training data and seeds; never the test set, the targets or which rows are poisoned.
    """

    home: ClassVar[str] = "mithridate.poisoning.defenses"
    kind: ClassVar[Kind]
    """What it does; the first four change the recipe, the others wrap the learner."""

    @abstractmethod
    def __call__(self, learner: Learner) -> Learner:
        """Returns the defended learner.

        Raises:
            TypeError: If this defence cannot come after what made `learner`.
        """

    def seen_by_attacker(self, learner: Learner) -> Learner:
        """Returns what an adaptive attacker, who knows the defence, crafts through."""
        return self(learner)


def changed(learner: Learner, defense: Defense, **settings: Any) -> Recipe:
    """Returns the recipe with other settings, on behalf of a defence that changes recipes.

    Raises:
        TypeError: If the learner is not a plain recipe; names the right order.
    """
    if isinstance(learner, Recipe):
        return dataclasses.replace(learner, **settings)
    name = name_of(defense)
    if learner.recipe is None:
        raise TypeError(f"{name} changes the training recipe, but {name_of(learner)} trains with code of its own")
    raise TypeError(
        f"{name} changes the training recipe, so it comes before what wraps a learner ({name_of(learner)}); "
        f"put {name} first in the list of defences"
    )


Suspicion = Callable[[Tensor, Tensor], Tensor]
"""Features [n, D] and labels [n] of the training rows -> [n] bool: which rows to drop."""


@dataclasses.dataclass(frozen=True)
class Filtered(Learner):
    """Fit, mark suspicious rows by their features, drop them, fit again.

    Features come from the first fit, in eval mode and without augmentation. The second fit has the same seed: the two
    differ in their data alone. `watch` sees the second fit. What a recipe proves does not survive the first fit, which
    sees every row, so `guarantees` stays empty.
    """

    learner: Learner
    """Trains both times."""
    suspicion: Suspicion
    """Says which rows to drop."""

    def __post_init__(self) -> None:
        if isinstance(self.learner, Voting):
            raise TypeError(
                "a filter looks at the features of one model per fit and cannot filter for a vote as a whole; "
                "put the filter before partition-vote: each part is then filtered on its own"
            )

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the learner inside."""
        return self.learner.recipe

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains twice; `kept` holds the rows of the second fit.

        Raises:
            ValueError: If the model has no final Linear to take features from.
        """
        first = self.learner.fit(datasets, seeds, trusted=trusted)
        kept = [self._trusted_rows(model, data) for model, data in zip(first.models, datasets, strict=True)]
        filtered = [data.select(rows) for data, rows in zip(datasets, kept, strict=True)]
        second = self.learner.fit(filtered, seeds, trusted=trusted, watch=watch)
        inner = [rows if later is None else later for rows, later in zip(kept, second.kept, strict=True)]
        return second._replace(kept=inner, guarantees=())

    def _trusted_rows(self, model: nn.Module, data: ImageData) -> Tensor:
        """Row ids that are not suspicious, in the order of the data."""
        with torch.no_grad():
            found = in_chunks(lambda rows: features(model, data.floats(rows)), data.ids, EVALUATION_BATCH)
        return data.ids[~self.suspicion(found, data.labels_of(data.ids)).to(data.ids.device)]
