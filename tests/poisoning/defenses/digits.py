"""One small experiment that effect tests share: backdoored digits, plain and defended victims of one poison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Learner, Recipe
from mithridate.experiments.trial import hold_out
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.task import predict


@dataclass
class Outcomes:
    """Per seed: shares of the triggered and of the clean test images."""

    success: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)
    """Triggered images that were refused."""
    false_alarms: list[float] = field(default_factory=list)
    """Clean images that were refused."""


def backdoored(
    defenses: Sequence[Callable[[Learner], Learner]], seeds: int, *, poisons: int = 20, trusted: int = 0
) -> list[Outcomes]:
    """Puts a trigger on `poisons` digits and gives them the intended label, then fits each defended learner on them."""
    data, test = Digits().load()
    train, clean = hold_out(data, trusted, 0)
    recipe = Recipe(epochs=15, batch_size=64, transforms=(), precision="fp32")
    threat = replace(BadNets.threat, budget=poisons / len(train))
    found = [Outcomes() for _ in defenses]
    for seed in range(seeds):
        task = threat.draw(train, test, seed)
        poison = BadNets().craft(task, recipe, seed)
        for defense, outcomes in zip(defenses, found, strict=True):
            fitted = defense(recipe).fit([poison.apply(train)], [seed], trusted=clean)
            outcome = task.outcome(fitted, poison)
            for name in ("success", "accuracy"):
                measured = outcome[name]
                assert measured is not None
                getattr(outcomes, name).append(float(measured.float().mean()))
            refused = outcome["abstained"]
            assert refused is not None
            outcomes.detected.append(float(refused.float().mean()))
            outcomes.false_alarms.append(float(predict(fitted.predictor, test, test.ids).abstained.float().mean()))
    return found


def robustness(learner: Learner, change: BatchTransform, seed: int) -> tuple[float, float]:
    """Returns the accuracy of a learner's model on clean test digits and on changed ones."""
    train, test = Digits().load()
    model = learner.fit([train], [seed]).models[0]
    labels = test.labels_of(test.ids)
    clean = Batch(test.floats(test.ids), F.one_hot(labels, 10).float(), test.ids, 1.0)
    moved = change(clean, model, stream(seed, "change"))
    with torch.no_grad():
        plain, changed = (float((model(b.images).argmax(1) == labels).float().mean()) for b in (clean, moved))
    return plain, changed
