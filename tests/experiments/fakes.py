"""Small stand-ins for the tests of trials and studies: attacks, models and functions that workers can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.sources import Digits
from mithridate.core.training import Fitted, Learner, Recipe, Watch, predictor_of
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel

LINEAR = "tests.experiments.fakes:linear"


class Linear(nn.Module):
    """A linear model that counts its forward passes, over all copies."""

    calls: ClassVar[int] = 0

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        Linear.calls += 1
        return self.last(images.flatten(1))


def linear(classes: int) -> nn.Module:
    """A model by name."""
    return Linear(classes)


def recipe(**settings: Any) -> Recipe:
    """A recipe that trains in milliseconds."""
    return replace(Recipe(model=LINEAR, epochs=2, batch_size=50, transforms=()), **settings)


def digits(count: int = 100) -> ImageData:
    """The first training images of digits."""
    return Digits(train=count).load()[0]


@dataclass(frozen=True, kw_only=True)
class Brighten(Attack):
    """Adds 5/255 to the chosen rows, and writes down what it was given."""

    log: ClassVar[list[dict[str, Any]]] = []
    models: int = 1
    """Surrogates it asks for."""
    by: int = 5
    """Change of each pixel, in 1/255; more than 8 oversteps the threat model below."""
    fails: str = ""
    """Message of an error to raise."""
    dies: bool = False
    """Whether to end the process."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        if self.fails:
            raise RuntimeError(self.fails)
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        fitted = surrogate.fit([task.train] * self.models, range(self.models))
        Brighten.log.append({"fitted": fitted, "recipe": surrogate.recipe, "seed": seed, "task": task})
        rows = task.choose(seed)
        return Poison(
            rows, (task.train.pixels(rows).int() + self.by).clamp(0, 255).to(torch.uint8), notes={"by": self.by}
        )


@dataclass(frozen=True)
class Plain(Learner):
    """A learner with code of its own, which writes down how it was called."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    @property
    def recipe(self) -> Recipe | None:
        return None

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        Plain.calls.append((len(datasets), list(seeds), trusted, watch))
        models = Ensemble([linear(10) for _ in seeds])
        return Fitted(models, predictor_of(models), {}, [None] * len(seeds))


THREAT = ThreatModel(budget=0.05, ball=Linf(eps=8 / 255))


def trial(**settings: Any) -> Trial:
    """A trial that takes milliseconds."""
    usual = {"data": Digits(train=100), "threat": THREAT, "attack": Brighten(), "learner": recipe()}
    return Trial(**{**usual, **settings})


def noise_trial(seed: int) -> Trial:
    """A trial whose attack other processes know by name."""
    return trial(attack=RandomNoise(), seed=seed)


def definition() -> list[Trial]:
    """A study definition."""
    return [noise_trial(seed) for seed in range(2)]


def no_definition() -> list[int]:
    """Not a study definition."""
    return [1]


def square(number: int) -> int:
    """A task for a worker."""
    return number * number


def awkward(number: int) -> Any:
    """A task that goes wrong in its own way for each number."""
    if number == 1:
        os._exit(7)
    if number == 2:
        raise ValueError("two is wrong")
    if number == 3:
        raise Unpicklable(1, 2)
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def killed_once(mark: Path) -> str:
    """A task whose worker is killed, the first time."""
    if not mark.exists():
        mark.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.name


class Unpicklable(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
