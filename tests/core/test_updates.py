"""Updates against torch.optim.Adam, loops by hand, and a problem whose solution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.core.balls import AnyImage
from mithridate.core.perturbation import by_autograd, minimise
from mithridate.core.seeds import stream
from mithridate.core.updates import (
    Adam,
    CosineAdam,
    ForwardBackward,
    SignedAdam,
    SignStep,
    Stepper,
    Update,
    cosine_decay,
    step_decay,
)

SHAPE = (3, 2, 4, 4)
STEPS = 16
NO_VALUE = torch.zeros(())


def field(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=stream(seed, "field"), dtype=torch.float64)


def slopes() -> list[Tensor]:
    rng = stream(0, "slopes")
    return [torch.randn(SHAPE, generator=rng, dtype=torch.float64) for _ in range(STEPS)]


def walk(stepper: Stepper, start: Tensor) -> list[Tensor]:
    seen = [start]
    for number, slope in enumerate(slopes()):
        seen.append(stepper.step(seen[-1], NO_VALUE, slope, number / STEPS))
    return seen[1:]


def walk_of_torch(start: Tensor, *, lr: float, betas: tuple[float, float], signed: bool, decay: bool) -> list[Tensor]:
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=lr, betas=betas, eps=1e-8)
    seen = []
    for number, slope in enumerate(slopes()):
        parameter.grad = slope.sign() if signed else slope.clone()
        passed = sum(number >= share * STEPS for share in (3 / 8, 5 / 8, 7 / 8))
        optimizer.param_groups[0]["lr"] = lr / 10**passed if decay else lr
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
@pytest.mark.parametrize("cls", [Adam, SignedAdam])
def test_adam_is_that_of_torch(cls: type[Adam] | type[SignedAdam], betas: tuple[float, float], decay: bool) -> None:
    start = field(1)
    found = walk(cls(lr=0.03, betas=betas, decay=decay).begin(start, stream(0)), start)
    expected = walk_of_torch(start, lr=0.03, betas=betas, signed=cls is SignedAdam, decay=decay)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_two_searches_share_no_memory() -> None:
    update, start = SignedAdam(), field(1)
    first = walk(update.begin(start, stream(0)), start)
    again = walk(update.begin(start, stream(0)), start)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_defaults_are_those_of_the_papers() -> None:
    assert SignedAdam().decay
    assert not Adam().decay
    assert [round(step_decay(p), 6) for p in (0, 0.374, 0.375, 0.625, 0.875, 1)] == [1, 1, 0.1, 0.01, 0.001, 0.001]


def softly(slope: Tensor) -> Tensor:
    """Image by image, entry by entry."""
    sizes = [sum(abs(x) for x in image.flatten().tolist()) / image.numel() for image in slope]
    return torch.stack([torch.tanh(image / size) for image, size in zip(slope, sizes, strict=True)])


@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("sign", ["none", "hard", "soft"])
def test_cosine_adam_is_that_of_torch_with_its_schedulers(sign, warmup: float) -> None:
    start, number = field(1), round(warmup * STEPS)
    found = walk(CosineAdam(lr=0.03, warmup=warmup, sign=sign).begin(start, stream(0)), start)
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.03, eps=1e-8)
    rates = [0.03 * step / number for step in range(number)]
    rates += [0.03 * (1 + math.cos(math.pi * step / (STEPS - number))) / 2 for step in range(STEPS - number)]
    for slope, rate, after in zip(slopes(), rates, found, strict=True):
        parameter.grad = {"none": torch.clone, "hard": torch.sign, "soft": softly}[sign](slope)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        torch.testing.assert_close(after, parameter.detach(), atol=1e-10, rtol=0)
    assert torch.equal(found[0], start) is bool(warmup)


def test_the_cosine_ends_at_zero_and_peaks_after_the_warmup() -> None:
    assert [round(cosine_decay(p, 0.5), 9) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert cosine_decay(0.0) == 1
    assert cosine_decay(1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_soft_sign_does_not_depend_on_the_scale_of_an_images_objective(factor: float) -> None:
    scale = torch.tensor([1.0, factor, 1 / factor], dtype=torch.float64).view(3, 1, 1, 1)
    start, plain = field(1), CosineAdam(sign="soft").begin(field(1), stream(0))
    scaled = CosineAdam(sign="soft").begin(field(1), stream(0))
    for number, slope in enumerate(slopes()):
        after = plain.step(start, NO_VALUE, slope, number / STEPS)
        torch.testing.assert_close(scaled.step(start, NO_VALUE, scale * slope, number / STEPS), after)
    still = CosineAdam(sign="soft").begin(start, stream(0)).step(start, NO_VALUE, torch.zeros_like(start), 0.0)
    assert torch.equal(still, start)  # no gradient, no step, and no division by zero


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_noise_has_its_deviation_in_units_of_the_rate_of_the_step(progress: float) -> None:
    start = torch.zeros(4, 3, 40, 40)
    slope = torch.ones_like(start)
    plain = CosineAdam(lr=0.1).begin(start, stream(0)).step(start, NO_VALUE, slope, progress)
    noise = CosineAdam(lr=0.1, langevin=0.2).begin(start, stream(0)).step(start, NO_VALUE, slope, progress) - plain
    rate = 0.1 * cosine_decay(progress)
    assert noise.std().item() == pytest.approx(0.2 * rate, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.01 * rate)
    again = CosineAdam(lr=0.1, langevin=0.2).begin(start, stream(0)).step(start, NO_VALUE, slope, progress) - plain
    other = CosineAdam(lr=0.1, langevin=0.2).begin(start, stream(1)).step(start, NO_VALUE, slope, progress) - plain
    assert torch.equal(noise, again)
    assert not torch.equal(noise, other)


def test_a_search_with_cosine_adam_comes_to_the_minimum() -> None:
    for update in (CosineAdam(warmup=0.1), CosineAdam(sign="soft"), CosineAdam(sign="hard", langevin=0.2)):
        images, _ = search(update, 300)
        torch.testing.assert_close(images, GOAL, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmup": 1.0}, "warmup is 1.0"), ({"warmup": -0.1}, "below 1"), ({"langevin": -1.0}, "langevin is -1.0")],
)
def test_settings_without_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosineAdam(**settings)  # pyright: ignore[reportArgumentType]


def test_equal_ends_are_pgd_without_a_random_step() -> None:
    start, slope = field(1), slopes()[0]
    found = SignStep(low=0.1, high=0.1).begin(start, stream(0)).step(start, NO_VALUE, slope, 0.0)
    torch.testing.assert_close(found, start - 0.1 * torch.from_numpy(np.sign(slope.numpy())), atol=1e-8, rtol=0)


def test_random_steps_are_one_length_per_image_between_the_ends() -> None:
    start = field(1).repeat(50, 1, 1, 1)
    stepper = SignStep(low=0.1, high=0.3).begin(start, stream(0))
    slope = torch.ones_like(start)
    first = (start - stepper.step(start, NO_VALUE, slope, 0.0)).flatten(1)
    second = (start - stepper.step(start, NO_VALUE, slope, 0.1)).flatten(1)
    for lengths in (first, second):
        assert torch.allclose(lengths.amin(1), lengths.amax(1))
        assert 0.1 <= lengths.min() < 0.13
        assert 0.27 < lengths.max() <= 0.3 + 1e-9
    assert not torch.allclose(first, second)


# --- forward-backward splitting --------------------------------------------------------------------------------------

GOAL, BASE = field(2), 0.25 + field(3) / 2


def distance(images: Tensor, rng: torch.Generator) -> Tensor:
    return (images - GOAL).square().flatten(1).sum(1) / 2


def search(update: Update, steps: int, objective=distance) -> tuple[Tensor, Tensor]:
    return minimise(by_autograd(objective), BASE, AnyImage(), steps=steps, update=update, pixels="float", rng=stream(0))


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_the_limit_is_the_closed_form_minimum(beta: float) -> None:
    images, _ = search(ForwardBackward(lr=0.5, beta=beta), 200)
    torch.testing.assert_close(images, (GOAL + beta * BASE) / (1 + beta), atol=1e-6, rtol=0)


def test_a_heavy_penalty_returns_the_base() -> None:
    images, _ = search(ForwardBackward(lr=0.5, beta=1e9), 20)
    torch.testing.assert_close(images, BASE, atol=1e-8, rtol=0)


def rugged(images: Tensor, rng: torch.Generator) -> Tensor:
    return (images.square() + 0.3 * torch.sin(20 * images) + images * images.flip(3)).flatten(1).sum(1)


def rugged_slope(x: np.ndarray) -> np.ndarray:
    return 2 * x + 6 * np.cos(20 * x) + 2 * x[..., ::-1]


def rugged_value(x: np.ndarray) -> float:
    return float((x**2 + 0.3 * np.sin(20 * x) + x * x[..., ::-1]).sum())


def by_hand(base: np.ndarray, lr: float, beta: float, steps: int, tolerance: float) -> np.ndarray:
    """Algorithm 1 for one image with an accept test, in plain numpy."""
    candidate = accepted = base
    best, slope = np.inf, np.zeros_like(base)
    for _ in range(steps):
        total = rugged_value(candidate) + beta / 2 * ((candidate - base) ** 2).sum()
        fine = total <= best + tolerance * abs(best)
        best, lr = min(total, best), lr * (1.05 if fine else 0.5)
        if fine:
            accepted, slope = candidate, rugged_slope(candidate)
        candidate = np.clip((accepted - lr * slope + lr * beta * base) / (1 + lr * beta), 0, 1)
    return accepted


@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_steps_are_those_of_a_loop_by_hand(beta: float, steps: int, tolerance: float) -> None:
    """With beta = 0 this is gradient descent with the accept rule."""
    images, _ = search(ForwardBackward(lr=0.1, beta=beta, tolerance=tolerance), steps, rugged)
    expected = np.stack([by_hand(image, 0.1, beta, steps, tolerance) for image in BASE.numpy()])
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_without_tolerance_the_objective_of_each_image_never_rises(beta: float) -> None:
    totals = []
    for steps in range(1, 25):
        images, values = search(ForwardBackward(lr=0.3, beta=beta, tolerance=0), steps, rugged)
        totals.append(values + beta / 2 * (images - BASE).square().flatten(1).sum(1))
    history = torch.stack(totals)
    assert (history[1:] <= history[:-1] + 1e-9).all()
    assert (history[-1] < history[0]).all()


def test_a_noisy_objective_stops_a_search_that_rejects_every_rise() -> None:
    """As in bfloat16: what is seen of the distance is off by some percent, and no step can make up for that."""

    def noisy(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        value, gradient = by_autograd(distance)(images, rng)
        return value * (1 + 0.02 * torch.rand(len(value), generator=rng).to(value)), gradient

    def reached(tolerance: float) -> Tensor:
        update = ForwardBackward(lr=0.01, beta=0, tolerance=tolerance)
        found = minimise(noisy, BASE, AnyImage(), steps=200, update=update, pixels="float", rng=stream(0))
        return distance(found.images, stream(0))

    assert reached(0.05).max() < 1e-9
    assert reached(0.0).max() > 1


def test_a_joint_objective_cannot_be_split() -> None:
    with pytest.raises(TypeError, match="one per image"):
        search(ForwardBackward(), 2, lambda images, rng: images.sum())
