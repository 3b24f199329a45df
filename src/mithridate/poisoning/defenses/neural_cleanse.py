"""Neural Cleanse: reverse the trigger of each class, and undo the one that is suspiciously small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.ensemble import features
from mithridate.core.memory import in_chunks
from mithridate.core.models import last_linear
from mithridate.core.pixels import to_bytes
from mithridate.core.seeds import derive, stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Learner, Recipe
from mithridate.poisoning.defense import Defense, Kind, Purified, evidence_of
from mithridate.poisoning.defenses.fine_tuning import FineTuning
from mithridate.poisoning.reversal import Reversed, anomaly_index, reversed_triggers

HARMLESS = 0.1
"""Success of a reversed trigger below which pruning stops."""
STAMPED = 0.2
"""Share of the trusted rows that carry a reversed trigger while the model unlearns it, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Defense):
    """Search the smallest trigger for each class; where one is an outlier, make the model forget it.

    A backdoor is a shortcut from every class to one: the trigger that a search finds for that class is much smaller
    than the others. Classes whose anomaly index exceeds `threshold` are flagged. To unlearn, training continues on
    trusted rows some of which carry the reversed trigger and their true label. To prune, the inputs of the last Linear
    that the trigger excites most are switched off, until it no longer works or accuracy falls. Where nothing is flagged
    the weights stay as they are. An adaptive attacker has no trusted rows and crafts through the learner as it is.

    Reference: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao. "Neural Cleanse: Identifying and Mitigating Backdoor Attacks
    in Neural Networks". IEEE S&P 2019, sections 4 to 6. Deviations: those of `reversed_triggers`; unlearning is as long
    as `fine-tuning` is, since trusted rows are few (the paper has a tenth of the training set, for one epoch); pruning
    looks at the input of the last Linear, as `fine-pruning` does.

    >>> NeuralCleanse().repair
    'unlearn'
    """

    kind: ClassVar[Kind] = "purification"
    needs_trusted: ClassVar[bool] = True

    repair: Literal["unlearn", "prune"] = "unlearn"
    """What is done about a trigger that was found."""
    steps: int = 300
    """Steps of the search; a step costs a forward and a backward pass of 64 images for each class."""
    success: float = 0.99
    """Share of the images of other classes that a reversed trigger must turn, a fraction."""
    threshold: float = 2.0
    """Anomaly index above which a class is flagged."""
    epochs: int = 50
    """Passes over the trusted rows that unlearn."""
    learning_rate: float = 0.01
    """Largest learning rate of them."""
    drop: float = 0.04
    """Accuracy on the trusted rows that pruning may cost, a fraction."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a search needs at least 1")
        if not 0 < self.success <= 1:
            raise ValueError(f"success is {self.success:g}; it is a fraction of the images, so use 0.99 for 99 %")
        if not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold:g}; it must be positive: 2 flags what is rarely chance")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop:g}; it is a fraction of the accuracy, so use 0.04 for four points")
        self._tuning()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return Purified(learner, self.cleansed, needs_trusted=True)

    def seen_by_attacker(self, learner: Learner) -> Learner:
        return learner

    def cleansed(
        self, model: nn.Module, recipe: Recipe | None, data: ImageData, trusted: ImageData | None, seed: int
    ) -> nn.Module:
        """Repairs `model` in place where a class is flagged; returns it in eval mode.

        Raises:
            ValueError: There are no trusted rows, or the model has no final Linear to prune.
        """
        if trusted is None:
            raise ValueError("neural-cleanse works on clean rows; set trusted= of the trial, for example trusted=100")
        found = reversed_triggers(
            model, trusted, steps=self.steps, success=self.success, seed=derive(seed, "neural cleanse")
        )
        flagged = self.flagged(found.sizes)
        if not flagged:
            return model.eval()
        if self.repair == "prune":
            for label in flagged:
                self._prune(model, trusted, found, label)
            return model.eval()
        return self._tuning().tuned(model, recipe, data, stamped(trusted, found, flagged, seed), seed)

    def flagged(self, sizes: Tensor) -> list[int]:
        """Returns the classes whose trigger is suspiciously small, given the sizes [K] of all, the oddest first."""
        index = anomaly_index(sizes)
        order = index.argsort(descending=True, stable=True).tolist()
        return [label for label in order if float(index[label]) > self.threshold]

    def _prune(self, model: nn.Module, trusted: ImageData, found: Reversed, label: int) -> None:
        head, seen = last_linear(model), evidence_of(model, trusted)
        with torch.no_grad():
            triggered = in_chunks(
                lambda rows: features(model, found.put(trusted.floats(rows), label)), trusted.ids, EVALUATION_BATCH
            )
            off = excited_units(seen.features, triggered, seen.labels, head, label, self.drop)
            head.weight[:, off] = 0

    def _tuning(self) -> FineTuning:
        return FineTuning(epochs=self.epochs, learning_rate=self.learning_rate)


def stamped(clean: ImageData, found: Reversed, labels: Sequence[int], seed: int) -> ImageData:
    """Returns clean rows of which a share carries the reversed triggers of these classes, with true labels throughout.

    A fifth for each class; less where there are so many classes that no row would stay as it is.
    """
    count = max(1, int(min(STAMPED, 1 / (len(labels) + 1)) * len(clean)))
    order = clean.ids[torch.randperm(len(clean), generator=stream(seed, "stamped")).to(clean.device)]
    parts = [part for part in order.split(count) if len(part)][: len(labels)]
    pairs = zip(parts, labels, strict=False)
    images = torch.cat([to_bytes(found.put(clean.floats(rows), label)) for rows, label in pairs])
    return clean.replace(torch.cat(parts), images)


def excited_units(clean: Tensor, triggered: Tensor, labels: Tensor, head: nn.Linear, label: int, drop: float) -> Tensor:
    """Returns the units to switch off, [k] int64: those that a trigger excites most, until it hardly works.

    Args:
        clean: [n, D], what the units of clean rows put out.
        triggered: [n, D], what they put out where the rows carry the trigger.
        labels: [n] int64, true classes.
        head: Linear from D units to K logits.
        label: Class that the trigger calls for.
        drop: Accuracy on the clean rows that may be lost, a fraction.

    >>> head = nn.Linear(3, 2, bias=False)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0]]))
    >>> rows = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    >>> marked = rows + torch.tensor([0.1, 0.0, 5.0])
    >>> excited_units(rows, marked, torch.tensor([0, 1]), head, label=0, drop=0.0).tolist()
    [2]
    """
    order = (triggered - clean).mean(0).argsort(descending=True, stable=True)
    others = labels != label
    with torch.no_grad():
        plain, marked = head(clean).double(), head(triggered).double()
        least = (plain.argmax(1) == labels).double().mean() - drop
        for count, unit in enumerate(order.tolist()):
            if (marked.argmax(1) == label)[others].double().mean() <= HARMLESS:
                return order[:count]
            column = head.weight[:, unit].double()
            plain -= clean[:, unit, None].double() * column
            marked -= triggered[:, unit, None].double() * column
            if (plain.argmax(1) == labels).double().mean() < least - 1e-9:
                return order[:count]
    return order[: len(order) - 1]  # without any unit the answer would be one class, whatever the image
