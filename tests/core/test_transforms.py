"""Augmentation against whole-pixel loops in numpy, statistics of its draws, and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from mithridate.core.transforms import Flip, Mixup, Shift

MODEL = nn.Identity()


def batch(count: int = 40, shape: Sequence[int] = (3, 8, 8), *, classes: int | None = None) -> Batch:
    images = torch.rand(count, *shape, generator=stream(0, "images"))
    targets = torch.eye(count) if classes is None else torch.eye(classes)[torch.arange(count) % classes]
    return Batch(images, targets, torch.arange(count) + 100, 0.25)


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Moves an image [C, H, W] down by dy and right by dx, one pixel after the other."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                result[:, y, x] = image[:, y - dy, x - dx]
    return result


def moves_of(before: Tensor, after: Tensor, reach_y: int, reach_x: int) -> list[tuple[int, int]]:
    """Finds the one move that explains each image."""
    found = []
    for image, result in zip(before.numpy(), after.numpy(), strict=True):
        fitting = [
            (dy, dx)
            for dy in range(-reach_y, reach_y + 1)
            for dx in range(-reach_x, reach_x + 1)
            if np.array_equal(shifted(image, dy, dx), result)
        ]
        assert len(fitting) == 1
        found += fitting
    return found


@pytest.mark.parametrize(
    ("shape", "share", "reach"),
    [((3, 8, 8), 0.125, (1, 1)), ((1, 8, 8), 0.25, (2, 2)), ((3, 6, 16), 0.125, (1, 2)), ((1, 5, 5), 0.4, (2, 2))],
)
def test_every_image_is_moved_by_whole_pixels_onto_black(
    shape: tuple[int, int, int], share: float, reach: tuple[int, int]
) -> None:
    given = batch(30, shape)
    result = Shift(share=share)(given, MODEL, stream(1))
    assert len(set(moves_of(given.images, result.images, *reach))) > 5
    assert result.images.shape == given.images.shape


def test_all_moves_are_equally_likely_and_independent() -> None:
    given = batch(900, (1, 8, 8))
    moves = np.array(moves_of(given.images, Shift()(given, MODEL, stream(2)).images, 1, 1))
    counts = np.zeros((3, 3))
    np.add.at(counts, (moves[:, 0] + 1, moves[:, 1] + 1), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


def test_a_share_of_less_than_half_a_pixel_moves_nothing() -> None:
    given = batch(5)
    assert torch.equal(Shift(share=0.05)(given, MODEL, stream(0)).images, given.images)


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    given = batch(400, (3, 8, 6))
    result = Flip()(given, MODEL, stream(3)).images.numpy()
    before = given.images.numpy()
    mirrored = [np.array_equal(a, b[:, :, ::-1]) for a, b in zip(result, before, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(result, before, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert stats.binomtest(sum(mirrored), 400, 0.5).pvalue > 0.001


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 50)])
def test_flip_obeys_its_probability(probability: float, expected: int) -> None:
    given = batch(50)
    result = Flip(probability=probability)(given, MODEL, stream(0)).images
    assert sum(torch.equal(a, b.flip(2)) for a, b in zip(result, given.images, strict=True)) == expected


@pytest.mark.parametrize("k", [2, 3, 5])
def test_mixup_applies_one_set_of_weights_to_images_and_labels(k: int) -> None:
    given = batch(12)  # targets are the identity, so the mixed targets are the mixing matrix
    mixed = Mixup(k=k)(given, MODEL, stream(4))
    mixing = mixed.targets.double()
    expected = (mixing @ given.images.double().flatten(1)).view_as(given.images)
    torch.testing.assert_close(mixed.images.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixing.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixing.sum(0), mixing.sum(1), atol=1e-6, rtol=0)  # each term is a permutation
    assert int((mixing > 0).sum(1).max()) <= k
    assert mixing.diagonal().min() > 0


def test_mixup_weights_have_the_asked_for_distribution() -> None:
    given, rng = batch(4), stream(5)

    def own_weights(alpha: float) -> list[float]:
        return [float(Mixup(alpha=alpha)(given, MODEL, rng).targets[0, 0]) for _ in range(400)]

    kept = np.array([w for w in own_weights(1.0) if w < 1])  # 1: the partner was the image itself
    assert stats.kstest(kept, "uniform").pvalue > 0.001
    kept = np.array([w for w in own_weights(8.0) if w < 1])
    assert stats.kstest(kept, stats.beta(8, 8).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 1}, "at least 2 images"), ({"alpha": 0.0}, "positive"), ({"alpha": float("nan")}, "positive")],
)
def test_mixup_settings_that_make_no_mixture(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixup(**settings)


@pytest.mark.parametrize("name", choices(BatchTransform))
class TestEveryTransform:
    def test_the_same_generator_replays_the_same_draws(self, name: str) -> None:
        transform, given = choices(BatchTransform)[name](), batch()
        first, again = (transform(given, MODEL, stream(6)) for _ in range(2))
        assert torch.equal(first.images, again.images)
        assert torch.equal(first.targets, again.targets)
        assert not torch.equal(first.images, transform(given, MODEL, stream(7)).images)

    def test_it_changes_neither_its_input_nor_the_global_generators(self, name: str) -> None:
        given = batch()
        copies = given.images.clone(), given.targets.clone()
        states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        result = choices(BatchTransform)[name]()(given, MODEL, stream(8))
        assert torch.equal(given.images, copies[0])
        assert torch.equal(given.targets, copies[1])
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert torch.equal(result.rows, given.rows)
        assert result.progress == given.progress

    def test_it_is_linear_and_differentiable_in_the_images(self, name: str) -> None:
        transform, given = choices(BatchTransform)[name](), batch(3, (2, 4, 4))
        images = given.images.double().requires_grad_()

        def run(x: Tensor) -> Tensor:
            return transform(given._replace(images=x), MODEL, stream(9)).images

        assert torch.autograd.gradcheck(run, (images,))

    def test_a_row_depends_on_other_rows_only_where_it_says_so(self, name: str) -> None:
        transform, given = choices(BatchTransform)[name](), batch(16)
        changed = given.images.clone()
        changed[0] = 1 - changed[0]
        first, second = (
            transform(given._replace(images=images), MODEL, stream(10)).images for images in (given.images, changed)
        )
        same = torch.equal(first[1:], second[1:])
        assert same or transform.mixes_rows
