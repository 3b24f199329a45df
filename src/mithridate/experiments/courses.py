"""Courses: clean trainings kept epoch by epoch, for attacks that follow surrogates through training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.schema import SCHEMA, to_json
from mithridate.core.states import Stage, run_seed
from mithridate.core.training import Recipe
from mithridate.experiments.files import digest, making, read_json, write_json

if TYPE_CHECKING:
    from mithridate.experiments.store import Store

EPOCHS = "epochs.safetensors"
LARGEST = 256 * 2**20
"""Bytes of a course that goes to disk; a larger one is trained again by everyone who follows it."""


class Course(NamedTuple):
    """One training: a recipe, the data, a seed. Its identity is what a results folder says it is."""

    folder: Path
    recipe: Recipe
    data: ImageData
    fingerprint: str
    seed: int

    def fits_on_disk(self) -> bool:
        """Tells whether the weights of all epochs are few enough to be kept."""
        module = self.recipe.module(self.data, self.seed)
        return max(1, self.recipe.epochs) * sum(value.nbytes for value in module.state_dict().values()) <= LARGEST

    def keep(self, *, wait: bool = True) -> None:
        """Trains and stores it, unless it is there or (without `wait`) another process is at it."""
        with making(self.folder, "course.json", wait=wait) as partial:
            if partial is None:
                return
            rates: list[float] = []
            weights: dict[str, Tensor] = {}
            stages = self.recipe.follow([self.data], [self.seed])[0]
            for epoch, stage in enumerate(itertools.islice(stages, max(1, self.recipe.epochs))):
                rates.append(stage.rate)
                weights |= {f"{epoch}/{name}": value.cpu().clone() for name, value in _state(stage.module).items()}
            save_file({name: value.contiguous() for name, value in weights.items()}, partial / EPOCHS)
            notes = {
                "schema": SCHEMA,
                "recipe": to_json(self.recipe),
                "data": self.fingerprint,
                "seed": self.seed,
                "rates": rates,
                "weights": digest(partial / EPOCHS),
            }
            write_json(partial / "course.json", notes)

    def stages(self) -> Iterator[Stage]:
        """Reads the model at the start of each epoch.

        Raises:
            ValueError: The stored files are damaged.
        """
        notes = read_json(self.folder / "course.json")
        if notes["weights"] != digest(self.folder / EPOCHS):
            raise ValueError(f"{self.folder} is damaged; delete it, and the next run trains it again")
        module = self.recipe.start(self.data, self.seed).module
        own = _state(module)
        with safe_open(self.folder / EPOCHS, framework="pt") as stored:
            for epoch, rate in enumerate(notes["rates"]):
                for name, value in own.items():
                    value.copy_(stored.get_tensor(f"{epoch}/{name}"))
                yield Stage(module, rate)


def course(store: Store, recipe: Recipe, data: ImageData, seed: int, run: int = 0) -> Course:
    """Returns one run of a training that is followed, by its identity in a results folder."""
    fingerprint, seed = data.fingerprint(), run_seed(seed, run)
    name = store.identity({"course": recipe, "data": fingerprint, "seed": seed})
    return Course(store.course_folder(name), recipe, data, fingerprint, seed)


def stages(store: Store, recipe: Recipe, data: ImageData, seed: int) -> Iterator[Stage]:
    """Follows a training from epoch to epoch, then again from new weights, endlessly; each run is trained or read."""
    for run in itertools.count():
        found = course(store, recipe, data, seed, run)
        found.keep()
        yield from found.stages()


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}
