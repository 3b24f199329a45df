"""Similarity against scikit-image, slow loops, all permutations, and cases whose answer is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mithridate.core.networks import convnet
from mithridate.core.seeds import stream
from mithridate.inversion import similarity
from mithridate.inversion.similarity import CEILING, feature_distance, identification_rank, matched, psnr, ssim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=stream(seed, "noise"))


def smooth(count: int, side: int, seed: int = 0) -> Tensor:
    """Images with structure: random waves, in [0, 1]."""
    places = torch.linspace(0, 1, side)
    rates = 1 + 8 * noise(count, 3, 2, seed=seed)
    rows = torch.sin(rates[..., :1] * places)[..., :, None]
    return ((rows * torch.cos(rates[..., 1:] * places)[..., None, :]) + 1) / 2


# --- PSNR ------------------------------------------------------------------------------------------------------------


def test_psnr_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    truth = smooth(5, 16)
    images = (truth + 0.2 * noise(5, 3, 16, 16) * torch.arange(1, 6).view(5, 1, 1, 1)).clamp(0, 1)
    expected = [
        metrics.peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=1.0)
        for a, b in zip(images, truth, strict=True)
    ]
    assert psnr(images, truth).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_error_is_that_of_the_whole_image() -> None:
    """One channel is perfect and one is off by 0.2: a mean of ratios by channel would be infinite."""
    truth = torch.full((1, 2, 4, 4), 0.5)
    images = truth.clone()
    images[:, 1] += 0.2
    assert psnr(images, truth).item() == pytest.approx(-10 * math.log10(0.04 / 2), abs=1e-5)


def test_equal_images_have_the_ceiling_and_means_stay_finite() -> None:
    truth = noise(3, 3, 8, 8)
    images = truth.clone()
    images[1] += 2e-5
    images[2] += 0.1
    found = psnr(images, truth)
    assert found[0] == CEILING
    assert found[1].item() == pytest.approx(93.98, abs=0.05)
    assert found[2].item() == pytest.approx(20, abs=1e-4)
    assert found.mean().isfinite()


# --- SSIM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 11, 11), (1, 11, 30), (3, 32, 32), (2, 28, 17)])
def test_ssim_is_that_of_scikit_image(shape: tuple[int, int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    truth = noise(4, *shape)
    truth[0] = 0.3  # flat: all variances are zero
    strength = torch.tensor([0.0, 0.1, 0.5, 1.0]).view(4, 1, 1, 1)
    images = (1 - strength) * truth + strength * noise(4, *shape, seed=1)
    images[0, :, 4:] = 0.35
    expected = [
        metrics.structural_similarity(
            b.double().numpy(),
            a.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        for a, b in zip(images, truth, strict=True)
    ]
    assert ssim(images, truth).tolist() == pytest.approx(expected, abs=1e-8)


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Window by window; a window is the largest odd side that fits, at most 11."""
    side = min(11, *(n - 1 + n % 2 for n in a.shape[1:]))
    offsets = np.arange(side) - side // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for x, y in zip(a, b, strict=True):
        for i in range(a.shape[1] - side + 1):
            for j in range(a.shape[2] - side + 1):
                u, v = x[i : i + side, j : j + side], y[i : i + side, j : j + side]
                m, n = (weights * u).sum(), (weights * v).sum()
                spread = (weights * (u - m) ** 2).sum() + (weights * (v - n) ** 2).sum()
                both = (weights * (u - m) * (v - n)).sum()
                values.append((2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m * m + n * n + 1e-4) * (spread + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 9), (2, 10, 32), (1, 12, 13), (1, 1, 4), (1, 2, 2)])
def test_ssim_is_that_of_a_slow_loop_also_where_the_window_does_not_fit(shape: tuple[int, int, int]) -> None:
    a, b = noise(2, *shape), noise(2, *shape, seed=1)
    b[1] = 0.9 * a[1] + 0.1 * b[1]
    expected = [slow_ssim(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_falls_with_noise_and_is_one_for_equal_images() -> None:
    truth = smooth(1, 32).repeat(4, 1, 1, 1)
    strength = torch.tensor([0.0, 0.05, 0.2, 0.5]).view(4, 1, 1, 1)
    found = ssim(truth + strength * (noise(4, 3, 32, 32) - 0.5), truth)
    assert found[0].item() == pytest.approx(1, abs=1e-12)
    assert (found[1:] < found[:-1]).all()


# --- matching --------------------------------------------------------------------------------------------------------


def test_an_order_is_undone() -> None:
    truth = noise(9, 3, 8, 8)
    shuffle = torch.randperm(9, generator=stream(0, "order"))
    found = truth[shuffle] + 0.1 * noise(9, 3, 8, 8, seed=2)
    order = matched(found, truth)
    assert torch.equal(shuffle[order], torch.arange(9))


def test_it_is_the_best_of_all_permutations() -> None:
    for seed in range(10):
        found, truth = noise(5, 1, 2, 2, seed=seed), noise(5, 1, 2, 2, seed=100 + seed)
        best = max(psnr(found[list(p)], truth).mean().item() for p in itertools.permutations(range(5)))
        assert psnr(found[matched(found, truth)], truth).mean().item() == pytest.approx(best, abs=1e-12)


def test_a_perfect_image_is_not_given_away() -> None:
    """The least total squared error would swap these two: 0 + 0.64 against 0.09 + 0.25."""
    truth = torch.tensor([0.5, 0.2]).view(2, 1, 1, 1)
    found = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
    assert matched(found, truth).tolist() == [0, 1]


def test_labels_come_before_pixels() -> None:
    truth, labels = noise(4, 3, 4, 4), torch.tensor([0, 0, 1, 2])
    found = truth[[2, 3, 0, 1]]
    assert matched(found, truth).tolist() == [2, 3, 0, 1]
    assert matched(found, truth, labels[[2, 3, 0, 1]], labels).tolist() == [2, 3, 0, 1]
    order = matched(found, truth, torch.tensor([0, 0, 1, 2]), labels)  # labels that contradict the pixels
    assert sorted(order[:2].tolist()) == [0, 1]
    assert order[2:].tolist() == [2, 3]
    order = matched(found, truth, torch.tensor([7, 0, 7, 0]), labels)  # two labels agree with none
    assert sorted(order[:2].tolist()) == [1, 3]
    assert order.sort().values.tolist() == [0, 1, 2, 3]


# --- identification --------------------------------------------------------------------------------------------------


def slow_rank(found: np.ndarray, candidates: np.ndarray, truth: int) -> int:
    apart = [math.dist(found.ravel(), one.ravel()) for one in candidates]
    nearer = sum(a < apart[truth] for a in apart)
    equal = sum(a == apart[truth] for i, a in enumerate(apart) if i != truth)
    return 1 + nearer + math.ceil(equal / 2)


@pytest.mark.parametrize("held", [1, 200, 2**22])
def test_ranks_are_those_of_a_slow_loop_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(similarity, "HELD", held)
    candidates = (noise(60, 3, 4, 4) * 255).round().to(torch.uint8)
    truth = torch.tensor([3, 3, 17, 59])
    mixture = torch.tensor([0.1, 0.5, 0.7, 0.9]).view(4, 1, 1, 1)
    found = (1 - mixture) * candidates[truth] / 255 + mixture * noise(4, 3, 4, 4, seed=1)
    pairs = zip(found.double().numpy(), truth.tolist(), strict=True)
    expected = [slow_rank(one, (candidates / 255).double().numpy(), row) for one, row in pairs]
    assert identification_rank(found, candidates, truth).tolist() == expected
    assert expected[0] == 1 < expected[-1]
    assert identification_rank(found, candidates.float() / 255, truth).tolist() == expected
    flat = identification_rank(found.flatten(1), (candidates.float() / 255).flatten(1), truth)
    assert flat.tolist() == expected


@pytest.mark.parametrize("count", [2, 7, 1000])
def test_equally_far_candidates_give_the_rank_of_chance(count: int) -> None:
    """Corners of a cube around the reconstruction, in an order that differs by candidate: sums are rounded apart."""
    steps = torch.linspace(0.01, 0.3, 48)
    orders = torch.stack([torch.randperm(48, generator=stream(n, "order")) for n in range(count)])
    signs = torch.randint(0, 2, (count, 48), generator=stream(0, "signs")) * 2 - 1
    candidates = (0.5 + steps[orders] * signs).view(count, 3, 4, 4).double()
    found = torch.full((3, 3, 4, 4), 0.5)
    ranks = identification_rank(found, candidates, torch.tensor([0, 1, count - 1]))
    assert ranks.tolist() == [math.ceil((count + 1) / 2)] * 3


def test_a_copy_of_the_true_image_counts_half() -> None:
    candidates = noise(5, 3, 4, 4)
    candidates[4] = candidates[0]
    assert identification_rank(candidates[[0, 1]], candidates, torch.tensor([0, 1])).tolist() == [2, 1]


def test_a_grey_image_ranks_by_chance_on_the_average() -> None:
    candidates = noise(101, 3, 4, 4)
    grey = torch.full((101, 3, 4, 4), 0.5)
    assert identification_rank(grey, candidates, torch.arange(101)).double().mean() == 51


# --- features --------------------------------------------------------------------------------------------------------


def test_feature_distance_is_that_of_the_penultimate_layer() -> None:
    torch.manual_seed(0)
    network = convnet(5, size=8, width=4)
    found, truth = noise(3, 3, 8, 8), noise(3, 3, 8, 8, seed=1)
    found[2] = truth[2]
    body = nn.Sequential(*list(network.children())[:-1]).eval()
    with torch.no_grad():
        a, b = body(found).double(), body(truth).double()
    network.train()
    distances = feature_distance(network, found, truth)
    torch.testing.assert_close(distances.double(), (a - b).norm(dim=1) / b.norm(dim=1), rtol=1e-5, atol=1e-6)
    assert distances[2] == 0
    assert distances[0] > 0
    assert network.training
    assert not distances.requires_grad


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [psnr, ssim, matched])
def test_bad_images_are_refused(measure) -> None:
    images = noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\[2, 3, 8, 8\] and true images \[2, 3, 8, 9\]"):
        measure(images, noise(2, 3, 8, 9))
    with pytest.raises(ValueError, match="same"):
        measure(images[0], images[0])
    with pytest.raises(TypeError, match=r"divided by 255"):
        measure(images, (images * 255).to(torch.uint8))
    with pytest.raises(ValueError, match="reconstructions hold NaN"):
        measure(images * torch.nan, images)


def test_bad_labels_are_refused() -> None:
    images = noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match="one side alone"):
        matched(images, images, labels_found=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels_truth has shape \[3\]; expected \[2\]"):
        matched(images, images, torch.tensor([0, 1]), torch.tensor([0, 1, 1]))


def test_bad_candidates_are_refused() -> None:
    images, row = noise(2, 3, 8, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="agree in all but the first"):
        identification_rank(images, noise(5, 3, 9, 9), row)
    with pytest.raises(ValueError, match="0 to 2, but candidates are rows 0 to 1"):
        identification_rank(images, images, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="row of each true image"):
        identification_rank(images, images, images)
    with pytest.raises(ValueError, match="candidates hold NaN"):
        identification_rank(images, images * torch.inf, row)
