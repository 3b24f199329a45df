"""Sums of balls: the judge against brute force and linear algebra, and the search through flattened parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from mithridate.core.balls import L2, AnyImage, Ball, Linf, Patch, Sum, to_bytes, to_floats
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.recolor import Recolor
from mithridate.core.schema import from_json, to_json
from mithridate.core.seeds import stream
from mithridate.core.updates import Adam, ForwardBackward, SignedAdam, SignStep, Update
from tests.core.ball_cases import BALLS, SUMS, anywhere, pictures

EPS = 8 / 255
UPDATES = [SignedAdam(), Adam(), SignStep(), ForwardBackward(lr=0.1, beta=0.0)]
TWO = Linf(eps=EPS) + Patch(area=0.1)


@dataclass(frozen=True, kw_only=True)
class Tint(Ball):
    """All pixels of a channel move by one amount: parameters [P, C] that are no pixels, with a penalty of their own."""

    reach: float = 0.2
    weight: float = 0.0

    def start(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.reach * (2 * torch.rand(base.shape[:2], generator=rng) - 1).to(base)

    def project(self, base: Tensor, params: Tensor) -> Tensor:
        return params.clamp(-self.reach, self.reach)

    def images(self, base: Tensor, params: Tensor) -> Tensor:
        return (base + params[:, :, None, None]).clamp(0, 1)

    def params_of(self, base: Tensor, images: Tensor) -> Tensor:
        return self.project(base, (images - base).mean((2, 3)))

    def penalty(self, base: Tensor, params: Tensor) -> Tensor:
        return self.weight * params.square().sum()

    def sample(self, base: Tensor, rng: torch.Generator) -> Tensor:
        return self.images(base, self.start(base, rng).sign() * self.reach)

    def contains(self, base: Tensor, images: Tensor) -> Tensor:
        return self.within(base, images, 0.0)

    def within(self, base: Tensor, images: Tensor, slack: float) -> Tensor:
        """Every pixel that is not clipped says which shifts would do; some shift must do for all."""
        slack = slack + 0.5 / 255  # 8-bit pixels
        change, low, high = (images - base).flatten(2), (images > 0).flatten(2), (images < 1).flatten(2)
        most = torch.where(high, change + slack, torch.inf).amin(2).clamp_max(self.reach)
        least = torch.where(low, change - slack, -torch.inf).amax(2).clamp_min(-self.reach)
        return (least <= most + 1e-5).all(1)

    def describe(self) -> str:
        return "each channel moves as a whole"


# --- a setting -------------------------------------------------------------------------------------------------------


def test_sums_are_flat_settings() -> None:
    a, b, c = Linf(eps=0.1), Linf(eps=0.05), L2(eps=1.0)
    assert a + b + c == a + (b + c) == Sum(balls=(a, b, c)) == Sum(balls=(Sum(balls=(a, b)), c))
    assert from_json(to_json(a + c), Ball) == a + c
    assert hash(a + c) == hash(Sum(balls=(a, c)))
    assert (a + Patch()).describe() == f"{a.describe()}, and added to that {Patch().describe()}"
    with pytest.raises(TypeError, match="unsupported operand"):
        a + 0.1  # type: ignore[operator]


@pytest.mark.parametrize(
    "balls",
    [
        (Patch(), Patch()),
        (L2(eps=1), Patch()),
        (Linf(eps=0.1), L2(eps=1), Patch()),
        (Recolor(), L2(eps=1)),
        (Patch(), Linf(eps=0.1), Recolor()),
        (Recolor(),) * 2,
    ],
)
def test_sums_that_cannot_be_judged_are_refused(balls: tuple[Ball, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot be told exactly; add balls of one kind .*or linf to one other ball"):
        Sum(balls=balls)
    with pytest.raises(ValueError, match="a sum of no balls"):
        Sum(balls=())


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", SUMS, ids=lambda ball: " + ".join(map(str, ball.balls)))
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_a_sum_of_one_change_from_each_ball_is_inside(ball: Sum, seed: int, share: float) -> None:
    """As strong as each ball allows, and shrunk at random, pixel by pixel; where colours move, all channels alike."""
    base, rng = pictures(seed, 3), stream(seed, "sum")
    changes = [
        (part.sample(base, rng) - base) * torch.rand(alike(base, part).shape, generator=rng) ** share
        for part in ball.balls
    ]
    images = (base + sum(changes)).clamp(0, 1)
    assert ball.contains(base, images).all()
    rounded = to_floats(ball.rounded(base, images))
    assert ball.contains(base, rounded).all()
    levels = 2.5 if Recolor in map(type, ball.balls) else 1 + 1e-3  # a narrow solid may hold no nearer 8-bit colour
    assert (rounded - images).abs().max() < levels / 255


def alike(base: Tensor, ball: Ball) -> Tensor:
    return base[:, :1] if isinstance(ball, Recolor) else base


def rounded_by_hand(ball: Ball, base: Tensor, images: Tensor) -> Tensor:
    """As each image is rounded by itself, with the marks of a lone ball and of a sum each spelled out."""
    if isinstance(ball, Sum) and len(ball.balls) == 1:
        return rounded_by_hand(ball.balls[0], base, images)
    nearest, results = to_floats(to_bytes(images)), []
    if isinstance(ball, Sum):
        radii = [part.eps for part in ball.balls if isinstance(part, Linf)]
        slack = math.fsum(radii[1:] if len(radii) == len(ball.balls) else radii)
        if any(isinstance(part, AnyImage) for part in ball.balls):
            slack = 0.0
        beyond = [x - base - (x - base).clamp(-slack, slack) for x in (nearest, images)]
        marks = beyond[0].abs() > beyond[1].abs() + 1e-6
    else:
        marks = (ball.project(base, nearest) - nearest).abs() > 1e-6
    for b, x, marked in zip(base, images, marks, strict=True):
        towards = (b * 255).round() + ((x - b) * 255).trunc()
        tried = [to_bytes(x), torch.where(marked, towards.byte(), to_bytes(x)), towards.byte()]
        fits = (one for one in tried if ball.contains(b[None], to_floats(one)[None]).item())
        results.append(next(fits, tried[-1]))
    return torch.stack(results)


@pytest.mark.parametrize("ball", [ball for ball in BALLS if "Recolor" not in str(ball)], ids=str)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_rounding_is_to_the_bit_the_one_written_out_by_hand(ball: Ball, seed: int) -> None:
    base, rng = pictures(seed, 3), stream(seed, "by hand")
    for images in (ball.sample(base, rng), ball.images(base, ball.project(base, ball.start(base, rng)))):
        images = images.clamp(0, 1)
        assert torch.equal(ball.rounded(base, images), rounded_by_hand(ball, base, images))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), far=st.integers(0, 60), high=st.integers(1, 4), wide=st.integers(1, 4))
def test_linf_and_a_patch_by_brute_force(seed: int, far: int, high: int, wide: int) -> None:
    """Everywhere at most 8 levels; inside one rectangle of high x wide pixels up to 8 + far."""
    rng = np.random.default_rng(seed)
    base, change = rng.integers(100, 150, (1, 3, 8, 8)), rng.integers(-8, 9, (1, 3, 8, 8))
    top, left = rng.integers(0, 9 - high), rng.integers(0, 9 - wide)
    corner = np.s_[0, 1, [top, top + high - 1], [left, left + wide - 1]]
    change[corner] = 8 + far
    expected = far == 0 or high * wide <= 0.1 * 64
    images = [torch.tensor(levels / 255, dtype=torch.float32) for levels in (base, base + change)]
    assert TWO.contains(*images).item() == expected


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), scale=st.floats(0.02, 0.2))
def test_linf_and_l2_by_least_squares(seed: int, scale: float) -> None:
    """The shortest change that a box leaves over is a bounded least-squares problem."""
    rng = np.random.default_rng(seed)
    base, change = rng.uniform(0.3, 0.7, 12), scale * rng.standard_normal(12)
    left = change - lsq_linear(np.eye(12), change, (-EPS, EPS), tol=1e-14).x
    length = float(np.linalg.norm(left))
    images = [torch.tensor(x, dtype=torch.float64).view(1, 3, 2, 2) for x in (base, base + change)]
    for eps, expected in ((length * 1.01 + 1e-4, True), (length * 0.99 - 1e-4, False)):
        if eps > 0:
            assert (Linf(eps=EPS) + L2(eps=eps)).contains(*images).item() == expected


def test_radii_of_one_kind_add_up() -> None:
    base = torch.full((3, 1, 2, 2), 0.5)
    moves = torch.tensor([0.1, 0.3, 0.301])[:, None, None, None].expand_as(base)
    assert (Linf(eps=0.1) + Linf(eps=0.2)).contains(base, base + moves).tolist() == [True, True, False]
    assert (L2(eps=0.2) + L2(eps=0.4)).contains(base, base + moves).tolist() == [True, True, False]  # 4 pixels: x 2
    with_box = Linf(eps=0.1) + Linf(eps=0.1) + L2(eps=0.1) + L2(eps=0.1)
    assert with_box.contains(base, base + moves).tolist() == [True, True, False]
    assert (Linf(eps=0.01) + AnyImage()).contains(base, 1.5 * moves).all()


def test_a_sum_is_larger_than_its_parts_and_ends_somewhere() -> None:
    base = torch.full((1, 3, 8, 8), 0.5)
    everywhere, corner = base + EPS, base.clone()
    corner[:, :, :2, :2] = 1
    both = torch.maximum(everywhere, corner)
    assert all(TWO.contains(base, images).item() for images in (everywhere, corner, both))
    assert not any(part.contains(base, both).item() for part in TWO.balls)
    assert not TWO.contains(base, both + 1 / 255).item()
    both[:, :, 7, 7] += 2 / 255
    assert not TWO.contains(base, both).item()


def test_a_change_that_ends_at_white_may_come_from_more_than_it_shows() -> None:
    base = torch.full((1, 1, 4, 4), 0.95)
    ball = Linf(eps=0.2) + L2(eps=0.2)
    images = ball.images(base, ball.start(base, stream(0)) + 1)
    assert images.max() <= 1
    assert ball.contains(base, images.clamp(0, 1)).all()


# --- one ball, and balls whose parameters are no pixels --------------------------------------------------------------


@pytest.mark.parametrize(
    ("ball", "update"),
    [
        *((Linf(eps=EPS), update) for update in UPDATES),
        *((ball, SignedAdam()) for ball in (L2(eps=0.5), Patch(area=0.2), AnyImage())),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [True, False])
def test_a_sum_of_one_ball_is_that_ball_to_the_bit(ball: Ball, update: Update, last: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    base = pictures(30).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    objective = by_autograd(lambda x, rng: network(x)[:, 0])
    found, same = (
        minimise(objective, base, b, steps=4, restarts=2, update=update, rng=stream(7))
        for b in (ball, Sum(balls=(ball,)))
    )
    assert torch.equal(found.images, same.images)
    assert torch.equal(found.value, same.value)
    assert torch.equal(ball.sample(base, stream(1)), Sum(balls=(ball,)).sample(base, stream(1)))


def test_a_search_in_a_sum_gets_lower_than_in_either_ball_and_adds_up() -> None:
    """A linear objective: the box gives eps on every pixel, the patch the rest of the range in its window."""
    base, direction = torch.full((3, 3, 8, 8), 0.5), torch.randn(3, 3, 8, 8, generator=stream(8)).abs() + 0.5
    objective = by_autograd(lambda x, rng: ((x - base) * direction).flatten(1).sum(1))
    values = [
        minimise(objective, base, ball, steps=100, update=SignStep(low=0.02, high=0.02), rng=stream(9)).value
        for ball in (*TWO.balls, TWO)
    ]
    assert (values[2] < values[0] - 0.5).all()
    assert (values[2] < values[1] - 0.5).all()
    box, window = EPS * direction.flatten(1).sum(1), nn.functional.avg_pool2d(direction, 2, 1).sum(1) * 4 * (0.5 - EPS)
    assert (values[2] > -box - window.flatten(1).amax(1) - 1e-2).all()


def test_a_pixel_that_left_the_range_comes_back() -> None:
    """The clip hides the gradient of no ball: a sum that starts beyond white still finds the way to grey."""
    base = torch.full((1, 1, 2, 2), 0.9)
    ball = Linf(eps=0.2) + Linf(eps=0.15)
    found = minimise(
        by_autograd(lambda x, rng: (x - 0.8).square().sum()),
        base,
        ball,
        steps=60,
        update=Adam(lr=0.02),
        init=torch.ones_like(base),
        rng=stream(0),
    )
    assert (to_floats(found.images) - 0.8).abs().max() < 0.01


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: type(update).__name__)
def test_parameters_of_any_shape_are_searched(update: Update) -> None:
    """Tint alone moves [P, C]; with a box around it [P, C + C H W]."""
    base = to_floats((100 + 50 * pictures(31)).to(torch.uint8))
    goal = base + torch.tensor([0.1, -0.1, 0.05])[:, None, None] + 0.02 * torch.sign(pictures(32) - 0.5)
    objective = by_autograd(lambda x, rng: (x - goal).square().flatten(1).sum(1))
    ends = {}
    for ball in (Tint(), Linf(eps=EPS), Tint() + Linf(eps=EPS)):
        found = minimise(objective, base, ball, steps=80, update=update, rng=stream(0))
        assert ball.contains(base, to_floats(found.images)).all()
        ends[str(ball)] = found.value
    alone, box, both = ends.values()
    assert (both < 0.8 * alone).all()
    assert (both < 0.8 * box).all()


def test_a_penalty_counts_for_the_parameters_of_its_own_ball() -> None:
    base = pictures(33).mul(100).add(100).div(255)
    objective = by_autograd(lambda x, rng: -x.sum())
    ball = Tint(reach=0.2, weight=1e6) + Linf(eps=EPS)
    found = minimise(objective, base, ball, steps=100, update=Adam(lr=0.01, decay=True), pixels="float", rng=stream(0))
    torch.testing.assert_close(found.images, base + EPS, atol=2e-2, rtol=0)
    params = ball.start(base, stream(1))
    assert ball.penalty(base, params).item() == pytest.approx(1e6 * float(params[:, :3].square().sum()), rel=1e-5)


def test_a_search_begins_near_the_images_it_is_given() -> None:
    base, goal = pictures(34), anywhere(pictures(34), 3).clamp(0, 1)
    for ball in (TWO, Tint() + Linf(eps=EPS)):
        start = ball.images(base, ball.params_of(base, goal))
        assert (start - goal).square().sum() < (base - goal).square().sum()
        found = minimise(by_autograd(lambda x, rng: x.sum()), base, ball, steps=0, init=goal, rng=stream(0))
        assert (to_floats(found.images) - start).abs().max() < 1.01 / 255
    inside = to_floats(to_bytes(TWO.sample(base, stream(5))))
    assert TWO.contains(base, TWO.images(base, TWO.params_of(base, inside))).all()


def test_a_penalty_on_pixels_needs_pixels() -> None:
    for ball in (Tint(), TWO):
        with pytest.raises(TypeError, match=r"holds pixels near those of the base, but .* use beta=0"):
            minimise(
                by_autograd(lambda x, rng: x.flatten(1).sum(1)),
                pictures(35),
                ball,
                steps=1,
                update=ForwardBackward(beta=0.25),
                rng=stream(0),
            )


def test_no_steps_of_splitting_return_the_start() -> None:
    base, goal = pictures(36), pictures(37)
    objective = by_autograd(lambda x, rng: x.flatten(1).sum(1))
    found = minimise(objective, base, AnyImage(), steps=0, update=ForwardBackward(), init=goal, rng=stream(0))
    assert torch.equal(found.images, to_bytes(goal))
