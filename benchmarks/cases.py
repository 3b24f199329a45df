"""What several benchmarks begin with: synthetic data, a task, a surrogate that is trained already."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks.measure import Setup
from benchmarks.reference.pixels import CLASSES, ordinary, synthetic
from mithridate.core.data import ImageData
from mithridate.core.states import Stage
from mithridate.core.training import Fitted, Learner, Recipe, Watch
from mithridate.poisoning.threat import Task, ThreatModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Ready(Learner):
    """A learner whose models are trained already, so that crafting alone is measured."""

    inner: Recipe
    fitted: Fitted

    @property
    def recipe(self) -> Recipe:
        return self.inner

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        return self.fitted

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Every member stays at one stage."""
        stage = Stage(self.fitted.models[0], self.inner.learning_rate)
        return [itertools.repeat(stage) for _ in seeds]


def data_of(setup: Setup, count: int, seed: int = 0) -> ImageData:
    """Synthetic images on the device of the benchmark."""
    images, labels = (tensor.to(setup.device) for tensor in synthetic(count, seed=seed))
    return ImageData(images, labels, tuple(f"class {number}" for number in range(CLASSES)))


def prepared(setup: Setup, model: str, threat: ThreatModel, train: int, epochs: int) -> tuple[Task, Ready]:
    """A task on so many training images, and a surrogate trained on a few of them for so many epochs."""
    data = data_of(setup, train + 50)
    task = threat.draw(data.select(data.ids[:train]), data.select(data.ids[train:]), seed=0)
    recipe = Recipe(model=setup.spec(model), epochs=epochs, batch_size=125)
    known = data.select(data.ids[: 30 if setup.small else 250])
    return task, Ready(inner=recipe, fitted=recipe.fit([known], [0]))


def in_ordinary_layers(surrogate: Ready) -> nn.Sequential:
    """The surrogate as one would write it: separate convolutions and BatchNorms, NCHW, the same weights."""
    return _with_its_own_normalize(surrogate, ordinary(_network(surrogate)))


def in_folding_layers(surrogate: Ready) -> nn.Sequential:
    """A copy of the surrogate in mithridate's layers, which fold BatchNorm at every pass in eval mode."""
    return _with_its_own_normalize(surrogate, copy.deepcopy(_network(surrogate)))


def _network(surrogate: Ready) -> nn.Module:
    return surrogate.fitted.models[0].get_submodule("network")


def _with_its_own_normalize(surrogate: Ready, network: nn.Module) -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(surrogate.fitted.models[0].get_submodule("normalize")), network).eval()


def without_head(network: nn.Module) -> nn.Sequential:
    """A network of the two functions above without its last Linear: images to features."""
    normalize, body = network.children()
    return nn.Sequential(normalize, *list(body.children())[:-1]).eval()
