"""Fine-tuning: continue training on clean rows alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.training import Learner, Recipe
from mithridate.poisoning.defense import Defense, Kind, Purified


@dataclass(frozen=True, kw_only=True)
class FineTuning(Defense):
    """Continue training on trusted rows at a small learning rate, so that the model forgets what only poison taught it.

    Batch size, transforms, schedule and what is trained (all weights, or the head) are those of the recipe; where the
    user's own code trains, those of a plain `Recipe()` without transforms. An adaptive attacker has no trusted rows and
    crafts through the learner as it is: to continue training a clean surrogate on clean rows would change little.

    Reference: Liu, Dolan-Gavitt, Garg. "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks".
    RAID 2018. arXiv 1805.12185 (fine-tuning, the defence that theirs is compared with). Deviations: SGD with the
    recipe's momentum, weight decay and schedule, for a fixed number of epochs.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> defended = FineTuning(epochs=1)(Recipe(model="mlp", epochs=1))
    >>> len(defended.fit([train], seeds=[0], trusted=train).models)
    1
    """

    kind: ClassVar[Kind] = "purification"
    needs_trusted: ClassVar[bool] = True

    epochs: int = 50
    """Passes over the trusted rows."""
    learning_rate: float = 0.01
    """Largest learning rate."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; at least one pass over the trusted rows is needed")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")

    def __call__(self, learner: Learner) -> Learner:
        return Purified(learner, self.tuned, needs_trusted=True)

    def seen_by_attacker(self, learner: Learner) -> Learner:
        return learner

    def tuned(
        self, model: nn.Module, recipe: Recipe | None, data: ImageData, trusted: ImageData | None, seed: int
    ) -> nn.Module:
        """Continues to train `model` in place; returns it in eval mode.

        Raises:
            ValueError: There are no trusted rows.
        """
        if trusted is None:
            raise ValueError("fine-tuning works on clean rows; set trusted= of the trial, for example trusted=100")
        own = Recipe(transforms=(), precision="fp32") if recipe is None else recipe
        start = model if own.trainable == "all" else _Still(model)
        state = replace(
            own,
            model=lambda classes: start,
            normalize="none",  # the model holds its own
            start_from=None,
            trainable="all",  # what is frozen stays so
            row_rule=None,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
        ).start(trusted, seed)
        for _ in range(self.epochs):
            state.run_epoch()
        return model.eval()


class _Still(nn.Module):
    """Keeps a module in eval mode while a new head is trained on it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def train(self, mode: bool = True) -> _Still:
        """Does nothing."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, C, H, W] to logits [B, K]."""
        return self.module(images)
