"""Fine-pruning: switch off what clean images leave idle, then continue training on clean rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.models import last_linear
from mithridate.core.training import Learner, Recipe
from mithridate.poisoning.defense import Defense, Kind, Purified, evidence_of
from mithridate.poisoning.defenses.fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class FinePruning(Defense):
    """Switch off the units that trusted rows excite least, as long as accuracy on them holds, then fine-tune.

    A backdoor likes units that clean images leave idle; without them, fine-tuning cannot be undone by what is asleep.
    The units are the inputs of the last Linear, in order of their mean size on the trusted rows. With global pooling
    before it, as in most built-in networks, these are the channels that come out of the convolutions: one that the
    Linear does not see is off, whatever normalisation does to it. What was switched off stays off. An adaptive attacker
    has no trusted rows and crafts through the learner as it is.

    Reference: Liu, Dolan-Gavitt, Garg. "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks".
    RAID 2018. arXiv 1805.12185, section 3. Deviations: the paper prunes the last convolution; where no global pooling
    follows the units are single features of its output, and where other Linears follow (`lenet`) those before the last
    one. Fine-tuning is that of `fine-tuning`.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> defended = FinePruning(epochs=1)(Recipe(model="convnet:width=4", epochs=1))
    >>> len(defended.fit([train], seeds=[0], trusted=train).models)
    1
    """

    kind: ClassVar[Kind] = "purification"
    needs_trusted: ClassVar[bool] = True

    drop: float = 0.04
    """Accuracy on the trusted rows that may be lost by switching off, a fraction."""
    epochs: int = 50
    """Passes over the trusted rows afterwards."""
    learning_rate: float = 0.01
    """Largest learning rate of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is {self.drop:g}; it is a fraction of the accuracy, so use 0.04 for four points")
        self._tuning()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        return Purified(learner, self.pruned, needs_trusted=True)

    def seen_by_attacker(self, learner: Learner) -> Learner:
        return learner

    def pruned(
        self, model: nn.Module, recipe: Recipe | None, data: ImageData, trusted: ImageData | None, seed: int
    ) -> nn.Module:
        """Prunes `model` in place and continues to train it; returns it in eval mode.

        Raises:
            ValueError: There are no trusted rows, or the model has no Conv2d before a final Linear.
        """
        if trusted is None:
            raise ValueError("fine-pruning works on clean rows; set trusted= of the trial, for example trusted=100")
        head = last_linear(model)
        before = itertools.takewhile(lambda part: part is not head, model.modules())
        if not any(isinstance(part, nn.Conv2d) for part in before):
            raise ValueError(
                f"fine-pruning switches off what convolutions put out, and {type(model).__name__} has no Conv2d before "
                "its last Linear; use fine-tuning, or a convolutional model such as convnet"
            )
        seen = evidence_of(model, trusted)
        idle = idle_units(seen.features, seen.labels, head, self.drop)
        off = torch.zeros(head.in_features, dtype=torch.bool, device=head.weight.device)
        off[idle.to(off.device)] = True
        # hides the units, not only their weights: a gradient rule may add noise to every weight
        handle = head.register_forward_pre_hook(lambda _, given: (given[0].masked_fill(off, 0), *given[1:]))
        try:
            self._tuning().tuned(model, recipe, data, trusted, seed)
        finally:
            handle.remove()
        with torch.no_grad():
            head.weight[:, idle] = 0
        return model

    def _tuning(self) -> FineTuning:
        return FineTuning(epochs=self.epochs, learning_rate=self.learning_rate)


def idle_units(features: Tensor, labels: Tensor, head: nn.Linear, drop: float) -> Tensor:
    """Returns the units to switch off, [k] int64: those of smallest mean activation, while accuracy holds.

    Args:
        features: [n, D], what the units of trusted rows put out.
        labels: [n] int64.
        head: Linear from D units to K logits.
        drop: Accuracy that may be lost, a fraction.

    >>> head = nn.Linear(3, 2, bias=False)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]))
    >>> idle_units(
    ...     torch.tensor([[9.0, 0.0, 0.1], [0.0, 9.0, 0.0]]), torch.tensor([0, 1]), head, 0.0
    ... ).tolist()
    [2]
    """
    order = features.abs().mean(0).argsort(stable=True)
    with torch.no_grad():
        logits = head(features).double()
        least = (logits.argmax(1) == labels).double().mean() - drop
        for count, unit in enumerate(order.tolist()):
            logits -= features[:, unit, None].double() * head.weight[:, unit].double()
            if (logits.argmax(1) == labels).double().mean() < least - 1e-9:
                return order[:count]
    return order[: len(order) - 1]  # without any unit the answer would be one class, whatever the image
