"""Small data and small learners that the tests of this folder and of tests/contracts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.seeds import stream
from mithridate.core.training import Fitted, Learner, Prediction, Recipe, Watch, predictor_of
from mithridate.poisoning.defense import Evidence, Filter

CLASSES = ("ant", "bee", "cat")


def images_of(labels: Tensor, seed: int, *, channels: int = 3, side: int = 8, noise: float = 25) -> Tensor:
    """Noisy pictures [N, C, H, W] uint8, one brightness pattern per class."""
    means = 60 + 130 * torch.rand(int(labels.max()) + 1, channels, side, side, generator=stream(7, "means"))
    drawn = torch.randn(len(labels), channels, side, side, generator=stream(seed, "noise"))
    return (means[labels] + noise * drawn).round().clamp(0, 255).to(torch.uint8)


def three_classes(train: int = 60, test: int = 30, *, channels: int = 3, side: int = 8) -> tuple[ImageData, ImageData]:
    """Balanced training and test sets of 3 classes."""
    sets = []
    for seed, count in enumerate((train, test)):
        labels = torch.arange(count) % len(CLASSES)
        sets.append(ImageData(images_of(labels, seed, channels=channels, side=side), labels, CLASSES))
    return sets[0], sets[1]


def marked_by(one: Filter, features: Tensor, labels: Tensor) -> Tensor:
    """What a filter that does not look at logits would drop, [n] bool."""
    return one.judge(Evidence(features, features[:, :0], labels)).marked


def quick(**settings: object) -> Recipe:
    """A recipe of two epochs."""
    return Recipe(**({"epochs": 2, "batch_size": 32, "precision": "fp32"} | settings))  # type: ignore[arg-type]


def flat(data: ImageData) -> ImageData:
    """The same visible content as one plain tensor, without a patch."""
    return ImageData(data.pixels(data.ids), data.labels_of(data.ids), data.classes)


def weights(fitted: Fitted) -> list[Tensor]:
    """Every weight and buffer of every model, in order."""
    return [value.clone() for model in fitted.models for value in model.state_dict().values()]


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit by bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class OwnCode(Learner):
    """A learner with code of its own, so without a recipe: what some recipes train, in turn, member by member."""

    def __init__(self, *recipes: Recipe) -> None:
        self.recipes = recipes

    @property
    def recipe(self) -> Recipe | None:
        """None: nothing is known of how it trains."""
        return None

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains member i with recipe i, and so on in turn."""
        inner = [self.recipes[i % len(self.recipes)] for i in range(len(seeds))]
        models = [r.fit([d], [s]).models[0] for r, d, s in zip(inner, datasets, seeds, strict=True)]
        ensemble = Ensemble(models)
        return Fitted(ensemble, predictor_of(ensemble), {}, [None] * len(models))


def small_net(classes: int) -> nn.Module:
    """A network for 3 x 8 x 8 images with 5 features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, classes))


def two_architectures(**settings: object) -> OwnCode:
    """Members of 5 features and of 64 or so in turn, from code of its own."""
    return OwnCode(quick(model=small_net, **settings), quick(model="convnet:width=8", **settings))


def scripted(
    answer: Callable[[Tensor], Tensor],
    abstained: Callable[[Tensor], Tensor] | None = None,
    radius: Callable[[Tensor], Tensor] | None = None,
) -> Fitted:
    """A fit whose predictor is given: images [B, C, H, W] -> scores [M, B, K]."""

    def predict(images: Tensor) -> Prediction:
        scores = answer(images)
        none = torch.zeros(scores.shape[:2], dtype=torch.bool)
        return Prediction(scores, none if abstained is None else abstained(images), radius and radius(images))

    return Fitted(Ensemble([]), predict, {}, [])


class _Means(nn.Module):
    def __init__(self, means: Tensor, tilt: Tensor) -> None:
        super().__init__()
        self.means, self.tilt = nn.Buffer(means), nn.Buffer(tilt)

    def forward(self, images: Tensor) -> Tensor:
        distance = (images.flatten(1).double()[:, None] - self.means).square().sum(2)
        return (self.tilt - distance).float()


@dataclass(frozen=True)
class NearestMean(Learner):
    """Answers with the class of the nearest mean; `tilt` makes the answer depend on seed and row order as well."""

    tilt: float = 0.0

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
        models = [self._model(data, seed) for data, seed in zip(datasets, seeds, strict=True)]
        for member, model in enumerate(models):
            if watch is not None:
                watch(member, 0, predictor_of(Ensemble([model])))
        ensemble = Ensemble(models)
        losses = [[float(len(data)), 1.0] for data in datasets]
        return Fitted(ensemble, predictor_of(ensemble), {"loss": losses}, [None] * len(models))

    def _model(self, data: ImageData, seed: int) -> nn.Module:
        pixels, labels = data.floats(data.ids).flatten(1).double(), data.labels_of(data.ids)
        means = torch.full((len(data.classes), pixels.shape[1]), 1e3, dtype=torch.float64)
        for label in labels.unique():
            means[label] = pixels[labels == label].mean(0)
        weight = torch.arange(1, len(labels) + 1).double()  # order of the rows
        drawn = torch.rand(len(data.classes), generator=stream(seed, "tilt"), dtype=torch.float64)
        order = torch.sin((weight * pixels.sum(1)).sum() * torch.arange(1, len(data.classes) + 1))
        return _Means(means, self.tilt * (drawn + order))
