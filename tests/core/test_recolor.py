"""The colour grid against scipy's interpolation, loops and finite differences; its judge against linear programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import linprog
from torch import Tensor

from mithridate.core.balls import L2, Ball, Linf, Sum, to_floats
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.recolor import Recolor
from mithridate.core.schema import from_json, parse, to_json
from mithridate.core.seeds import stream
from mithridate.core.updates import Adam
from tests.core.ball_cases import pictures

YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
RGB = np.linalg.inv(YUV)
TWO = Recolor(eps=0.04) + Linf(eps=8 / 255)


def middling(seed: int, count: int = 2, channels: int = 3, side: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels far from both ends of the range."""
    return 0.3 + 0.4 * torch.rand(count, channels, side, side, generator=stream(seed, "middling"), dtype=dtype)


def grids(ball: Recolor, base: Tensor, seed: int) -> Tensor:
    """Random displacements, up to eps."""
    still = ball.start(base, stream(0))
    return ball.eps * (2 * torch.rand(still.shape, generator=stream(seed, "grid"), dtype=base.dtype) - 1)


# --- a setting -------------------------------------------------------------------------------------------------------


def test_it_is_read_from_text_and_from_json() -> None:
    assert parse(Ball, "recolor(eps=0.04)+linf(eps=8/255)") == TWO
    assert parse(Ball, "linf:eps=8/255+recolor") == Linf(eps=8 / 255) + Recolor()
    assert from_json(to_json(TWO), Ball) == TWO
    assert from_json(to_json(Recolor(grid=4, smoothness=0.5)), Ball) == Recolor(grid=4, smoothness=0.5)
    several = Linf(eps=0.01) + Recolor() + Linf(eps=0.02)
    assert isinstance(several, Sum)
    assert several.balls[1] == Recolor()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps is 0.0; it is a change of Y, U and V"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 8}, r"eps is 8; .* use 0\.04"),
        ({"grid": 1}, "grid is 1; each axis needs"),
        ({"smoothness": -1.0}, "smoothness is -1.0; a weight"),
        ({"smoothness": float("inf")}, "smoothness is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recolor(**settings)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_without_colour_or_brightness_are_refused(channels: int) -> None:
    base = pictures(0, channels=channels)
    for use in (lambda: Recolor().start(base, stream(0)), lambda: Recolor().contains(base, base)):
        with pytest.raises(ValueError, match=rf"images have {channels} channels; .* 3 \(RGB\) or 1 \(grey\)"):
            use()


# --- the map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_still_grid_returns_the_images_to_the_bit(channels: int, dtype: torch.dtype) -> None:
    base = torch.cat([pictures(1, channels=channels), torch.rand(4, channels, 8, 8, generator=stream(2))]).to(dtype)
    for ball in (Recolor(), Recolor(grid=2), Sum(balls=(Recolor(),))):
        still = ball.start(base, stream(0))
        assert still.abs().max() == 0
        assert torch.equal(ball.images(base, still), base)


def test_the_same_shift_of_brightness_everywhere_brightens_every_pixel_alike() -> None:
    base = middling(3)
    params = Recolor().start(base, stream(0))
    params[..., 0] = 0.03
    torch.testing.assert_close(Recolor().images(base, params), base + 0.03, atol=1e-6, rtol=0)
    grey = middling(3, channels=1)
    moved = Recolor().images(grey, torch.full((2, 10, 1), -0.03, dtype=grey.dtype))
    torch.testing.assert_close(moved, grey - 0.03, atol=1e-12, rtol=0)


@pytest.mark.parametrize("points", [2, 5, 10])
def test_colours_between_the_points_against_scipy(points: int) -> None:
    """Among them a red whose V lies beyond the grid: it moves as the grid's end."""
    ball, base = Recolor(eps=0.01, grid=points), middling(4, side=6)
    base[:, :, 0, 0] = torch.tensor([0.96, 0.05, 0.05], dtype=base.dtype)
    params = grids(ball, base, 5)
    axes = np.linspace(0, 1, points), np.linspace(-0.5, 0.5, points), np.linspace(-0.5, 0.5, points)
    colours = np.einsum("ij,pjhw->phwi", YUV, base.numpy())
    assert colours[..., 2].max() > 0.5
    colours[..., 1:] = colours[..., 1:].clip(-0.5, 0.5)
    moves = [RegularGridInterpolator(axes, grid.numpy())(c) for grid, c in zip(params, colours, strict=True)]
    expected = base.numpy() + np.einsum("ij,phwj->pihw", RGB, np.stack(moves))
    np.testing.assert_allclose(ball.images(base, params).numpy(), expected, atol=1e-12)


def test_brightness_between_the_points_against_numpy() -> None:
    ball, base = Recolor(eps=0.04, grid=7), middling(6, channels=1)
    params = grids(ball, base, 7)
    moves = [np.interp(b.numpy(), np.linspace(0, 1, 7), grid[:, 0]) for b, grid in zip(base, params, strict=True)]
    np.testing.assert_allclose(ball.images(base, params).numpy(), base.numpy() + np.stack(moves), atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_by_finite_differences(channels: int) -> None:
    ball, base = Recolor(eps=0.02, grid=3), middling(8, channels=channels, side=3)
    params = grids(ball, base, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ball.images(base, p), params)
    assert torch.autograd.gradcheck(lambda p: ball.penalty(base, p), params)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), eps=st.floats(0.002, 0.3), channels=st.sampled_from([1, 3]))
def test_a_change_that_leaves_the_range_is_shortened_and_keeps_its_direction(
    seed: int, eps: float, channels: int
) -> None:
    ball, base = Recolor(eps=eps, grid=3), pictures(seed, 3, channels).double()
    params = grids(ball, base, seed)
    images = ball.images(base, params)
    assert images.min() >= 0
    assert images.max() <= 1
    assert ball.contains(base, images).all()
    whole = unshortened(ball, base, params)
    share = ((images - base) * whole).sum(1, keepdim=True) / whole.square().sum(1, keepdim=True)
    torch.testing.assert_close(images, base + share * whole, atol=1e-6, rtol=0)
    ends = torch.where(whole > 0, 1 - base, base) / whole.abs()
    longest, binding = ends.min(1, keepdim=True)
    missed = (share - longest.clamp_max(1)) * whole.gather(1, binding)
    assert missed.abs().max() < 1e-6


def unshortened(ball: Recolor, base: Tensor, params: Tensor) -> Tensor:
    """The RGB displacement of each pixel by scipy, wherever it leads."""
    axes = [np.linspace(0, 1, ball.grid), *[np.linspace(-0.5, 0.5, ball.grid)] * 2][: base.shape[1]]
    matrix = YUV if base.shape[1] == 3 else np.eye(1)
    colours = np.moveaxis(np.einsum("ij,pjhw->pihw", matrix, base.numpy()), 1, -1)
    colours = np.stack([colours[..., i].clip(axis[0], axis[-1]) for i, axis in enumerate(axes)], -1)
    moves = np.stack([RegularGridInterpolator(axes, g.numpy())(c) for g, c in zip(params, colours, strict=True)])
    return torch.tensor(np.einsum("ij,phwj->pihw", np.linalg.inv(matrix), moves))


def test_a_white_pixel_still_says_where_to_go() -> None:
    """The gradient of a shortened pixel is that of the whole displacement, so it can come back."""
    base, ball = torch.ones(1, 3, 1, 1), Recolor()
    params = torch.full((1, 10, 10, 10, 3), 0.04, requires_grad=True)
    (slope,) = torch.autograd.grad(ball.images(base, params).sum(), params)
    assert slope.sum((0, 1, 2, 3))[0].item() == pytest.approx(3, abs=1e-3)


def test_a_red_that_is_full_does_not_keep_blue_from_moving() -> None:
    """U moves red by a hundred-thousandth of itself (the digits of the standard): no reason to stop."""
    base = torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1)
    params = Recolor().start(base, stream(0))
    params[..., 1] = -0.04
    images = Recolor().images(base, params)
    expected = base[0, :, 0, 0] - 0.04 * torch.tensor(RGB[:, 1], dtype=torch.float32)
    torch.testing.assert_close(images[0, :, 0, 0], expected.clamp_max(1), atol=1e-6, rtol=0)
    assert Recolor().contains(base, images).all()


# --- where a search begins -------------------------------------------------------------------------------------------


def test_the_map_nearest_to_images_by_a_loop() -> None:
    base, ball = middling(10, 2, 1, 5), Recolor(eps=0.05, grid=6)
    images = base + 0.1 * (torch.rand(base.shape, generator=stream(11), dtype=base.dtype) - 0.5)
    for b, image, found in zip(base.flatten(1), images.flatten(1), ball.params_of(base, images), strict=True):
        for point in range(6):
            weights = [max(0.0, 1 - abs(5 * float(value) - point)) for value in b]
            total = sum(w * float(x - y) for w, x, y in zip(weights, image, b, strict=True))
            mean = total / sum(weights) if sum(weights) else 0.0
            assert found[point].item() == pytest.approx(min(max(mean, -0.05), 0.05), abs=1e-12)


def test_a_shift_of_all_colours_is_found_where_there_are_colours() -> None:
    base, ball, shift = middling(12, 2, side=8), Recolor(), np.array([0.02, -0.01, 0.03])
    images = base + torch.tensor(RGB @ shift)[:, None, None]
    params = ball.params_of(base, images)
    touched = params.abs().sum(-1) > 0
    assert 0 < touched.double().mean() < 0.5
    torch.testing.assert_close(params[touched], torch.tensor(shift).expand(int(touched.sum()), 3))
    torch.testing.assert_close(ball.images(base, params), images)
    assert (ball.params_of(base, base + 1).abs() <= 0.04).all()


def test_a_search_can_begin_inside_a_block_without_gradients() -> None:
    base = pictures(13)
    with torch.no_grad():
        params = TWO.params_of(base, base + 0.02)
    assert not params.requires_grad
    assert (TWO.images(base, params) - base).abs().max() > 0


# --- smoothness ------------------------------------------------------------------------------------------------------


def test_a_map_that_is_the_same_everywhere_is_smooth() -> None:
    base = pictures(14)
    params = torch.tensor([0.01, -0.02, 0.03]).expand(4, 10, 10, 10, 3)
    assert Recolor().penalty(base, params).item() == 0
    assert Recolor(smoothness=0).penalty(base, grids(Recolor(), base, 0)).item() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_smoothness_by_a_loop(channels: int) -> None:
    ball, base = Recolor(grid=3, smoothness=0.7), middling(15, channels=channels)
    params = grids(ball, base, 16)
    squares = []
    for axis in range(1, channels + 1):
        array = np.moveaxis(params.numpy(), axis, 0)
        squares += [(3 * (array[i] - array[i + 1])) ** 2 for i in range(2)]
    assert ball.penalty(base, params).item() == pytest.approx(0.7 * np.mean(squares))


# --- the judge -------------------------------------------------------------------------------------------------------


def reach(change: np.ndarray, eps: float, slack: float) -> float:
    """The largest multiple of a change [3] that is RGB @ v + b with |v| <= eps, |b| <= slack: a linear program."""
    equal = np.hstack([RGB, np.eye(3), -change[:, None]])
    bounds = [(-eps, eps)] * 3 + [(-slack, slack)] * 3 + [(0, None)]
    return linprog([0] * 6 + [-1], A_eq=equal, b_eq=np.zeros(3), bounds=bounds).x[-1]


@pytest.mark.parametrize("seed", range(40))
def test_recolouring_and_a_box_by_linear_programs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    eps, slack = rng.uniform(0.01, 0.1), rng.choice([0.0, rng.uniform(0.001, 0.1)])
    towards_a_corner = RGB @ rng.choice([-1, 1], 3) + rng.uniform(0, 3) * rng.choice([-1, 1], 3)
    change = rng.standard_normal(3) if seed % 2 else towards_a_corner
    change *= reach(change, eps, slack)
    base = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)
    images = base.clone()
    for row, share in enumerate((0.5, 0.999, 1.001, 1.5)):
        images[row, :, 1, 0] += torch.tensor(share * change)
    ball = Recolor(eps=eps) + Linf(eps=slack) if slack else Recolor(eps=eps)
    assert ball.contains(base, images).tolist() == [True, True, False, False]
    assert Recolor(eps=eps).within(base, images, slack).tolist() == [True, True, False, False]


def test_grey_changes_add_up() -> None:
    base = torch.full((3, 1, 2, 2), 0.5)
    images = base + torch.tensor([0.039, 0.059, 0.061])[:, None, None, None]
    assert Recolor().contains(base, images).tolist() == [True, False, False]
    assert (Linf(eps=0.02) + Recolor()).contains(base, images).tolist() == [True, True, False]


def test_a_change_of_every_axis_has_its_bound() -> None:
    base = torch.full((2, 3, 4, 4), 0.5)
    for axis in range(3):
        images = base.clone()
        images[:, :, 2, 3] += torch.tensor([[0.0399], [0.0401]]) * torch.tensor(RGB[:, axis], dtype=torch.float32)
        assert Recolor().contains(base, images).tolist() == [True, False]


# --- 8-bit pixels ----------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    eps=st.floats(0.0005, 0.2),
    slack=st.one_of(st.just(0.0), st.floats(0.0005, 0.1)),
    channels=st.sampled_from([1, 3]),
    strong=st.booleans(),
)
def test_8_bit_pixels_stay_in_the_ball(seed: int, eps: float, slack: float, channels: int, strong: bool) -> None:
    rng, ball = stream(seed, "8 bits"), Recolor(eps=eps, grid=3)
    base = pictures(seed, 4, channels)
    base[0], base[1] = 0, 1
    coloured = ball.sample(base, rng) if strong else ball.images(base, grids(ball, base, seed))
    noise = slack * (2 * torch.rand(base.shape, generator=rng) - 1)
    images = (coloured + (noise.sign() * slack if strong else noise)).clamp(0, 1)
    both = ball + Linf(eps=slack) if slack else ball
    found = both.rounded(base, images)
    assert found.dtype == torch.uint8
    assert both.contains(base, to_floats(found)).all()
    assert torch.equal(found, ball.rounded(base, images, slack))
    moved = (to_floats(found) - images).abs() * 255
    shortened = (images - base).abs() * 255 * min(1.0, 0.5 / (255 * slack)) if slack else torch.tensor(2.0)
    assert (moved <= 0.5 + shortened + 1e-3).all()


def test_pixels_that_fit_are_rounded_to_the_nearest() -> None:
    base = pictures(17)
    images = Recolor(eps=0.02).sample(base, stream(18))
    for ball in (Recolor(eps=0.04), Recolor(eps=0.04) + Linf(eps=0.01)):
        assert torch.equal(ball.rounded(base, images), (images * 255).round().byte())


def test_a_ball_smaller_than_a_level_leaves_the_base() -> None:
    base = pictures(19)
    ball = Recolor(eps=0.0005)
    assert torch.equal(ball.rounded(base, ball.sample(base, stream(20))), (base * 255).round().byte())


def test_pixels_outside_the_ball_are_brought_back() -> None:
    base, elsewhere = pictures(21), pictures(22)
    for ball in (Recolor(), TWO):
        assert ball.contains(base, to_floats(ball.rounded(base, elsewhere))).all()


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", [1, -1])
def test_a_search_uses_both_changes(channels: int, order: int) -> None:
    base = middling(23, 3, channels, 8, torch.float32).mul(255).round().div(255)
    direction = torch.randn(base.shape, generator=stream(24))
    objective = by_autograd(lambda x, rng: ((x - base) * direction).flatten(1).sum(1))
    both = Sum(balls=TWO.balls[::order])
    values = []
    for ball in (Recolor(smoothness=0.0), Linf(eps=8 / 255), both):
        found = minimise(objective, base, ball, steps=40, update=Adam(lr=0.005), rng=stream(25))
        assert ball.contains(base, to_floats(found.images)).all()
        values.append(found.value)
    assert (values[0] < -0.1).all()
    assert (values[2] < values[0]).all()
    assert (values[2] < values[1] - 0.1).all()


def test_smoothness_weighs_on_the_search() -> None:
    """A strong penalty leaves a map that moves all colours nearly alike."""
    base = middling(26, 2, 3, 8, torch.float32)
    direction = torch.randn(base.shape, generator=stream(24)) + 1
    objective = by_autograd(lambda x, rng: ((x - base) * direction).flatten(1).sum(1))
    spread = []
    for smoothness in (0.0, 1e5):
        ball, update = Recolor(smoothness=smoothness), Adam(lr=0.005, decay=True)
        found = minimise(objective, base, ball, steps=60, update=update, pixels="float", rng=stream(27))
        spread.append((found.images - base).std((2, 3)).mean().item())
    assert spread[1] < 0.5 * spread[0]


def test_sums_with_other_kinds_are_refused() -> None:
    for other in (L2(eps=1.0), Recolor()):
        with pytest.raises(ValueError, match=r"sum of recolor and .* cannot be told exactly"):
            Sum(balls=(Recolor(), Linf(eps=0.1), other))
