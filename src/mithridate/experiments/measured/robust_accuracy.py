"""RobustAccuracy: a recipe's model under one evasion attack, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mithridate.core.sources import DataSource, Digits
from mithridate.core.training import Recipe
from mithridate.evasion.attack import Evasion
from mithridate.evasion.robustness import robustness
from mithridate.experiments.evasions import drawn
from mithridate.experiments.measurements import Measurement, Value
from mithridate.experiments.store import Store, Stored


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy(Measurement):
    """Trains a model and attacks test images, which are the same for every seed.

    >>> from mithridate import Digits, FGSM
    >>> found = RobustAccuracy(data=Digits(train=100), recipe=Recipe(epochs=1), attack=FGSM(), images=50)
    >>> len(found.measure(Store("runs/example"), "cpu")["stands"])
    50
    """

    data: DataSource = Digits()
    """Training images, and the test images that are attacked."""
    recipe: Recipe
    """The model; one per seed."""
    attack: Evasion
    """What moves the images."""
    images: int | None = None
    """Test images, drawn once; None: all."""
    batch: int = 250
    """Images at a time."""

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        model = Stored(self.recipe, store).fit([data.train], [self.seed]).models[0].eval()
        found = robustness(
            model,
            drawn(data.test, self.images, seed=0),
            [self.attack],
            batch=self.batch,
            seed=self.seed,
            probe=False,
        )
        (judged,) = found.judged
        attacked = max(1, int(found.right.sum()))
        return {
            "right": found.right.tolist(),
            "stands": judged.stands.tolist(),
            "gradients_per_image": judged.gradients / attacked,
            "forwards_per_image": judged.forwards / attacked,
            "attack_seconds": round(judged.seconds, 3),
        }
