"""Search for what fools a model, on the one loop of `core.perturbation`: every iterate is looked at, images that are
fooled are left alone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mithridate.core.balls import L2, Ball, Linf
from mithridate.core.ensemble import Ensemble
from mithridate.core.perturbation import minimise
from mithridate.core.progress import quiet
from mithridate.core.schema import name_of
from mithridate.core.steps import LengthStep
from mithridate.core.updates import SignStep, Update
from mithridate.evasion.attack import Attacked, Evasion
from mithridate.evasion.losses import Loss, loss_of


class Watched:
    """An objective of `minimise` that remembers which images were fooled, and by what.

    Those cost nothing more: the model sees only images that still stand, unless `stop` is off.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, wanted: Tensor | None, loss: Loss) -> None:
        self.model, self.labels, self.wanted = Ensemble([model]), labels, wanted
        self.raised = loss_of(loss)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.images = images.clone()
        self.most = torch.full((len(images),), -torch.inf, device=images.device)
        self.keep: Literal["last", "best"] = "last"
        self.stop = True
        self.slopes_left = 0
        self.forwards = self.gradients = 0

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = (~self.fooled).nonzero()[:, 0] if self.stop else torch.arange(len(images), device=images.device)
        value, slope = images.new_zeros(len(images)), torch.zeros_like(images)
        if not len(rows):
            return value, slope
        seen = images if len(rows) == len(images) else images[rows]
        wanted = None if self.wanted is None else self.wanted[rows]
        differentiate = self.slopes_left > 0
        self.slopes_left -= 1
        with torch.set_grad_enabled(differentiate):
            leaf = seen.detach().requires_grad_(differentiate)
            logits = self.model.logits(leaf)[0]
            raised = self.raised(logits, self.labels[rows], wanted)
            if differentiate:
                (found,) = torch.autograd.grad(-raised.sum(), leaf)
                slope[rows] = torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
                self.gradients += len(rows)
        self.forwards += len(rows)
        self._note(rows, seen, logits.detach(), raised.detach())
        value[rows] = -raised.detach()
        return value, slope

    def _note(self, rows: Tensor, images: Tensor, logits: Tensor, raised: Tensor) -> None:
        answers = logits.argmax(1)
        wrong = answers != self.labels[rows] if self.wanted is None else answers == self.wanted[rows]
        new = wrong & ~self.fooled[rows]
        better = torch.ones_like(new) if self.keep == "last" else raised > self.most[rows]
        taken = new | (better & ~self.fooled[rows]) if self.stop else new | (better & (wrong | ~self.fooled[rows]))
        self.images[rows[taken]] = images[taken]
        self.most[rows] = torch.maximum(self.most[rows], raised)
        self.fooled[rows] |= wrong

    def attacked(self) -> Attacked:
        """What has been found so far."""
        return Attacked(self.images, self.fooled, self.forwards, self.gradients)


@dataclass(frozen=True, kw_only=True)
class Climb(Evasion):
    """An attack that climbs a loss of the model step by step."""

    steps: int = 20
    """Steps of each start."""
    loss: Loss = "ce"
    """What is raised: cross-entropy (ce), the margin (cw), the margin over the spread of the logits (dlr)."""
    restarts: int = 1
    """Starts; an image that one of them fooled is left alone by the next."""
    random_start: bool = True
    """Whether a search begins at a random place of the ball, or at the image itself."""
    keep: Literal["last", "best"] = "last"
    """Of an image that is not fooled: its last iterate, or the one of the highest loss."""
    stop: bool = True
    """Whether an image is left alone once it is fooled; off, its later iterates replace it."""
    targets: int = 0
    """Wrong classes that are aimed at in turn, the most likely first; 0: none in particular."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name_of(self)} {name} is {getattr(self, name)}; at least 1 is needed")
        if self.targets < 0:
            raise ValueError(f"{name_of(self)} targets is {self.targets}; it is a number of classes, 0 or more")
        self.update()  # what does not fit the ball is said now

    @abstractmethod
    def update(self) -> Update:
        """Returns how the search moves.

        Raises:
            TypeError: The ball is one that it does not know.
        """

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        watched = Watched(model, images, labels, wanted, self.loss)
        watched(images, rng)  # what is wrong already
        watched.keep, watched.stop = self.keep, self.stop
        aims = [wanted] if wanted is not None or not self.targets else _likely(model, images, labels, self.targets)
        for aim in aims:
            aimed = _Aimed(watched, aim) if aim is not None and wanted is None else watched
            for _ in range(self.restarts):
                self._climb(watched, aimed, images, rng)
        return watched.attacked()

    def _climb(self, watched: Watched, objective: Watched | _Aimed, images: Tensor, rng: torch.Generator) -> None:
        watched.slopes_left = self.steps
        with quiet():
            minimise(
                objective,
                images,
                self.ball,
                steps=self.steps,
                update=self.update(),
                init=uniform(self.ball, images, rng) if self.random_start else images,
                pixels="float",
                rng=rng,
            )


class _Aimed:
    """The same objective with a wanted class: any wrong answer counts, but the way leads to this one."""

    def __init__(self, watched: Watched, wanted: Tensor) -> None:
        self.watched, self.wanted = watched, wanted

    def __call__(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        plain, rows = self.watched.raised, (~self.watched.fooled).nonzero()[:, 0]
        rows = rows if self.watched.stop else torch.arange(len(images), device=images.device)
        self.watched.raised = lambda logits, labels, _: plain(logits, labels, self.wanted[rows])
        try:
            return self.watched(images, rng)
        finally:
            self.watched.raised = plain


def _likely(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """The most likely wrong classes of each image, [P] each."""
    with torch.no_grad():
        logits = Ensemble([model]).logits(images)[0]
    logits = logits.scatter(1, labels[:, None], -torch.inf)
    return list(logits.topk(min(count, logits.shape[1] - 1), dim=1).indices.unbind(1))


def uniform(ball: Ball, images: Tensor, rng: torch.Generator) -> Tensor:
    """Random images of the ball: of a box uniformly, of a sphere's inside in a random direction, else its own start."""
    if isinstance(ball, Linf):
        draw = torch.rand(images.shape, generator=rng).to(images)
        return (images + ball.eps * (2 * draw - 1)).clamp(0, 1)
    if isinstance(ball, L2):
        noise = torch.randn(images.shape, generator=rng).to(images)
        length = ball.eps * torch.rand(len(images), generator=rng).to(images)
        return ball.project(images, images + noise * (length / noise.flatten(1).norm(dim=1))[:, None, None, None])
    return ball.images(images, ball.start(images, rng))


def fixed_steps(attack: Evasion, low: float, high: float, *, shared: bool = False) -> Update:
    """Steps of random or equal lengths, along the sign of the gradient or in its direction, as the ball asks.

    Raises:
        TypeError: The ball is neither Linf nor L2.
    """
    if isinstance(attack.ball, Linf):
        return SignStep(low=low, high=high, shared=shared)
    if isinstance(attack.ball, L2):
        return LengthStep(low=low, high=high, shared=shared)
    raise TypeError(f"{name_of(attack)} knows the balls linf and l2, and not {name_of(attack.ball)}")


def radius(attack: Evasion) -> float:
    """eps of the attack's ball.

    Raises:
        TypeError: The ball has none.
    """
    if isinstance(attack.ball, (Linf, L2)):
        return attack.ball.eps
    raise TypeError(f"{name_of(attack)} knows the balls linf and l2, and not {name_of(attack.ball)}")
