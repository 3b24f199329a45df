"""Poisoning attacks of the Adversarial Robustness Toolbox (ART) as attacks here: judged by the same harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.adapters import art_classifier
from mithridate.core.balls import Ball, Patch, to_bytes, to_floats
from mithridate.core.schema import resolve
from mithridate.core.training import Learner
from mithridate.poisoning.attack import Attack, rows_of_intended_class
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.triggers import Trigger


class ArtCase(NamedTuple):
    """What an attack of ART is given: NCHW float32 arrays in [0, 1], labels one-hot.

    >>> def lighter(case):  # what ArtAttack calls
    ...     return np.minimum(case.x + 0.1, 1.0)
    >>> none = np.zeros((0, 1, 8, 8), dtype=np.float32)
    >>> lighter(ArtCase(None, none + 0.5, none, none, none, none, none, 0)).shape
    (0, 1, 8, 8)
    """

    classifier: Any
    """A `PyTorchClassifier`, trained on the clean training set as the victims are."""
    x: np.ndarray
    """[P, C, H, W], the clean images that may be changed."""
    y: np.ndarray
    """[P, K], their labels."""
    x_train: np.ndarray
    """[N, C, H, W], the whole training set, in the order of its rows."""
    y_train: np.ndarray
    """[N, K]."""
    x_target: np.ndarray
    """[T, C, H, W], the test images aimed at; of a backdoor without the trigger."""
    y_target: np.ndarray
    """[T, K], the classes that they should get."""
    seed: int
    """Of what is drawn."""


Crafting = Callable[[ArtCase], Any]
"""A case -> images [P, C, H, W] for the first P of `x`, or (images, labels one-hot) as attacks of ART return them; or
the whole training set, poison in place."""


@dataclass(frozen=True, kw_only=True)
class ArtAttack(Attack):
    """An attack of ART, in a function of the user's own that calls it.

    The function gets a case as arrays and returns what `poison` of an ART attack returns. Which rows it may change, how
    far, and whether labels may change is the threat model's, and is checked afterwards on 8-bit pixels as of every
    attack.

    Source: Nicolae et al. "Adversarial Robustness Toolbox v1.0.0". 2018. arXiv 1807.01069.

    >>> def darken(case):
    ...     return case.x * 0.9, case.y
    >>> ArtAttack(craft_with=darken).clean_label
    True
    """

    listed: ClassVar[bool] = False

    craft_with: str | Crafting
    """The function, or "package.module:function", which other processes and later runs can find again."""
    clean_label: bool = True
    """Whether images of the intended class are changed, their labels kept; else any that the threat model allows."""
    trigger: Trigger | None = None
    """What marks test images; only of a backdoor."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Trains one surrogate, calls the function, and takes its images as 8-bit pixels.

        Raises:
            MissingExtra: ART cannot be imported.
            ValueError: The function returns something else than images for the rows given, or the whole set.
        """
        rows = rows_of_intended_class(self, task, seed) if self.clean_label else task.choose(seed)
        case = self._case(task, surrogate, rows, seed)
        function = resolve(self.craft_with) if isinstance(self.craft_with, str) else self.craft_with
        returned = function(case)
        images, labels = returned if isinstance(returned, tuple) else (returned, None)
        images = torch.from_numpy(np.array(images, np.float32))
        known = None if labels is None else _classes(np.asarray(labels), len(task.train.classes))
        if images.shape == case.x_train.shape and len(task.train) > len(rows):
            changed = (images != torch.from_numpy(case.x_train)).flatten(1).any(1)
            if known is not None:
                changed |= known != task.train.labels_of(task.train.ids).cpu()
            rows, images = task.train.ids[changed.to(task.train.device)], images[changed]
            known = None if known is None else known[changed]
        _check(images, case, len(rows), known)
        rows = rows[: len(images)]
        labels = None if known is None else known.to(rows.device)
        if labels is not None and torch.equal(labels, task.train.labels_of(rows)):
            labels = None
        return Poison(rows, _in_bytes(images.to(rows.device), task, rows), labels, trigger=self.trigger)

    def _case(self, task: Task, surrogate: Learner, rows: Tensor, seed: int) -> ArtCase:
        train, classes = task.train, len(task.train.classes)
        model = surrogate.fit([train], [0]).models[0]

        def onehot(labels: Tensor) -> np.ndarray:
            return F.one_hot(labels.cpu(), classes).float().numpy()

        def arrays(images: Tensor) -> np.ndarray:
            return np.ascontiguousarray(images.cpu().numpy())

        return ArtCase(
            art_classifier(model, train.shape, classes),
            arrays(train.floats(rows)),
            onehot(train.labels_of(rows)),
            arrays(train.floats(train.ids)),
            onehot(train.labels_of(train.ids)),
            arrays(task.targets),
            onehot(task.intended),
            seed,
        )


@dataclass(frozen=True, kw_only=True)
class FunctionTrigger(Trigger):
    """A trigger that is a function of arrays [B, C, H, W] in [0, 1], such as a perturbation of ART.

    >>> def corner(images):
    ...     images[:, :, -2:, -2:] = 1
    ...     return images
    >>> FunctionTrigger(function=corner)(torch.zeros(1, 1, 8, 8)).sum().item()
    4.0
    """

    listed: ClassVar[bool] = False

    function: str | Callable[[np.ndarray], np.ndarray]
    """The function, or "package.module:function"; it may change the array that it is given."""
    ball: Ball = Patch(area=0.1)
    """The limit that it respects; checked when a poison is."""

    def __call__(self, images: Tensor) -> Tensor:
        function = resolve(self.function) if isinstance(self.function, str) else self.function
        marked = np.asarray(function(np.array(images.detach().cpu().numpy(), order="C")), np.float32)
        if marked.shape != tuple(images.shape):
            raise ValueError(f"the trigger's function returned {list(marked.shape)} for images {list(images.shape)}")
        return to_floats(to_bytes(torch.from_numpy(marked).clamp(0, 1))).to(images)

    def area(self, shape: tuple[int, int, int]) -> float:
        return self.ball.area if isinstance(self.ball, Patch) else 1.0

    def limit(self) -> Ball:
        return self.ball


def _classes(labels: np.ndarray, classes: int) -> Tensor:
    """Labels [P] of one-hot or plain ones."""
    plain = (
        labels.argmax(1) if labels.ndim == 2 and labels.shape[1] == classes else labels.reshape(len(labels), -1)[:, 0]
    )
    return torch.from_numpy(plain.astype(np.int64))


def _check(images: Tensor, case: ArtCase, most: int, labels: Tensor | None) -> None:
    if images.shape[1:] != case.x.shape[1:] or not 0 < len(images) <= most:
        raise ValueError(
            f"the function of ArtAttack returned images {list(images.shape)}; expected up to {most} of "
            f"{list(case.x.shape[1:])} in place of the first ones of case.x, or the whole training set"
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"the function of ArtAttack returned {len(labels)} labels for {len(images)} images")
    if not bool(((images >= -1e-4) & (images <= 1 + 1e-4)).all()):  # not a number is not inside either
        raise ValueError("the function of ArtAttack returned pixels outside [0, 1]")


def _in_bytes(images: Tensor, task: Task, rows: Tensor) -> Tensor:
    """8-bit pixels: the nearest, or where rounding alone would leave the limit, the next ones inside."""
    images, base = images.clamp(0, 1), task.images(rows)
    inside = task.ball.contains(base, images)
    nearest = to_bytes(images)
    nearest[inside] = task.ball.rounded(base[inside], images[inside])
    return nearest
