"""Learners beside `Recipe`: several architectures in turn, and training code of the user's own."""

from __future__ import annotations

import hashlib
import inspect
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mithridate.core import models
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.progress import track
from mithridate.core.schema import resolve
from mithridate.core.states import TrainingState
from mithridate.core.training import Fitted, Learner, Predictor, Recipe, Watch, predictor_of

COMPARED = 8
"""Training images on which a rebuilt module must answer as the trained one does."""
CLOSE = 1e-3
"""Largest difference of their logits, relative to the largest logit."""


# --- several architectures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed(Learner):
    """Deals the members of a fit to several recipes in turn: member i is trained by ``recipes[i % len(recipes)]``.

    As a surrogate it lets an attacker who does not know the victim's architecture craft against several at once; as a
    learner it spreads the victims of one poison over several architectures. A member comes out with the same bits as
    with its recipe alone.

    Raises:
        ValueError: No recipes; or recipes that differ in what belongs to all members: their transforms (an attack
            averages over them), what they train, and whether they start from given weights.

    >>> mixed = Mixed((Recipe(model="convnet"), Recipe(model="resnet18:width=16")))
    >>> [recipe.model for recipe in mixed.dealt(3)]
    ['convnet', 'resnet18:width=16', 'convnet']
    """

    recipes: tuple[Recipe, ...]
    """What the members are trained with, in this order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipes", tuple(self.recipes))
        if not self.recipes:
            raise ValueError("recipes is empty; give at least one recipe")
        for number, recipe in enumerate(self.recipes):
            if not isinstance(recipe, Recipe):
                raise TypeError(f"recipes[{number}] is a {type(recipe).__name__}; only recipes can be mixed")
            for setting, (first, own) in _shared(self.recipes[0], recipe).items():
                if first != own:
                    raise ValueError(
                        f"recipes[{number}] has {setting} {own}, recipes[0] has {first}; it must be the same in all"
                    )

    @property
    def recipe(self) -> Recipe:
        """The first recipe."""
        return self.recipes[0]

    def changed(self, **settings: Any) -> Mixed:
        """Returns the same mixture with other settings in every recipe.

        >>> Mixed((Recipe(), Recipe(epochs=3))).changed(batch_size=64).recipes[1].batch_size
        64
        """
        return Mixed(tuple(replace(recipe, **settings) for recipe in self.recipes))

    def dealt(self, members: int) -> list[Recipe]:
        """Returns the recipe of each of so many members."""
        return [self.recipes[member % len(self.recipes)] for member in range(members)]

    def begin(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[TrainingState]:
        """Begins one training for each data set and seed, dealt to the recipes as in a fit."""
        pairs = zip(datasets, seeds, strict=True)
        return [recipe.start(*pair) for recipe, pair in zip(self.dealt(len(seeds)), pairs, strict=True)]

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains recipe after recipe; the members come back in the order of the seeds."""
        count = len(list(zip(datasets, seeds, strict=True)))
        modules: dict[int, nn.Module] = {}
        kept: dict[int, Tensor | None] = {}
        history: dict[str, dict[int, list]] = {}
        for number, recipe in enumerate(self.recipes[:count]):
            members = range(number, count, len(self.recipes))
            watched = None if watch is None else _renumbered(watch, members)
            fitted = recipe.fit(
                [datasets[i] for i in members], [seeds[i] for i in members], trusted=trusted, watch=watched
            )
            modules.update(zip(members, fitted.models, strict=True))
            kept.update(zip(members, fitted.kept, strict=True))
            for name, series in fitted.history.items():
                history.setdefault(name, {}).update(zip(members, series, strict=True))
        ordered = {name: [series[i] for i in range(count)] for name, series in history.items()}
        return self.recipe.fitted([modules[i] for i in range(count)], ordered, [kept[i] for i in range(count)])


def _shared(first: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """What two mixed recipes must agree in, by name."""
    return {
        "transforms": (first.transforms, other.transforms),
        "trainable": (first.trainable, other.trainable),
        "start_from (given or not)": (first.start_from is not None, other.start_from is not None),
    }


def _renumbered(watch: Watch, members: Sequence[int]) -> Watch:
    def watched(member: int, epoch: int, predictor: Predictor) -> None:
        watch(members[member], epoch, predictor)

    return watched


# --- code of the user's own ------------------------------------------------------------------------------------------


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """The training set that a user's own training code gets: an ordinary map-style PyTorch data set.

    Item i is the i-th visible image, as float32 [C, H, W] in [0, 1] on the CPU, and its label. Poisoned rows are in
    place, and nothing says which they are. It can be pickled, so a loader may have worker processes.

    >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> dataset = TrainingImages(ImageData(images, torch.tensor([0, 1, 0, 1]), ("cat", "dog")))
    >>> len(dataset), dataset.classes, dataset.shape, dataset[1][0].dtype, dataset[1][1]
    (4, ('cat', 'dog'), (1, 8, 8), torch.float32, 1)
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data.to("cpu")
        self.classes = data.classes
        self.shape = data.shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """A whole batch at once: what PyTorch's loaders ask for where a data set can."""
        rows = self.data.ids[torch.as_tensor(indices)]
        return list(zip(self.data.floats(rows).contiguous(), self.data.labels_of(rows).tolist(), strict=True))


TrainCode = Callable[[TrainingImages, int], nn.Module]
"""Training images and a seed below 2**31 -> a trained module from images [B, C, H, W] in [0, 1] to logits [B, K]."""


@dataclass(frozen=True)
class TrainFunction(Learner):
    """Trains with code of the user's own; `learner` makes one.

    An attack or defence that looks into a recipe (its augmentation, its course of training) finds none here.

    Raises:
        ValueError: Text that names nothing to import.
        TypeError: Something that cannot be called with a data set and a seed.
    """

    train: str | TrainCode
    """(TrainingImages, seed) -> trained module; text "package.module:function" is imported at once."""
    model: str | Callable[[int], nn.Module] | None = None
    """What builds an untrained module of the same kind, named as in a recipe; None: fits are not written to disk."""
    code: str = field(default="", repr=False)
    """Digest of the file that holds the function, found by itself: a change in that file makes other work of it."""

    def __post_init__(self) -> None:
        if isinstance(self.train, str):
            object.__setattr__(self, "train", resolve(self.train))
        if not callable(self.train):
            raise TypeError(
                f"train is a {type(self.train).__name__}; give a function of (dataset, seed) that returns a module"
            )
        _check_arguments(self.train, self.name)
        object.__setattr__(self, "code", _digest_of_file(self.train))

    @property
    def recipe(self) -> None:
        """None: the user's own code trains."""
        return None

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.train, "__qualname__", type(self.train).__qualname__)

    def module(self, data: ImageData, seed: int) -> nn.Module:
        """Builds an untrained module of the kind that the function returns, on the data's device.

        Raises:
            ValueError: `model` is not set.
        """
        if self.model is None:
            raise ValueError(f"nothing says how to build the module of {self.name}; give model= beside it")
        return models.build(self.model, len(data.classes), data.shape, seed).to(data.device)

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Calls the function once for each data set and seed; `watch` sees each model once, at the end.

        What the function prints goes to standard error.

        Raises:
            TypeError: The function returned something else than a module.
            ValueError: The module does not map images to logits; or `model` builds another kind of module; or the
                function asked the whole process to end.
        """
        pairs = list(zip(datasets, seeds, strict=True))
        members = []
        for number, (data, seed) in enumerate(track(pairs, "training", total=len(pairs))):
            members.append(self._member(data, seed))
            if watch is not None:
                watch(number, 0, predictor_of(Ensemble([members[number]])))
        ensemble = Ensemble(members)
        return Fitted(ensemble, predictor_of(ensemble), {}, [None] * len(members))

    def _member(self, data: ImageData, seed: int) -> nn.Module:
        assert callable(self.train)
        seed = seed % 2**31  # NumPy, Lightning and others take no larger one
        with _seeded(seed), torch.enable_grad(), _allowed_processes(), redirect_stdout(sys.stderr):
            try:
                module: Any = self.train(TrainingImages(data), seed)
            except SystemExit as stop:  # of argparse, which reads a command line that is not its own
                raise ValueError(
                    f"{self.name} asked the process to end (exit code {stop.code}): it reads the command line "
                    "(argparse) or calls sys.exit; give its settings as values, for example parser.parse_args([])"
                ) from stop
        if not isinstance(module, nn.Module):
            raise TypeError(f"{self.name} returned {type(module).__name__}; it must return the trained torch.nn.Module")
        module = module.to(data.device).eval()
        models.check_logits(
            f"the module that {self.name} returned",
            module,
            len(data.classes),
            data.shape,
            f"return a module whose forward gives {len(data.classes)} logits for each image in [0, 1] (wrap one that "
            "normalises elsewhere, or that returns an object with logits)",
        )
        broken = [name for name, value in module.state_dict().items() if not bool(value.isfinite().all())]
        if broken:
            warnings.warn(
                f"{self.name} returned weights that are not finite ({broken[0]} and {len(broken) - 1} more); training "
                "diverged: lower its learning rate",
                stacklevel=3,
            )
        if self.model is not None and not broken:
            self._compare(module, data)
        return module

    def _compare(self, trained: nn.Module, data: ImageData) -> None:
        """Checks that what `model` builds becomes the trained module when it gets its weights."""
        rebuilt, weights = self.module(data, seed=0).eval(), trained.state_dict()
        own = rebuilt.state_dict()
        wrong = sorted(n for n in own.keys() | weights.keys() if _size(own.get(n)) != _size(weights.get(n)))
        if wrong:
            raise ValueError(
                f"model builds another module than {self.name} returned: {wrong[0]} is {_size(own.get(wrong[0]))}, "
                f"returned was {_size(weights.get(wrong[0]))} ({len(wrong)} differ); let both build it the same way"
            )
        rebuilt.load_state_dict(weights)
        images = data.floats(data.ids[:COMPARED])
        with torch.no_grad():
            expected, found = trained(images), rebuilt(images)
        if not bool((expected - found).abs().max() <= CLOSE * expected.abs().max()):
            raise ValueError(
                f"the module of model answers otherwise than the one that {self.name} returned, with the same weights; "
                "something of it is no parameter or buffer (a constant such as a mean, say): register it as a buffer, "
                "or leave model out"
            )


def learner(train: str | TrainCode, model: str | Callable[[int], nn.Module] | None = None) -> TrainFunction:
    """Makes a learner out of training code of your own, in whatever framework.

    The global generators of Python, NumPy and PyTorch are seeded for each call and put back afterwards, so code that
    draws from them gives equal models for equal seeds. Results are known by the file that holds the function: after a
    change in what that file imports or reads, use a new results folder.

    Args:
        train: ``train(dataset, seed)`` trains on `dataset`, a PyTorch data set of (image [C, H, W] in [0, 1], label)
            with ``classes`` and ``shape``, and returns a module from images [B, C, H, W] in [0, 1] to logits [B, K].
            Or its name, "package.module:function". A lambda or a local function works in this process and cannot be
            resumed in another.
        model: What builds an untrained module of the same kind: a function of the number of classes, or a model's
            name. With it, clean models are kept in the results folder and shared between processes; without it, within
            one process.

    >>> def train(dataset, seed):
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, len(dataset.classes)))
    >>> learner(train).recipe is None
    True
    """
    return TrainFunction(train, model)


def _check_arguments(train: Callable[..., Any], name: str) -> None:
    """Makes sure that a function can be called with a data set and a seed.

    Raises:
        TypeError: It takes fewer arguments, or asks for more.
    """
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind("dataset", 0)
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} cannot be called with a data set and a seed ({error}); write a function "
            f"train(dataset, seed) that calls it and returns the trained module"
        ) from error


def _digest_of_file(train: Callable[..., Any]) -> str:
    """Digest of the source of the module that holds a function; empty where there is none."""
    try:
        source = inspect.getsource(sys.modules[train.__module__])
    except (AttributeError, KeyError, OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _size(value: Tensor | None) -> str:
    return "missing" if value is None else str(list(value.shape))


@contextmanager
def _allowed_processes() -> Iterator[None]:
    """Lets code in a worker process of ours have processes of its own, as loaders do that read with several."""
    worker = multiprocessing.current_process()
    before = worker.daemon
    if before:
        worker.daemon = False
    try:
        yield
    finally:
        if before:
            worker.daemon = True


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators that training code usually draws from; the old states come back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global generator is what such code uses)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
