"""The one loop that searches inside a ball (``minimise``), and the objectives it takes.

Gradient matching, feature collision, PGD and adversarial training differ in their objective, their ball and their
update; the loop and the choice of the best restart are here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mithridate.core.balls import Ball, to_floats
from mithridate.core.progress import track
from mithridate.core.updates import SignedAdam, Stepper, Update

Objective = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Images [P, C, H, W] and a generator -> (value [] joint or [P] per image, gradient like the images)."""


def by_autograd(function: Callable[[Tensor, torch.Generator], Tensor]) -> Objective:
    """Makes an objective of a function from images and a generator to a value [] or [P]; differentiates images only.

    >>> by_autograd(lambda images, rng: images.square().sum())(torch.ones(1), torch.Generator())
    (tensor(1.), tensor([2.]))
    """

    def objective(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            value = function(leaf, rng)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return objective


def average(objectives: Sequence[Objective]) -> Objective:
    """Averages objectives, one member of an ensemble each; one graph is alive at a time.

    Every member sees the same random draws, so a member's share does not depend on how many there are.

    >>> both = average([by_autograd(lambda x, rng, k=k: k * x.sum()) for k in (1, 3)])
    >>> both(torch.ones(1), torch.Generator())
    (tensor(2.), tensor([2.]))
    """

    def objective(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        state = rng.get_state()
        value, gradient = objectives[0](images, rng)
        for one in objectives[1:]:
            rng.set_state(state)
            more, slope = one(images, rng)
            value, gradient = value + more, gradient.contiguous().add_(slope)
        return value / len(objectives), gradient.div_(len(objectives))

    return objective


class Found(NamedTuple):
    """The outcome of a search."""

    images: Tensor
    """[P, C, H, W]; uint8, or float where asked for."""
    value: Tensor
    """Objective of these images, [] joint or [P] per image."""


def minimise(
    objective: Objective,
    start: Tensor,
    ball: Ball,
    *,
    steps: int,
    restarts: int = 1,
    update: Update | None = None,
    init: Tensor | None = None,
    between: Callable[[int, Tensor], None] | None = None,
    pixels: Literal["uint8", "float"] = "uint8",
    judged: bool = True,
    label: str = "crafting",
    rng: torch.Generator,
) -> Found:
    """Searches a ball around the start images for the lowest objective.

    Each restart ends with its last iterate, which is rounded to 8-bit pixels inside the ball and evaluated with one
    fixed generator; the restart with the lowest value wins, image by image where the objective is one per image.

    Args:
        objective: images [P, C, H, W] and a generator -> (value [] or [P], gradient).
        start: base images [P, C, H, W] in [0, 1].
        ball: what may change.
        steps: iterations of each restart.
        restarts: independent starts.
        update: how to move; signed Adam unless given.
        init: images [P, C, H, W] near which each search begins, in place of the ball's own start.
        between: called before each step with its number and the images; may advance surrogates (then use one restart).
        pixels: "uint8" rounds the result; "float" keeps the last iterate as it is.
        judged: whether the result of a single start is evaluated; if not, its value is NaN and an evaluation is saved.
        label: what a progress bar says.
        rng: source of all randomness.

    Raises:
        ValueError: no restart is asked for.
    """
    update = update or SignedAdam()
    judged = judged or restarts > 1
    judge = int(torch.randint(2**62, (1,), generator=rng))
    best: Found | None = None
    for number in range(restarts):
        iterations = track(range(steps), f"{label} {number + 1}/{restarts}")
        params = _search(objective, start, ball, update.begin(start, rng), init, iterations, steps, between, rng)
        images = ball.images(start, params).detach()
        final = _rounded(ball, start, images) if pixels == "uint8" else images
        value = start.new_tensor(math.nan)
        if judged:
            floats = to_floats(final) if pixels == "uint8" else final
            value, _ = objective(floats, torch.Generator().manual_seed(judge))
        best = Found(final, value) if best is None else _better(best, Found(final, value))
    if best is None:
        raise ValueError(f"restarts is {restarts}; at least one start is needed")
    return best


def _search(
    objective: Objective,
    start: Tensor,
    ball: Ball,
    stepper: Stepper,
    init: Tensor | None,
    iterations: Iterable[int],
    steps: int,
    between: Callable[[int, Tensor], None] | None,
    rng: torch.Generator,
) -> Tensor:
    params = ball.start(start, rng) if init is None else ball.params_of(start, init)
    for step in iterations:
        params = params.detach().requires_grad_()
        images = ball.images(start, params)
        if between is not None:
            between(step, images.detach())
        value, slope = objective(images.detach(), rng)
        (gradient,) = torch.autograd.grad(images, params, slope)
        penalty = ball.penalty(start, params)
        if penalty.requires_grad:
            gradient = gradient + torch.autograd.grad(penalty, params)[0]
        params = ball.project(start, stepper.step(params.detach(), value, gradient, step / steps))
    return stepper.final(params)


def _rounded(ball: Ball, base: Tensor, images: Tensor) -> Tensor:
    """Rounds some images at a time: the temporaries of all of them would be the search's peak in memory."""
    return torch.cat([ball.rounded(*pair) for pair in zip(base.split(100), images.split(100), strict=True)])


def _better(a: Found, b: Found) -> Found:
    lower = (b.value < a.value) | a.value.isnan()
    return Found(torch.where(lower[..., None, None, None], b.images, a.images), torch.where(lower, b.value, a.value))
