"""Truth or backpropaganda: four beliefs about the loss of networks, measured.

    mithridate study studies.truth_or_backpropaganda:small
    mithridate study studies.truth_or_backpropaganda:medium
    mithridate study studies.truth_or_backpropaganda:paper
    python -m studies.truth_statements studies/results/truth-digits studies/results/truth-cifar10

`small` is on digits, two minutes of two cores; `medium` on CIFAR-10, small, with `convnet` and `resnet18:width=8`,
three widths, three seeds, about two hours of one core; `paper` trains ResNet-18 on all of CIFAR-10 as published,
for a GPU. The script prints each statement of the paper beside what was measured. CIFAR-10 is expected as for
`studies.witches_brew`.

Reference: Goldblum, Geiping, Schwarzschild, Moeller, Goldstein. "Truth or Backpropaganda? An Empirical Investigation of
Deep Learning Theory". ICLR 2020. arXiv 1910.00359.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.core.transforms import Adversarial
from mithridate.evasion.robustness import robustness
from mithridate.experiments.evasions import drawn
from mithridate.experiments.measurements import Value
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.store import Store, Stored
from mithridate.landscape.bad_minima import (
    Bias,
    certify,
    continued,
    dead_share,
    embedded,
    linear_minimum,
    set_biases,
)
from mithridate.landscape.kernel import drift, tangent_kernel
from mithridate.landscape.losses import Loss
from mithridate.landscape.norms import pulled, weight_norm
from mithridate.landscape.rank import effective_rank, rank_max, rank_min, spectra, trained
from studies.witches_brew import cifar10

SEEDS = 3
STARTS: tuple[Bias, ...] = ("default", "zero", "low", "high", "equal", "variance")
FACTORS = (None, 0.0, 1.0, 1.25, 1.5, 2.0)
"""Norms that the weights are pulled to, in multiples of the one that the recipe ends at; None: the recipe as it is."""
STRENGTH = 5e-3
"""Of the pull: ten times the usual weight decay, because the norm must get there within a short training."""
SMALL_WIDTHS = {"mlp": (8, 32, 128), "convnet": (8, 16, 32)}
WIDTHS = {"mlp": (32, 128, 512), "convnet": (8, 16, 32), "resnet18": (4, 8, 16)}
"""Of `small` and `medium`."""


# --- measurements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbeddedMinimum(mi.Measurement):
    """A deep network at the minimum of a linear classifier, certified, and the same network trained freely."""

    data: mi.DataSource
    images: int = 500
    components: int = 6
    """Principal components of the images that the network sees: few enough that no plane separates the classes."""
    hidden: int = 2
    epochs: int = 200
    """Of free training, and of training that goes on from the minimum."""

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        rng = torch.Generator().manual_seed(self.seed)
        rows = data.train.ids[torch.randperm(len(data.train), generator=rng)[: self.images]]
        pixels = data.train.floats(rows).flatten(1).double()
        mean = pixels.mean(0)
        ways = torch.linalg.svd(pixels - mean, full_matrices=False)[2][: self.components].T
        scale = ((pixels - mean) @ ways).std(0)
        features, labels = (pixels - mean) @ ways / scale, data.train.labels_of(rows)
        unseen = (data.test.floats(data.test.ids).flatten(1).double() - mean) @ ways / scale
        minimum = linear_minimum(features, labels)
        deep = embedded(minimum, features, hidden=self.hidden)
        found = certify(deep, features, labels, seed=self.seed)
        rate = 0.01 / found.largest  # with momentum 0.9 a tenth of the longest step that is stable
        _, stayed = continued(deep, features, labels, epochs=self.epochs, learning_rate=rate, seed=self.seed)
        torch.manual_seed(self.seed)
        layers = [part for _ in range(self.hidden) for part in (nn.Linear(*[self.components] * 2), nn.ReLU())]
        fresh = nn.Sequential(*layers, nn.Linear(self.components, len(data.train.classes))).double()
        free, scores = continued(fresh, features, labels, epochs=self.epochs, learning_rate=0.02, seed=self.seed)
        tests = data.test.labels_of(data.test.ids)
        return {
            "certified": found.holds(),
            "loss_minus_shallow": found.loss - minimum.loss,
            "gradient_norm": found.gradient_norm,
            "smallest_eigenvalue": found.smallest,
            "largest_eigenvalue": found.largest,
            "least_rise": min(found.rises.values()),
            "loss": found.loss,
            "loss_after_training_on": stayed[-1].loss,
            "loss_trained_freely": scores[-1].loss,
            "test_accuracy": Loss(deep, unseen, tests).score().accuracy,
            "test_accuracy_trained_freely": Loss(free, unseen, tests).score().accuracy,
        }


@dataclass(frozen=True, kw_only=True)
class PoorStart(mi.Measurement):
    """Training from changed biases."""

    data: mi.DataSource
    recipe: mi.Recipe
    start: Bias

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        state = self.recipe.start(data.train, self.seed)
        set_biases(state.module, self.start, seed=self.seed)
        for _ in range(self.recipe.epochs):
            state.run_epoch()
        model = state.member().module
        rows = data.train.ids[:1000]
        loss = Loss(model, data.train.floats(rows), data.train.labels_of(rows))
        here = loss.score()
        return {
            "train_loss": here.loss,
            "train_accuracy": here.accuracy,
            "gradient_norm": float(loss.gradient().norm()),
            "dead_share": dead_share(model, loss.inputs),
            "right": _right(model, drawn(data.test, 2000, seed=0)),
        }


@dataclass(frozen=True, kw_only=True)
class Pulled(mi.Measurement):
    """Training with the norm of the weights pulled somewhere else than to zero."""

    data: mi.DataSource
    recipe: mi.Recipe
    factor: float | None
    """Norm it is pulled to instead of weight decay, in multiples of the norm that the recipe ends at with the same
    seed; None: the recipe as it is."""
    strength: float = STRENGTH
    """Of the pull."""
    eps: float
    """Of PGD."""

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        usual = Stored(self.recipe, store).fit([data.train], [self.seed]).models[0]
        norm = weight_norm(usual)
        model = usual
        if self.factor is not None:
            (recipe,) = pulled(self.recipe, [self.factor * norm], self.strength)
            model = recipe.fit([data.train], [self.seed]).models[0]
        found = weight_norm(model)
        return {"norm": found, "norm_over_usual": found / norm, **_judged(model, data.test, self.eps, self.seed)}


@dataclass(frozen=True, kw_only=True)
class KernelDrift(mi.Measurement):
    """How far training moves the tangent kernel."""

    data: mi.DataSource
    recipe: mi.Recipe
    images: int = 25

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        rows = data.test.ids[: self.images]
        images = data.test.floats(rows[data.test.labels_of(rows).argsort(stable=True)])
        state = self.recipe.start(data.train, self.seed)
        _settle(state.module, data.train)
        first, start = tangent_kernel(state.module, images), weight_norm(state.module)
        for _ in range(self.recipe.epochs):
            state.run_epoch()
        model = state.member().module
        moved = drift(first, tangent_kernel(model, images))
        return {
            "relative_change": moved.relative,
            "change_of_norm": moved.norm,
            "correlation": moved.correlation,
            "cosine": moved.cosine,
            "weights_over_start": weight_norm(model) / start,
            "right": _right(model, drawn(data.test, 2000, seed=0)),
        }


@dataclass(frozen=True, kw_only=True)
class Ranked(mi.Measurement):
    """Training with the rank of convolutions lowered or raised three times."""

    data: mi.DataSource
    recipe: mi.Recipe
    change: Literal["none", "min", "max"]
    level: float | None = None
    """Singular values below are dropped (min), those above are lowered to it (max); None: 0.5 and 1.5."""
    eps: float
    """Of PGD."""

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        data = store.data(self.data, device)
        epochs = self.recipe.epochs
        at = sorted({max(1, round(share * epochs)) for share in (0.15, 0.3, 0.4)})  # 15, 30, 40 of 100 published
        project = self._project()
        model = trained(self.recipe, data.train, self.seed, project=project, at=at)
        values = list(spectra(model, data.train.floats(data.train.ids[:1])).values())[1:-1]
        ranks = [effective_rank(one) / len(one) for one in values]
        return {
            "effective_rank_share": float(np.mean(ranks)),
            "largest_singular_value": float(np.mean([float(one[0]) for one in values])),
            **_judged(model, data.test, self.eps, self.seed),
        }

    def _project(self) -> Callable[[nn.Module, Tensor], None]:
        if self.change == "none":
            return lambda model, images: None
        if self.change == "min":
            return partial(rank_min, least=0.5 if self.level is None else self.level)
        return partial(rank_max, most=1.5 if self.level is None else self.level)


def _settle(model: nn.Module, train: mi.ImageData) -> None:
    """Gives BatchNorm the statistics of the data before training, without which its first kernel means nothing."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean over batches
    with torch.no_grad():
        model.train()
        for rows in train.ids[:1000].split(250):
            model(train.floats(rows))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _right(model: nn.Module, images: mi.ImageData) -> list[bool]:
    with torch.no_grad():
        answers = [model(images.floats(rows)).argmax(1) for rows in images.ids.split(250)]
    return (torch.cat(answers) == images.labels_of(images.ids)).tolist()


def _judged(model: nn.Module, test: mi.ImageData, eps: float, seed: int) -> dict[str, Value]:
    attack = mi.PGD(ball=mi.Linf(eps=eps), steps=10)
    found = robustness(model, drawn(test, 2000, seed=0), [attack], seed=seed, probe=False)
    return {"right": found.right.tolist(), "stands": found.judged[0].stands.tolist()}


# --- studies ---------------------------------------------------------------------------------------------------------


def small() -> list[mi.Measurement]:
    """Returns all four on digits; two minutes of two cores."""
    data, recipe = mi.Digits(), replace(digits_recipe(), weight_decay=5e-4)
    flat = replace(recipe, model="mlp:width=64", learning_rate=0.05)
    found: list[mi.Measurement] = [EmbeddedMinimum(data=data, seed=seed) for seed in range(SEEDS)]
    found += poor_starts(data, flat)
    found += pulls(data, [flat, recipe], eps=8 / 255)
    found += drifts(data, flat, _widths(SMALL_WIDTHS))
    found += ranks(data, [recipe], eps=8 / 255)
    found += ranks(data, [robust(recipe, 32 / 255)], eps=32 / 255)
    return found


def medium() -> list[mi.Measurement]:
    """Returns all four on CIFAR-10, small, with the fast recipe; two hours of one core."""
    data, recipe = cifar10(per_class=500), fast_recipe(small_recipe())
    convnet, residual = recipe, replace(recipe, model="resnet18:width=8")
    flat = replace(recipe, model="mlp:width=128", learning_rate=0.02, transforms=())
    found: list[mi.Measurement] = [
        EmbeddedMinimum(data=data, images=2000, components=32, seed=seed) for seed in range(SEEDS)
    ]
    found += poor_starts(data, flat)
    found += pulls(data, [convnet, residual], eps=1 / 255)
    flats = _widths({"mlp": WIDTHS["mlp"]})  # without batch norm, wide ones need the smaller steps
    found += drifts(data, flat, flats)
    found += drifts(data, replace(recipe, transforms=()), [name for name in _widths(WIDTHS) if name not in flats])
    found += ranks(data, [convnet, residual], eps=1 / 255)
    found += ranks(data, [robust(convnet, 8 / 255)], eps=8 / 255)
    return found


def paper() -> list[mi.Measurement]:
    """Returns ResNet-18 on CIFAR-10 as published: 100 and 200 epochs; days of a CPU, hours of a GPU."""
    data = cifar10()
    recipe = mi.Recipe(model="resnet18", epochs=200, batch_size=128, learning_rate=0.01, weight_decay=1e-4)
    found = pulls(data, [recipe], eps=1 / 255)
    found += drifts(data, recipe, [f"resnet18:width={width}" for width in (16, 32, 64, 128)])
    ranked = replace(recipe, epochs=100, weight_decay=2e-4)
    found += ranks(data, [ranked], eps=1 / 255)
    found += ranks(data, [robust(ranked, 4 / 255)], eps=4 / 255)
    return found


def _widths(widths: Mapping[str, Sequence[int]]) -> list[str]:
    return [f"{name}:width={width}" for name, several in widths.items() for width in several]


def robust(recipe: mi.Recipe, eps: float) -> mi.Recipe:
    """Adversarial training inside a ball, three steps."""
    move = Adversarial(ball=mi.Linf(eps=eps), steps=3, step=eps / 2)
    return replace(recipe, transforms=(*recipe.transforms, move))


def poor_starts(data: mi.DataSource, recipe: mi.Recipe) -> list[mi.Measurement]:
    """Every start."""
    return [PoorStart(data=data, recipe=recipe, start=start, seed=seed) for start in STARTS for seed in range(SEEDS)]


def pulls(data: mi.DataSource, recipes: Sequence[mi.Recipe], eps: float) -> list[mi.Measurement]:
    """Every norm."""
    return [
        Pulled(data=data, recipe=recipe, factor=factor, eps=eps, seed=seed)
        for recipe in recipes
        for factor in FACTORS
        for seed in range(SEEDS)
    ]


def drifts(data: mi.DataSource, recipe: mi.Recipe, models: Sequence[str]) -> list[mi.Measurement]:
    """Every model."""
    return [
        KernelDrift(data=data, recipe=replace(recipe, model=model), seed=seed)
        for model in models
        for seed in range(SEEDS)
    ]


def ranks(data: mi.DataSource, recipes: Sequence[mi.Recipe], eps: float) -> list[mi.Measurement]:
    """Every change."""
    changes: tuple[Literal["none", "min", "max"], ...] = ("none", "min", "max")
    return [
        Ranked(data=data, recipe=recipe, change=change, eps=eps, seed=seed)
        for recipe in recipes
        for change in changes
        for seed in range(SEEDS)
    ]
