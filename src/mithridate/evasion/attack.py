"""Evasion: one method, from a model and images to images that it may get wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.balls import Ball, Linf
from mithridate.core.schema import Choice


class Attacked(NamedTuple):
    """What an attack makes of some images."""

    images: Tensor
    """[P, C, H, W] inside the ball and in [0, 1]; of an image that was fooled the first that did so."""
    fooled: Tensor
    """[P] bool: the model answers another class than the label, or the wanted one where there is one."""
    forwards: int
    """Images that went through the model, all steps added up."""
    gradients: int
    """Images whose gradient was computed; each is one of the forwards too."""


@dataclass(frozen=True, kw_only=True)
class Evasion(Choice, ABC):
    """Moves images inside a ball so that a trained model gets them wrong.

    Adding a file with a subclass to `evasion/attacks/` adds the attack. The model is asked in eval mode; images that it
    gets wrong already count as fooled and stay as they are.

    >>> from mithridate.evasion.attacks.pgd import PGD
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    >>> images = torch.rand(3, 1, 2, 2)
    >>> labels = model(images).argmax(1)
    >>> moved = PGD(ball=Linf(eps=0.1)).perturb(model, images, labels, torch.Generator().manual_seed(0))
    >>> bool(((moved.images - images).abs() <= 0.1 + 1e-6).all())
    True
    """

    home: ClassVar[str] = "mithridate.evasion.attacks"
    sees_gradients: ClassVar[bool] = True
    """False for a black box: only answers are asked for."""
    ball: Ball = Linf(eps=8 / 255)
    """How far an image may move."""

    @abstractmethod
    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        """Attacks some images.

        Args:
            model: Images [P, C, H, W] in [0, 1] -> logits [P, K].
            images: [P, C, H, W] in [0, 1].
            labels: [P] int64, true classes.
            rng: Source of all randomness.
            wanted: [P] int64, classes that the model should answer; None: any but the true one.

        Raises:
            ValueError: A loss that needs more classes than there are.
            TypeError: A ball that the attack does not know.
        """
