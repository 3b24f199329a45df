"""Batches that are poisoned while a model trains on them, so that it learns not to be moved by poison.

What the model is asked is asked in eval mode: its buffers stay as they are and dropout draws nothing. All draws come
from a stream beside the one of the other transforms, which therefore draw what they would without this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.classifier import computing_as
from mithridate.core.ensemble import features, in_mode
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import cosine_slope, squared_error_slope
from mithridate.core.perturbation import Objective, by_autograd, minimise
from mithridate.core.progress import quiet
from mithridate.core.seeds import aside
from mithridate.core.unrolled import sgd_step, weights_of
from mithridate.core.updates import SignedAdam

Inner = Literal["gradient-matching", "squared-error", "feature-collision", "metapoison", "patch", "noise"]
Split = Literal["apart", "shuffled"]


class Parts(NamedTuple):
    """What of a batch plays which part."""

    poisons: Tensor
    """[P] places in the batch of the images that are changed."""
    targets: Tensor
    """[T] places of the images that the poison is aimed at."""


@dataclass(frozen=True, kw_only=True)
class Poisoned(BatchTransform):
    """Poisons a part of each batch against the rest of it, and leaves all labels as they are.

    The part that is left alone plays the target: the poison shall make the model call it by the most frequent label of
    the poisoned part. The poisoned images go back to their places, so the step that follows is on all of the batch,
    with true labels. With no steps and ``eps`` 0 (for patches: sides of 0) nothing changes, to the bit.

    Reference: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You Robust(er): How
    to Adversarially Train against Data Poisoning". 2021. arXiv 2102.13624. Deviations: steps are in pixels of [0, 1]
    (0.025 = their 0.1 in normalised units); which rows are poisoned is drawn for each batch, not taken in its order.

    Raises:
        ValueError: an unknown attack or split, negative steps or eps, a step that is not positive, a share outside
            (0, 1), or patches that are no share of the image.

    >>> Poisoned(inner="noise", eps=8 / 255).mixes_rows
    True
    """

    mixes_rows = True

    inner: Inner = "gradient-matching"
    """The attack inside: gradient-matching (cosine), squared-error (of gradients), feature-collision, metapoison (two
    unrolled steps), patch (random ones, against backdoors), or noise (plus or minus eps)."""
    eps: float = 16 / 255
    """Largest change of a pixel in [0, 1]; a patch knows no such limit."""
    steps: int = 5
    """Signed-Adam steps of the attack in each step of training; patches and noise are drawn, not searched."""
    step: float = 0.025
    """Length of such a step, in pixels of [0, 1]."""
    share: float = 0.5
    """Share of the batch that is poisoned."""
    split: Split = "apart"
    """apart: the rest plays the targets. shuffled: all of the batch does, also what is poisoned."""
    patch: tuple[float, float] = (0.1, 0.4)
    """Smallest and largest side of a patch as shares of the image's."""

    def __post_init__(self) -> None:
        for name, kind in {"inner": Inner, "split": Split}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"poisoned {name} is {getattr(self, name)!r}; use one of {', '.join(get_args(kind))}")
        if not 0 <= self.eps <= 1:
            raise ValueError(f"poisoned eps is {self.eps}; it is a change of pixels in [0, 1], for example 16/255")
        if self.steps < 0:
            raise ValueError(f"poisoned steps is {self.steps}; it must be 0 or more")
        if not self.step > 0:
            raise ValueError(f"poisoned step is {self.step}; it must be positive, in pixels of [0, 1]")
        if not 0 < self.share < 1:
            raise ValueError(
                f"poisoned share is {self.share}; it is the part of a batch that is poisoned and some must be left to "
                "play the target, so use for example 0.5 or 0.75"
            )
        if not 0 <= self.patch[0] <= self.patch[1] <= 1:
            raise ValueError(f"poisoned patch is {self.patch}; give its smallest and largest side, as 0.1 and 0.4")

    def __call__(self, batch: Batch, model: nn.Module, rng: torch.Generator) -> Batch:
        rng = aside(rng, "poisoned")
        parts = self._parts(len(batch.images), rng, batch.images.device)
        if parts is None:
            return batch
        if self.inner == "patch":
            return self._patched(batch, parts, rng)
        if not self.eps:
            return batch
        clean, ball = batch.images.detach()[parts.poisons], Linf(eps=self.eps)
        if self.inner == "noise":
            found = ball.sample(clean, rng)
        else:
            with quiet():
                found = minimise(
                    _OBJECTIVES[self.inner](batch, parts, model),
                    clean,
                    ball,
                    steps=self.steps,
                    update=SignedAdam(lr=self.step, decay=False),
                    pixels="float",
                    judged=False,
                    rng=rng,
                ).images
        return batch._replace(images=batch.images.index_add(0, parts.poisons, found - clean))

    def _parts(self, count: int, rng: torch.Generator, device: torch.device) -> Parts | None:
        """Draws who plays which part among `count` images; None where there are too few for two parts."""
        if count < 2:
            return None
        poisons = min(max(1, round(self.share * count)), count - 1)
        order = torch.randperm(count, generator=rng)
        targets = order[poisons:] if self.split == "apart" else order
        drawn = (order[:poisons].sort().values, targets.sort().values)
        return Parts(*(part.to(device, non_blocking=True) for part in drawn))

    def _patched(self, batch: Batch, parts: Parts, rng: torch.Generator) -> Batch:
        """Puts the patch of its own class on each poisoned image, and that of another class on each target."""
        count, channels, height, width = batch.images.shape
        classes = batch.targets.shape[1]
        low, high = (round(share * min(height, width)) for share in self.patch)
        side = int(torch.randint(low, high + 1, (1,), generator=rng))
        if not side or classes < 2:
            return batch
        mean = torch.rand(classes, 1, 1, 1, generator=rng)
        patches = (torch.rand(classes, channels, side, side, generator=rng) < mean).float()
        patches = patches.to(batch.images, non_blocking=True)
        away = int(torch.randint(1, classes, (1,), generator=rng))
        everybody = torch.arange(count, device=batch.images.device)
        poisoned = (everybody[:, None] == parts.poisons).any(1)
        played = (everybody[:, None] == parts.targets).any(1) & ~poisoned  # a poisoned target wears its own
        worn = torch.where(played, (batch.targets.argmax(1) + away) % classes, batch.targets.argmax(1))
        top, left = (int(torch.randint(length - side + 1, (1,), generator=rng)) for length in (height, width))
        images = batch.images.clone()
        there = images[:, :, top : top + side, left : left + side]
        images[:, :, top : top + side, left : left + side] = torch.where(
            (poisoned | played)[:, None, None, None], patches[worn], there
        )
        return batch._replace(images=images)


# --- the attacks inside ----------------------------------------------------------------------------------------------


def _pretended(batch: Batch, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [P, K] of the poisons, images [T, C, H, W] of the targets and the labels [T, K] they shall be given."""
    labels = batch.targets.detach()[parts.poisons]
    classes = torch.arange(labels.shape[1], device=labels.device)
    wanted = (classes == labels.sum(0).argmax()).to(labels.dtype)  # the smallest of equals
    return labels, batch.images.detach()[parts.targets], wanted.expand(len(parts.targets), -1)


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, *, graph: bool) -> tuple[Tensor, ...]:
    """Parameter gradient of the mean cross-entropy in eval mode."""
    with computing_as(model), in_mode(model, train=False), torch.enable_grad():
        loss = F.cross_entropy(model(images).float(), labels)
    return torch.autograd.grad(loss, list(trainable(model).values()), create_graph=graph)


def _matching(slope_of: Callable[..., tuple[Tensor, list[Tensor]]], sign: int) -> Callable[..., Objective]:
    """An attack that matches gradients; ``slope_of`` gives how like they are and the derivative of that."""

    def attack(batch: Batch, parts: Parts, model: nn.Module) -> Objective:
        labels, targets, wanted = _pretended(batch, parts)
        goal = _gradient(model, targets, wanted, graph=False)

        def objective(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            leaf = images.detach().requires_grad_()
            gradient = _gradient(model, leaf, labels, graph=True)
            with torch.no_grad():
                value, slope = slope_of(gradient, goal)
            (towards,) = torch.autograd.grad(gradient, leaf, slope)
            return sign * value, sign * towards

        return objective

    return attack


def _feature_collision(batch: Batch, parts: Parts, model: nn.Module) -> Objective:
    _, targets, _ = _pretended(batch, parts)
    with torch.no_grad():
        goal = features(model, targets).mean(0)
    return by_autograd(lambda images, _: (features(model, images).mean(0) - goal).square().mean())


def _metapoison(batch: Batch, parts: Parts, model: nn.Module) -> Objective:
    labels, targets, wanted = _pretended(batch, parts)

    def loss(images: Tensor, _: torch.Generator) -> Tensor:
        weights = weights_of(model)
        with computing_as(model), in_mode(model, train=False):
            for _step in range(UNROLLED_STEPS):
                logits = functional_call(model, weights, (images,))
                weights = sgd_step(weights, F.cross_entropy(logits.float(), labels), UNROLLED_RATE)
            return F.cross_entropy(functional_call(model, weights, (targets,)).float(), wanted)

    return by_autograd(loss)


UNROLLED_STEPS, UNROLLED_RATE = 2, 0.1
"""What metapoison unrolls inside a batch, as in the reference."""

_OBJECTIVES: dict[str, Callable[[Batch, Parts, nn.Module], Objective]] = {
    "gradient-matching": _matching(cosine_slope, -1),
    "squared-error": _matching(squared_error_slope, 1),
    "feature-collision": _feature_collision,
    "metapoison": _metapoison,
}
