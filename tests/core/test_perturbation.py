"""Balls by brute force on 8-bit pixels, objectives by hand, and the search loop against closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mithridate.core.balls import L2, AnyImage, Ball, Linf, Patch, to_bytes, to_floats
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from tests.core.ball_cases import ANY_BALL, BALLS, anywhere, pictures


def test_every_ball_is_tested() -> None:
    assert {type(ball) for ball in BALLS} == set(choices(Ball).values())


def test_bytes_and_floats_are_inverse_and_rounding_is_to_the_nearest() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_floats(values)), values)
    grid = np.linspace(-0.1, 1.1, 977)
    expected = np.clip(np.rint(np.float64(np.float32(grid)) * 255), 0, 255)
    np.testing.assert_array_equal(to_bytes(torch.tensor(grid, dtype=torch.float32)).numpy(), expected)


# --- what every ball promises ----------------------------------------------------------------------------------------


@ANY_BALL
def test_projections_lie_in_the_ball_and_stay_where_they_are(ball: Ball) -> None:
    base = pictures(0, 6, side=16)
    params = ball.project(base, anywhere(ball.start(base, stream(0)), 1))
    images = ball.images(base, params)
    assert images.shape == base.shape
    assert ball.contains(base, images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(ball.project(base, params), params, atol=1e-6, rtol=0)


@ANY_BALL
def test_starts_and_samples_lie_in_the_ball(ball: Ball) -> None:
    base = pictures(2, 6)
    for draw in (lambda *pair: ball.images(base, ball.start(*pair)), ball.sample):
        images = draw(base, stream(0))
        assert ball.contains(base, images).all()
        assert images.min() >= 0
        assert images.max() <= 1
        assert ball.contains(base, to_floats(ball.rounded(base, images))).all()
        assert torch.equal(draw(base, stream(0)), draw(base, stream(0)))
    assert not torch.equal(ball.sample(base, stream(0)), ball.sample(base, stream(1)))


@ANY_BALL
def test_the_base_is_in_the_ball_and_does_not_move(ball: Ball) -> None:
    base = pictures(3)
    copy = base.clone()
    assert ball.contains(base, base).all()
    still = ball.params_of(base, base)
    torch.testing.assert_close(ball.images(base, still), base)
    torch.testing.assert_close(ball.project(base, still), still)
    assert torch.equal(ball.rounded(base, base), to_bytes(base))
    ball.project(base, anywhere(ball.start(base, stream(0)), 4))
    assert torch.equal(base, copy)
    assert ball.penalty(base, still).item() == 0
    assert ball.describe()


@ANY_BALL
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), reach=st.floats(0.001, 2.0))
def test_rounded_images_lie_in_the_ball_next_to_what_was_found(ball: Ball, seed: int, reach: float) -> None:
    base = pictures(seed, 2, 1, 4)
    still = ball.params_of(base, base)
    images = ball.images(base, ball.project(base, still + reach * (anywhere(still, seed) - still)))
    rounded = ball.rounded(base, images)
    assert rounded.dtype == torch.uint8
    assert ball.contains(base, to_floats(rounded)).all()
    assert (rounded.double() - 255 * images.double()).abs().max() < 1 + 1e-3


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("cls", [Linf, L2])
def test_a_radius_must_be_positive(cls: type[Linf] | type[L2], eps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        cls(eps=eps)


# --- Linf ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(eps=st.floats(0.0005, 64 / 255), seed=st.integers(0, 2**32), whole=st.booleans())
def test_no_8_bit_value_in_the_box_is_nearer(eps: float, seed: int, whole: bool) -> None:
    eps = max(1, round(eps * 255)) / 255 if whole else eps
    ball, base = Linf(eps=eps), pictures(seed, 2, 1, 4)
    images = ball.project(base, base + 2 * eps * torch.randn(base.shape, generator=stream(seed, "noise")))
    found = ball.rounded(base, images).double().numpy().ravel()
    wanted, centre = 255 * images.double().numpy().ravel(), np.rint(255 * base.double().numpy().ravel())
    values = np.arange(256.0)[:, None]
    inside = np.abs(values - centre) <= 255 * eps + 1e-4
    nearest = np.where(inside, np.abs(values - wanted), np.inf).min(0)
    assert (np.abs(found - centre) <= 255 * eps + 1e-3).all()
    assert (np.abs(found - wanted) <= nearest + 1e-3).all()


def test_the_box_against_numpy() -> None:
    base, ball = pictures(5), Linf(eps=8 / 255)
    params = anywhere(base, 5)
    b = base.double().numpy()
    expected = np.clip(np.clip(params.double().numpy(), b - 8 / 255, b + 8 / 255), 0, 1)
    np.testing.assert_allclose(ball.project(base, params).numpy(), expected, atol=1e-6)


def test_samples_of_the_box_use_all_of_it() -> None:
    base, ball = pictures(6, 50), Linf(eps=8 / 255)
    change = (255 * (ball.sample(base, stream(0)) - base)).numpy()
    b = 255 * base.numpy()
    up, down = np.minimum(8, 255 - b), -np.minimum(8, b)
    at_an_end = np.isclose(change, up, atol=1e-3) | np.isclose(change, down, atol=1e-3)
    assert at_an_end.all()
    assert 0.45 < (change > 0)[(b > 8) & (b < 247)].mean() < 0.55


def test_one_pixel_too_far_is_outside() -> None:
    base, ball = pictures(7), Linf(eps=8 / 255)
    base[:, 0, 0, 0] = 0.2
    images = base.clone()
    images[1, 0, 0, 0] += 8 / 255
    images[2, 0, 0, 0] += 9 / 255
    assert ball.contains(base, images).tolist() == [True, True, False, True]


def test_radii_in_units_of_255_are_caught_and_large_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"8/255 = 0\.0314"):
        Linf(eps=8)
    with pytest.warns(UserWarning, match="plain to see"):
        Linf(eps=65 / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Linf(eps=64 / 255)


# --- L2 --------------------------------------------------------------------------------------------------------------


def test_changes_that_fit_stay_and_others_get_the_radius() -> None:
    base, ball = torch.full((2, 1, 4, 4), 0.5), L2(eps=0.3)
    params = base + torch.stack([torch.full((1, 4, 4), 0.01), torch.full((1, 4, 4), -0.2)])
    lengths = (ball.project(base, params) - base).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.04, 0.3]))
    direction = (ball.project(base, params) - base)[1]
    torch.testing.assert_close(direction, torch.full((1, 4, 4), -0.075))


def test_samples_of_the_sphere_have_its_radius() -> None:
    base, ball = torch.full((5, 3, 8, 8), 0.5), L2(eps=0.5)
    torch.testing.assert_close((ball.sample(base, stream(0)) - base).flatten(1).norm(dim=1), torch.full((5,), 0.5))


@pytest.mark.parametrize("eps", [0.5, 5.0, 20.0])
def test_float_error_of_large_images_stays_within_the_slack(eps: float) -> None:
    base, ball = pictures(8, 4, 3, 64), L2(eps=eps)
    assert ball.contains(base, ball.project(base, anywhere(base, 8))).all()


# --- patches ---------------------------------------------------------------------------------------------------------


def extent(changed: np.ndarray) -> tuple[int, int]:
    """Height and width of the smallest rectangle around the marks [H, W]."""
    ys, xs = np.nonzero(changed)
    return (0, 0) if not len(ys) else (int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1)


@pytest.mark.parametrize(
    ("area", "size", "side"),
    [(0.1, (8, 8), 2), (0.25, (8, 8), 4), (1.0, (8, 8), 8), (1.0, (4, 16), 4), (0.1, (32, 32), 10)],
)
def test_a_patch_is_the_largest_square_of_its_area(area: float, size: tuple[int, int], side: int) -> None:
    base, ball = torch.full((40, 2, *size), 0.5), Patch(area=area)
    images = ball.sample(base, stream(0))
    assert all(extent((image != 0.5).any(0).numpy()) == (side, side) for image in images)
    assert ball.contains(base, images).all()
    corners = {tuple(map(int, (image != 0.5).any(0).nonzero()[0])) for image in images}
    assert len(corners) > 5 or side in size


def test_a_projection_keeps_the_window_with_most_of_the_change() -> None:
    base, ball, side = pictures(9, 5), Patch(area=0.2), 3
    params = anywhere(base, 9)
    found = ball.project(base, params)
    for image, before, wanted in zip(found.numpy(), base.numpy(), params.numpy(), strict=True):
        energy = ((wanted - before) ** 2).sum(0)
        windows = {
            (y, x): energy[y : y + side, x : x + side].sum() for y in range(8 - side + 1) for x in range(8 - side + 1)
        }
        y, x = max(windows, key=lambda corner: windows[corner])
        expected = before.copy()
        expected[:, y : y + side, x : x + side] = np.clip(wanted, 0, 1)[:, y : y + side, x : x + side]
        np.testing.assert_array_equal(image, expected)


@settings(max_examples=60)
@given(marks=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=4))
def test_a_patch_holds_what_its_smallest_rectangle_holds(marks: list[tuple[int, int]]) -> None:
    base, changed = torch.zeros(1, 3, 8, 8), np.zeros((8, 8), dtype=bool)
    images = base.clone()
    for y, x in marks:
        images[0, len(marks) % 3, y, x] = 1 / 255
        changed[y, x] = True
    height, width = extent(changed)
    assert Patch(area=0.2).contains(base, images).item() == (height * width <= 0.2 * 64)


def test_an_area_that_is_no_share_or_less_than_a_pixel_is_an_error() -> None:
    for area in (0.0, 10, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share of the image"):
            Patch(area=area)
    with pytest.raises(ValueError, match="use at least 1/64"):
        Patch(area=0.01).sample(torch.zeros(1, 1, 8, 8), stream(0))


# --- any image -------------------------------------------------------------------------------------------------------


def test_any_image_is_bounded_by_the_pixel_range_alone() -> None:
    base, ball = pictures(10), AnyImage()
    assert ball.contains(base, 1 - base).all()
    assert ball.contains(base, base + 1).tolist() == [False] * 4
    params = anywhere(base, 10)
    np.testing.assert_array_equal(ball.project(base, params).numpy(), np.clip(params.numpy(), 0, 1))
    assert torch.equal(ball.start(base, stream(0)), base)
