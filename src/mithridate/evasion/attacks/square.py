"""Square: random search without gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.balls import Linf
from mithridate.core.perturbation import minimise
from mithridate.core.progress import quiet
from mithridate.core.schema import name_of
from mithridate.core.steps import RandomSquares
from mithridate.evasion.attack import Attacked, Evasion
from mithridate.evasion.search import Watched


@dataclass(frozen=True, kw_only=True)
class Square(Evasion):
    """Random squares at the edge of the ball, kept where they raise the margin. Only answers of the model are used.

    Reference: Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a Query-Efficient Black-Box Adversarial Attack
    via Random Search". ECCV 2020. arXiv 1912.00049.

    Raises:
        ValueError: No queries.
        TypeError: A ball other than Linf.

    >>> Square().sees_gradients
    False
    """

    sees_gradients: ClassVar[bool] = False
    queries: int = 1000
    """Questions per image; the evaluation of AutoAttack asks 5,000."""
    area: float = 0.8
    """Share of the image that the first squares cover."""

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf):
            raise TypeError(f"square knows the ball linf, and not {name_of(self.ball)}")
        if self.queries < 1:
            raise ValueError(f"square queries is {self.queries}; at least 1 is needed")

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        assert isinstance(self.ball, Linf)
        watched = Watched(model, images, labels, wanted, "cw")
        watched(images, rng)
        count, channels, _, width = images.shape
        stripes = (torch.randint(2, (count, channels, 1, width), generator=rng) * 2 - 1).to(images)
        watched.keep = "best"
        with quiet():
            minimise(
                watched,
                images,
                self.ball,
                steps=self.queries,
                update=RandomSquares(eps=self.ball.eps, area=self.area),
                init=(images + self.ball.eps * stripes).clamp(0, 1),
                pixels="float",
                rng=rng,
            )
        return watched.attacked()
