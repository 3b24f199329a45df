"""Augmentation against loops over single pixels in numpy, and statistics of its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mithridate.core.classifier import Classifier
from mithridate.core.models import Normalize
from mithridate.core.seeds import stream
from mithridate.core.transforms import Cutmix, Cutout, Flip, Mixup, Noise, Shift, transformed
from tests.core.transform_cases import MODEL, batch


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


@pytest.mark.parametrize(
    "chain",
    [
        (Flip(), Shift()),
        (Shift(share=0.4), Flip()),
        (Shift(share=0.4), Shift(share=0.4), Flip(), Shift(share=0.4)),
        (Flip(), Noise(), Shift(share=0.3), Flip(), Mixup(), Shift()),
        (Cutmix(),),
        (),
    ],
)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 12)])
def test_transforms_in_fewer_passes_are_those_one_after_the_other(chain: tuple, shape: tuple[int, int, int]) -> None:
    given = batch(12, shape)
    leaf = given.images.clone().requires_grad_()
    rng, slopes = stream(3), torch.rand(given.images.shape, generator=stream(4))
    expected = given._replace(images=leaf)
    for transform in chain:
        expected = transform(expected, MODEL, rng)
    result = transformed(given._replace(images=leaf), chain, MODEL, stream(3))
    assert torch.equal(result.images, expected.images)
    assert torch.equal(result.targets, expected.targets)
    wanted, found = (
        torch.autograd.grad(each.images, leaf, slopes, retain_graph=True)[0] for each in (expected, result)
    )
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_what_two_moves_push_out_stays_out() -> None:
    image = torch.ones(1, 1, 4, 4)
    given = batch(1, (1, 4, 4))._replace(images=image)

    class There(Shift):
        def places(self, count: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.arange(4)[None] + 3, torch.arange(4)[None]

    class Back(Shift):
        def places(self, count: int, height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.arange(4)[None] - 3, torch.arange(4)[None]

    result = transformed(given, (There(), Back()), MODEL, stream(0)).images
    assert result.sum(3).flatten().tolist() == [0, 0, 0, 4]


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


# --- cutmix ----------------------------------------------------------------------------------------------------------


def box_of(changed: np.ndarray) -> tuple[slice, slice]:
    """The smallest rectangle around the marks [H, W]."""
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 16), (2, 5, 5)])
def test_cutmix_pastes_one_box_of_a_partner_and_mixes_labels_by_its_area(shape: tuple[int, int, int]) -> None:
    given, rng = batch(6, shape), stream(11)
    before, pasted = given.images.numpy(), 0
    for _ in range(40):
        result = Cutmix(probability=1.0)(given, MODEL, rng)
        targets, images = result.targets.numpy(), result.images.numpy()
        own = targets.diagonal()
        partners = [int(np.where(np.arange(6) == i, 0, row).argmax()) for i, row in enumerate(targets)]
        boxes = [box_of((images[i] != before[i]).any(0)) for i in range(6) if 0 < own[i] < 1]
        assert len({(b[0].start, b[0].stop, b[1].start, b[1].stop) for b in boxes}) <= 1, "one box for the batch"
        for i, partner in enumerate(partners):
            expected = before[i].copy()
            if own[i] < 1:
                rows, columns = boxes[0] if own[i] > 0 else (slice(None), slice(None))
                expected[:, rows, columns] = before[partner][:, rows, columns]
                area = (rows.stop - rows.start) * (columns.stop - columns.start) if own[i] > 0 else shape[1] * shape[2]
                assert abs(1 - own[i] - area / (shape[1] * shape[2])) < 1e-6
                assert abs(targets[i, partner] - (1 - own[i])) < 1e-6
                pasted += 1
            assert np.array_equal(images[i], expected)
    assert pasted > 100


def test_cutmix_boxes_have_the_papers_distribution_of_areas() -> None:
    """Against a simulation of the published rule: side from Beta, uniform centre, clipped at the border."""
    given, rng, numbers = batch(8, (1, 16, 16)), stream(12), np.random.default_rng(0)

    def area(alpha: float) -> float:
        targets = Cutmix(alpha=alpha, probability=1.0)(given, MODEL, rng).targets
        return float(1 - targets.diagonal().min())  # an image that is its own partner keeps its label

    def simulated(alpha: float) -> float:
        side = int(16 * np.sqrt(1 - numbers.beta(alpha, alpha)))
        sides = [np.clip([c - side // 2, c - side // 2 + side], 0, 16) for c in numbers.integers(16, size=2)]
        return float(np.prod([end - start for start, end in sides]) / 256)

    for alpha in (1.0, 4.0):
        found = [area(alpha) for _ in range(500)]
        assert stats.ks_2samp(found, [simulated(alpha) for _ in range(4000)]).pvalue > 0.001


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 160, 240), (1.0, 360, 400)])
def test_cutmix_changes_a_share_of_the_batches(probability: float, least: int, most: int) -> None:
    given, rng, mix = batch(5, (1, 8, 8)), stream(13), Cutmix(probability=probability)
    changed = sum(not torch.equal(mix(given, MODEL, rng).targets, given.targets) for _ in range(400))
    assert least <= changed <= most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; it must be positive"),
        ({"probability": 1.5}, "probability is 1.5; it is a share"),
    ],
)
def test_cutmix_settings_that_make_no_box(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cutmix(**settings)


# --- cutout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "side"), [((3, 8, 8), 0.5), ((1, 6, 16), 0.25), ((1, 5, 5), 0.6), ((1, 4, 4), 1.0)])
def test_cutout_covers_every_pixel_as_often_as_a_uniform_centre_does(shape: tuple[int, int, int], side: float) -> None:
    given = batch(1500, shape, classes=3)
    covered = (Cutout(side=side)(given, MODEL, stream(14)).images == 0).all(1).numpy()
    for number in range(20):
        box = box_of(covered[number])
        assert covered[number][box].all(), "one full rectangle per image"
    assert len({tuple(mask.ravel()) for mask in covered[:50]}) > 3, "images have boxes of their own"

    def share(length: int) -> np.ndarray:
        reach = round(side * length)
        starts = [centre - reach // 2 for centre in range(length)]
        return np.array([np.mean([start <= place < start + reach for start in starts]) for place in range(length)])

    expected = np.outer(share(shape[1]), share(shape[2]))
    spread = np.sqrt(expected * (1 - expected) / 1500) + 1e-9
    assert (np.abs(covered.mean(0) - expected) < 4.5 * spread).all()


def test_cutout_shows_zeros_to_a_network_that_normalises_and_leaves_labels_alone() -> None:
    given = batch(10)
    model = Classifier(torch.nn.Flatten(), Normalize([0.2, 0.5, 0.7], [0.1, 0.2, 0.3]), bf16=False)
    result = Cutout()(given, model, stream(15))
    black = Cutout()(given, MODEL, stream(15))
    box = (black.images == 0).all(1, keepdim=True).expand_as(given.images)
    assert int(model.normalize(result.images)[box].count_nonzero()) == 0
    assert torch.equal(result.images[~box], given.images[~box])
    assert torch.equal(result.targets, given.targets)


@pytest.mark.parametrize("side", [0.0, -1.0, 16.0, float("nan")])
def test_a_cutout_side_is_a_share(side: float) -> None:
    with pytest.raises(ValueError, match=r"share of the image's side, so use 0\.5"):
        Cutout(side=side)


# --- noise -----------------------------------------------------------------------------------------------------------

DISTRIBUTIONS = {"laplace": stats.laplace, "gaussian": stats.norm}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_noise_has_its_distribution_whatever_the_pixels_are(kind: str) -> None:
    given = batch(30)
    added = Noise(kind=kind, scale=0.25)(given, MODEL, stream(16)).images - given.images
    assert stats.kstest(added.flatten().numpy() / 0.25, DISTRIBUTIONS[kind].cdf).pvalue > 0.001
    halves = added.flatten()[::2].numpy(), added.flatten()[1::2].numpy()
    assert stats.pearsonr(*halves).pvalue > 0.001
    black = given._replace(images=torch.zeros_like(given.images))
    again = Noise(kind=kind, scale=0.25)(black, MODEL, stream(16)).images
    torch.testing.assert_close(again, added, atol=1e-6, rtol=0)
    assert float(again.min()) < -0.25, "nothing is clipped"


def test_bernoulli_noise_is_a_fair_sign_of_fixed_size() -> None:
    given = batch(30)
    added = Noise(kind="bernoulli", scale=0.25)(given, MODEL, stream(17)).images - given.images
    torch.testing.assert_close(added.abs(), torch.full_like(added, 0.25), atol=1e-6, rtol=0)
    assert stats.binomtest(int((added > 0).sum()), added.numel()).pvalue > 0.001


@pytest.mark.parametrize("draw", [0.0, 2**-24, 0.5, 1 - 2**-24])
def test_no_uniform_draw_makes_laplace_noise_infinite(draw: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch(1)
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, draw))
    added = Noise(scale=1.0)(given, MODEL, stream(0)).images - given.images
    expected = stats.laplace.ppf(np.float64(draw) + 2**-25)
    assert np.allclose(added.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_noise_settings_that_make_no_noise() -> None:
    with pytest.raises(ValueError, match="kind is 'uniform'; use one of laplace, gaussian, bernoulli"):
        Noise(kind="uniform")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale is -1"):
        Noise(scale=-1)
