"""What a perturbation may do to an image: ``Ball`` and its members (``Recolor`` has a module of its own)."""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.pixels import EDGE, clipped, rounded_inwards, to_bytes as to_bytes, to_floats as to_floats
from mithridate.core.schema import Choice, name_of


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng).to(like)


def _uniform(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=rng).to(like)


class Ball(Choice, ABC):
    """The set of images allowed around each base image. Images are [P, C, H, W] floats in [0, 1].

    The search moves *parameters* [P, ...] of the shape that ``start`` returns. They are the pixels themselves, unless a
    ball has ``images``, ``params_of`` and ``rounded`` of its own. Balls can be added: ``Linf(eps=8 / 255) + Patch()``
    allows one change from each.

    >>> inside = Linf(eps=8 / 255) + Patch(area=0.25)
    >>> base = torch.zeros(1, 1, 4, 4)
    >>> inside.contains(base, base + 8 / 255).tolist(), inside.contains(base, base + 0.5).tolist()
    ([True], [False])
    """

    home: ClassVar[str] = "mithridate.core.moved"  # which imports this module and recolor: all members

    @abstractmethod
    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        """Returns where a search starts: parameters inside the ball."""

    @abstractmethod
    def project(self, base: Tensor, params: Tensor) -> Tensor:
        """Returns the parameters moved back into the ball and the pixel range."""

    @abstractmethod
    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        """Returns random images as strong as the ball allows: the control that every attack must beat."""

    @abstractmethod
    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        """Tells for each image [P] whether it lies in the ball: the harness's own test."""

    @abstractmethod
    def describe(self) -> str:
        """Says in words what may change."""

    def __add__(self, other: Ball) -> Sum:
        return Sum(balls=(self, other)) if isinstance(other, Ball) else NotImplemented

    def images(self, base: Tensor, params: Tensor) -> Tensor:
        """Returns the images of the parameters, differentiably."""
        return params

    def params_of(self, base: Tensor, images: Tensor) -> Tensor:
        """Returns parameters in the ball whose images come near the given ones: where a search may begin."""
        return self.project(base, images)

    def penalty(self, base: Tensor, params: Tensor) -> Tensor:
        """Returns what the ball itself adds to the objective, []."""
        return params.new_zeros(())

    def within(self, base: Tensor, images: Tensor, slack: float) -> Tensor:
        """Tells for each image [P] whether some image of the ball is at most `slack` away from it in every pixel.

        As it stands, for balls that hold with an image all that lie between it and the base, pixel by pixel.
        """
        near = (images - base).clamp(-slack - EDGE, slack + EDGE)
        return self.contains(base, images - near)

    def rounded(self, base: Tensor, images: Tensor, slack: float | None = None) -> Tensor:
        """Returns uint8 images inside the ball, or at most `slack` away from one, for such images and an 8-bit base.

        The nearest pixels; those that overstep are truncated towards the base, all of the image where need be. A
        pixel oversteps that the projection would move or, with a slack, whose change grew by more than the slack.
        """
        nearest = to_floats(to_bytes(images))
        if slack is None:
            outside = (self.project(base, nearest) - nearest).abs() > EDGE
        else:
            used, given = ((x - base - (x - base).clamp(-slack, slack)).abs() for x in (nearest, images))
            outside = used > given + EDGE
        return rounded_inwards(lambda found: self._near(base, found, slack), base, images, outside)

    def _near(self, base: Tensor, images: Tensor, slack: float | None) -> Tensor:
        return self.within(base, images, slack) if slack else self.contains(base, images)


@dataclass(frozen=True, kw_only=True)
class Linf(Ball):
    """Every pixel may move by at most eps.

    >>> Linf(eps=8 / 255).describe()
    'every pixel value moves by at most 8/255 (Linf)'
    """

    eps: float
    """Largest change of a pixel value, in [0, 1] units (8/255, not 8)."""

    def __post_init__(self) -> None:
        eps = self.eps
        if not eps > 0:
            raise ValueError(f"eps is {eps}; it must be positive, in pixels of [0, 1] (for example 8/255)")
        if eps > 1:
            raise ValueError(
                f"eps is {eps:g}; pixels lie in [0, 1], so write {eps:g}/255 = {eps / 255:.4f} for {eps:g} of 255"
            )
        if eps > 64 / 255 + EDGE:
            warnings.warn(f"eps is {eps:.3f} (more than 64/255): such poisons are plain to see", stacklevel=3)

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.project(base, _normal(base, rng).mul_(self.eps).add_(base))

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return (params - base).clamp_(-self.eps, self.eps).add_(base).clamp_(0, 1)

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.project(base, _normal(base, rng).sign_().mul_(self.eps).add_(base))

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        return (images - base).abs().flatten(1).amax(1) <= self.eps + EDGE

    def describe(self) -> str:
        return f"every pixel value moves by at most {self.eps * 255:.3g}/255 (Linf)"


@dataclass(frozen=True, kw_only=True)
class L2(Ball):
    """The change of each image has at most Euclidean length eps.

    >>> L2(eps=0.5).contains(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.3, 0.5]]]])).tolist()
    [False]
    """

    eps: float
    """Largest Euclidean norm of the change of one image, pixels in [0, 1]."""

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; an L2 radius must be positive (pixels are in [0, 1])")

    def _scaled(self, base: Tensor, change: Tensor) -> Tensor:
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12)
        return change * (self.eps / length).clamp_max(1)[:, None, None, None]

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.project(base, base + self.eps * _normal(base, rng) / base[0].numel() ** 0.5)

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return base + self._scaled(base, (params - base).clamp(-base, 1 - base))

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        noise = _normal(base, rng)
        return self.project(base, base + self.eps * noise / noise.flatten(1).norm(dim=1)[:, None, None, None])

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        return (images - base).flatten(1).norm(dim=1) <= self.eps * (1 + EDGE) + EDGE

    def describe(self) -> str:
        return f"the change of each image has Euclidean norm at most {self.eps:g} (L2)"


@dataclass(frozen=True, kw_only=True)
class AnyImage(Ball):
    """Any image at all: the change is bounded by nothing but the attack's own penalty.

    >>> AnyImage().contains(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).tolist()
    [True]
    """

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return base.clone()

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return params.clamp(0, 1)

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return _uniform(base, rng)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return (flat.amin(1) >= -EDGE) & (flat.amax(1) <= 1 + EDGE)

    def describe(self) -> str:
        return "any image may take the place of a poisoned one (no bound)"


@dataclass(frozen=True, kw_only=True)
class Patch(Ball):
    """One rectangle of each image may change freely; a search moves the largest square in it.

    >>> Patch(area=0.1).describe()
    'one rectangle of at most 10 % of each image changes freely'
    """

    area: float = 0.1
    """Largest share of the image that the rectangle covers, 0..1."""

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area}; it is a share of the image, so use 0.1 for 10 %")

    def _side(self, base: Tensor) -> int:
        h, w = base.shape[2:]
        side = min(h, w, int((self.area * h * w) ** 0.5 + EDGE))
        if side < 1:
            raise ValueError(f"area is {self.area}, less than one pixel of {h}x{w}; use at least 1/{h * w}")
        return side

    def _window(self, base: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Returns the mask [P, 1, H, W] of the largest square with these corners [P]."""
        side = self._side(base)
        y, x = (torch.arange(n, device=base.device) for n in base.shape[2:])
        rows = (y >= top[:, None]) & (y < top[:, None] + side)
        columns = (x >= left[:, None]) & (x < left[:, None] + side)
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.sample(base, rng)

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        energy = (params - base).square().sum(1, keepdim=True)
        inside = F.avg_pool2d(energy, self._side(base), stride=1)
        corner = inside.flatten(1).argmax(1)
        mask = self._window(base, corner // inside.shape[3], corner % inside.shape[3])
        return torch.where(mask, params.clamp(0, 1), base)

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        room = torch.tensor([n - self._side(base) + 1 for n in base.shape[2:]])
        corner = (torch.rand(len(base), 2, generator=rng) * room).long().to(base.device)
        return torch.where(self._window(base, corner[:, 0], corner[:, 1]), _uniform(base, rng), base)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        changed = ((images - base).abs() > EDGE).any(1)
        height = _extent(changed.any(2))
        width = _extent(changed.any(1))
        return height * width <= self.area * changed[0].numel() + EDGE

    def describe(self) -> str:
        return f"one rectangle of at most {self.area * 100:.3g} % of each image changes freely"


@dataclass(frozen=True, kw_only=True)
class Sum(Ball):
    """One change from each of several balls: the changes are added and the image is clipped to [0, 1].

    Only sums that can be judged exactly: of one kind (linf + linf, l2 + l2), of linf with one other ball, or with
    any-image. A search moves the parameters of all balls at once, flattened side by side: [P, D1 + D2 + ...].

    Raises:
        ValueError: no ball, or a sum that cannot be judged.

    >>> print((Linf(eps=8 / 255) + Patch(area=0.1)).describe())
    every pixel value moves by at most 8/255 (Linf), and added to that one rectangle of at most 10 % of each image
    changes freely
    """

    balls: tuple[Ball, ...]
    """The balls whose changes are added; a sum among them counts as its parts. As text: linf(eps=1/255)+patch."""

    def __post_init__(self) -> None:
        parts = tuple(part for ball in self.balls for part in (ball.balls if isinstance(ball, Sum) else (ball,)))
        if not parts:
            raise ValueError("a sum of no balls allows nothing; add at least one")
        object.__setattr__(self, "balls", parts)
        self._as_one_and_slack()

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return _side_by_side([ball.start(base, rng) for ball in self.balls])

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return _side_by_side([ball.project(base, part) for ball, part in self._parts(base, params)])

    def images(self, base: Tensor, params: Tensor) -> Tensor:
        return clipped(_added(base, [ball.images(base, part) for ball, part in self._parts(base, params)]))

    def params_of(self, base: Tensor, images: Tensor) -> Tensor:
        found = []
        for ball in self.balls:  # the first takes what it can, the next what is left
            found.append(ball.params_of(base, images))
            images = images - (ball.images(base, found[-1]) - base)
        return _side_by_side(found)

    def penalty(self, base: Tensor, params: Tensor) -> Tensor:
        return torch.stack([ball.penalty(base, part) for ball, part in self._parts(base, params)]).sum()

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return _added(base, [ball.sample(base, rng) for ball in self.balls]).clamp(0, 1)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        one, slack = self._as_one_and_slack()
        return one._near(base, images, slack)

    def rounded(self, base: Tensor, images: Tensor, slack: float | None = None) -> Tensor:
        one, own = self._as_one_and_slack()
        return one.rounded(base, images, slack if len(self.balls) == 1 else own + (slack or 0.0))

    def describe(self) -> str:
        return ", and added to that ".join(ball.describe() for ball in self.balls)

    def _parts(self, base: Tensor, params: Tensor) -> list[tuple[Ball, Tensor]]:
        """Each ball with its own parameters, in their own shape and in the memory layout of the base."""
        shapes = _shapes(self.balls, tuple(base.shape[1:]))
        flat = params.split([math.prod(shape) for shape in shapes], 1)
        last = base.is_contiguous(memory_format=torch.channels_last)
        parts = [part.reshape(len(base), *shape) for part, shape in zip(flat, shapes, strict=True)]
        layout = [torch.channels_last if last and part.ndim == 4 else torch.contiguous_format for part in parts]
        return [(b, p.contiguous(memory_format=x)) for b, p, x in zip(self.balls, parts, layout, strict=True)]

    def _as_one_and_slack(self) -> tuple[Ball, float]:
        """The same set as one ball and a Linf radius around it: equal kinds add up, and any-image holds the others."""
        boxes = [ball for ball in self.balls if isinstance(ball, Linf)]
        round_ones = [ball for ball in self.balls if isinstance(ball, L2)]
        rest = [ball for ball in self.balls if not isinstance(ball, (Linf, L2))]
        if len(self.balls) == 1:
            return self.balls[0], 0.0
        if any(isinstance(ball, AnyImage) for ball in rest):
            return AnyImage(), 0.0
        if round_ones:
            rest.append(L2(eps=math.fsum(ball.eps for ball in round_ones)))
        if len(rest) > 1:
            raise ValueError(
                f"whether an image lies in the sum of {' and '.join(map(name_of, rest))} cannot be told exactly; add "
                "balls of one kind (linf + linf, l2 + l2), or linf to one other ball"
            )
        slack = math.fsum(ball.eps for ball in boxes)
        return (rest[0], slack) if rest else (boxes[0], slack - boxes[0].eps)


def _added(base: Tensor, images: list[Tensor]) -> Tensor:
    """The base with the changes of all images [P, C, H, W] added; not clipped. One image stays as it is, to the bit."""
    return functools.reduce(lambda total, more: total + (more - base), images)


def _side_by_side(params: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in params], 1)


@functools.lru_cache(maxsize=64)
def _shapes(balls: tuple[Ball, ...], image: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the parameters that each ball has for one image [C, H, W]."""
    return [tuple(ball.start(torch.zeros(1, *image), torch.Generator()).shape[1:]) for ball in balls]


def _extent(marks: Tensor) -> Tensor:
    """Returns for each row of marks [P, n] the length from the first to the last mark; 0 where there is none."""
    n = marks.shape[1]
    position = torch.arange(n, device=marks.device)
    first = torch.where(marks, position, n).amin(1)
    last = torch.where(marks, position, -1).amax(1)
    return (last - first + 1).clamp_min(0)
