"""How near reconstructions come to the true images: pixels, structure, order of a batch, identification, features."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.ensemble import features
from mithridate.core.pixels import to_floats

CEILING = 100.0
"""Highest PSNR in dB: an error of 1e-5, a four-hundredth of a step of 8-bit pixels. What lies beyond is rounding."""
WINDOW = 11
"""Side in pixels of the window of SSIM."""
SIGMA = 1.5
"""Standard deviation in pixels of its weights."""
TIE = 1e-9
"""Distances that differ by less than this share are equally far; rounding in float64 is a thousand times smaller."""
HELD = 2**22
"""Pixels of candidates that are held as floats at once: 32 MiB."""


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, for pixels in [0, 1]: -10 log10 of its mean squared error.

    The mean runs over all channels and pixels of an image together; it is no mean of ratios by channel. Equal images
    would have an infinite ratio, so ratios end at `CEILING`, and means stay finite.

    Args:
        images: [B, C, H, W] reconstructions.
        truth: [B, C, H, W] in [0, 1].

    Returns:
        [B] float64 on the images' device, at most `CEILING`.

    Raises:
        ValueError: Shapes that differ, or pixels that are not finite.
        TypeError: 8-bit images.

    >>> truth = torch.full((2, 3, 4, 4), 0.5)
    >>> psnr(truth + torch.tensor([0.25, 0.0]).view(2, 1, 1, 1), truth).round(decimals=2).tolist()
    [12.04, 100.0]
    """
    images, truth = _pair(images, truth)
    return _decibels((images - truth).square().flatten(1).mean(1))


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image, at most 1: means, variances and covariance in a window that moves.

    The window is 11 pixels wide with Gaussian weights (standard deviation 1.5), variances are those of the weighted
    population, K1 is 0.01, K2 0.03. Border rule: only windows that lie wholly in the image count, so nothing is padded.
    Values are averaged over positions and channels. Where a side of the image is below 11 pixels, the window's side is
    the largest odd number that fits into the shorter one, with the same standard deviation; such values compare with
    each other, but not with those of larger images.

    Reference: Wang, Bovik, Sheikh, Simoncelli. "Image Quality Assessment: From Error Visibility to Structural
    Similarity". IEEE Transactions on Image Processing 13(4), 2004, equation 13.

    Args:
        images: [B, C, H, W] reconstructions.
        truth: [B, C, H, W] in [0, 1].

    Returns:
        [B] float64 on the images' device.

    Raises:
        ValueError: Shapes that differ, or pixels that are not finite.
        TypeError: 8-bit images.

    >>> image = torch.linspace(0, 1, 144).view(1, 1, 12, 12)
    >>> [round(ssim(other, image).item(), 3) for other in (image, 1 - image, image / 2)]
    [1.0, -0.932, 0.647]
    """
    images, truth = _pair(images, truth)
    weights = _window(min(images.shape[2:])).to(images.device)
    count, channels = images.shape[:2]

    def local(values: Tensor) -> Tensor:
        """Weighted means [B * C, 1, h, w] of all windows, one direction after the other."""
        flat = values.reshape(count * channels, 1, *values.shape[2:])
        return functional.conv2d(functional.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    mean_a, mean_b = local(images), local(truth)
    variance_a, variance_b = local(images.square()) - mean_a.square(), local(truth.square()) - mean_b.square()
    covariance = local(images * truth) - mean_a * mean_b
    means, variances = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + means) * (2 * covariance + variances)
    value = value / ((mean_a.square() + mean_b.square() + means) * (variance_a + variance_b + variances))
    return value.reshape(count, -1).mean(1)


def matched(
    found: Tensor, truth: Tensor, labels_found: Tensor | None = None, labels_truth: Tensor | None = None
) -> Tensor:
    """The order of reconstructions that fits the true images best: ``found[order[i]]`` belongs to ``truth[i]``.

    A gradient is a sum over its batch, so the order within it cannot be known. The order with the highest mean PSNR is
    taken, and not the lowest mean squared error: the squared error is dominated by the worst images and would give away
    a perfect reconstruction to make two bad ones a little less bad. An attack that found nothing gains by this
    choice, too: compare it with one that returns noise, matched in the same way.

    Args:
        found: [B, C, H, W] reconstructions.
        truth: [B, C, H, W] in [0, 1].
        labels_found: [B] labels of the reconstructions. With both, as many images as possible are matched to one of
            their own label; only among such orders PSNR decides.
        labels_truth: [B] labels of the true images.

    Returns:
        [B] int64, a permutation, on the images' device.

    Raises:
        ValueError: Shapes that differ, pixels that are not finite, or labels of one side alone.
        TypeError: 8-bit images.

    >>> truth = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1)
    >>> matched(truth[[2, 0, 1]], truth).tolist()
    [1, 2, 0]
    """
    device = found.device
    found, truth = _pair(found, truth)
    rows = [_decibels((found - one).square().flatten(1).mean(1)) for one in truth]
    gain = torch.stack(rows) if rows else torch.zeros(0, 0)
    if (labels_found is None) != (labels_truth is None):
        raise ValueError("labels of one side alone; give labels_found and labels_truth, or neither")
    if labels_found is not None and labels_truth is not None:
        for name, labels in (("labels_found", labels_found), ("labels_truth", labels_truth)):
            if labels.shape != (len(truth),):
                raise ValueError(f"{name} has shape {list(labels.shape)}; expected [{len(truth)}], one per image")
        apart = gain.max() - gain.min() + 1 if len(truth) else 0.0
        same = labels_truth.to(device)[:, None] == labels_found.to(device)
        gain = gain + len(truth) * apart * same  # one more agreement outweighs any gain in decibels
    return torch.as_tensor(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1], device=device)


def identification_rank(found: Tensor, candidates: Tensor, truth: Tensor) -> Tensor:
    """The place of the true image among all candidates, sorted by their distance to the reconstruction; 1 is best.

    Rank 1 means that whoever holds a catalogue with the image in it can tell which one was in the batch. The rank is 1
    plus the number of candidates that are nearer than the true image, plus half of those equally near, rounded up: a
    reconstruction that all N candidates are equally far from has the rank of chance, (N + 1) / 2.

    Distances are plain Euclidean ones of pixels. A reconstruction that is darker, of less contrast or shifted by a
    pixel may therefore rank below a flat grey image; ranks of features forgive more. A constant reconstruction is
    nearest to candidates of low contrast: its rank is that of chance only on the average over true images.

    Args:
        found: [B, C, H, W] in [0, 1], or features [B, D].
        candidates: [N, C, H, W], float or uint8, or features [N, D]. The true images are among them. They are looked
            at in blocks, so they may be many.
        truth: [B] int64, the row of `candidates` that is the true image of each reconstruction.

    Returns:
        [B] int64 from 1 to N, on the reconstructions' device.

    Raises:
        ValueError: Shapes that do not fit, a row that is not there, or values that are not finite.

    >>> candidates = torch.tensor([0.0, 0.2, 0.6, 1.0]).view(4, 1, 1, 1)
    >>> identification_rank(
    ...     torch.tensor([0.55, 0.55]).view(2, 1, 1, 1), candidates, torch.tensor([2, 0])
    ... ).tolist()
    [1, 4]
    """
    if found.ndim < 2 or candidates.shape[1:] != found.shape[1:]:
        raise ValueError(
            f"reconstructions have shape {list(found.shape)} and candidates {list(candidates.shape)}; they must agree "
            "in all but the first dimension"
        )
    if truth.shape != (len(found),) or truth.is_floating_point():
        raise ValueError(
            f"truth is {truth.dtype} of shape {list(truth.shape)}; give the row of each true image among the "
            f"candidates, int64 [{len(found)}]"
        )
    if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < len(candidates):
        raise ValueError(
            f"truth names rows {int(truth.min())} to {int(truth.max())}, but candidates are rows 0 to "
            f"{len(candidates) - 1}; the true images must be among them"
        )
    apart = _distances(found, candidates)
    own = apart.gather(1, truth.to(apart.device)[:, None])
    nearer = (apart < own * (1 - TIE)).sum(1)
    others = (apart <= own * (1 + TIE)).sum(1) - nearer - 1  # the true image is as far as itself
    return 1 + nearer + (others + 1) // 2


def feature_distance(module: nn.Module, found: Tensor, truth: Tensor) -> Tensor:
    """Distance of penultimate features, |a - b| / |b|, with b those of the true image: what the network tells apart.

    Args:
        module: Has a last `nn.Linear`, whose inputs are the features; used in eval mode.
        found: [B, C, H, W] reconstructions.
        truth: [B, C, H, W] in [0, 1].

    Returns:
        [B] float32; 0 for equal features.

    Raises:
        ValueError: Shapes that differ, pixels that are not finite, or a module without a last Linear.
        TypeError: 8-bit images.

    >>> identity = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> feature_distance(identity, torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2))
    tensor([0.5000])
    """
    _pair(found, truth)
    with torch.no_grad():
        a, b = features(module, found), features(module, truth)
    return (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)


def _pair(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, after a look at their shapes and values."""
    if images.ndim != 4 or images.shape != truth.shape:
        raise ValueError(
            f"reconstructions have shape {list(images.shape)} and true images {list(truth.shape)}; both must be the "
            "same [B, C, H, W]"
        )
    for name, values in (("reconstructions", images), ("true images", truth)):
        if not values.is_floating_point():
            raise TypeError(f"{name} are {values.dtype}; give floats in [0, 1] (8-bit pixels divided by 255)")
        _finite(name, values)
    return images.detach().double(), truth.detach().to(images.device).double()


def _finite(name: str, values: Tensor) -> None:
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinity; a search that diverged has no similarity, so lower its step")


def _decibels(error: Tensor) -> Tensor:
    return -10 * error.clamp_min(10 ** (-CEILING / 10)).log10()


def _window(side: int) -> Tensor:
    """Gaussian weights [n] that sum to one; n is 11, or the largest odd number up to `side`."""
    reach = (min(side, WINDOW) - 1) // 2
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / SIGMA).square())
    return weights / weights.sum()


def _distances(found: Tensor, candidates: Tensor) -> Tensor:
    """Euclidean distances [B, N] in float64.

    From differences and not from inner products, which would set equally far candidates apart by rounding.
    """
    _finite("reconstructions", found)
    points = _floats(found).flatten(1)
    parts = []
    for block in candidates.split(max(1, HELD // max(1, points.shape[1]))):
        _finite("candidates", block)
        rows = _floats(block).flatten(1).to(points.device)
        parts.append(torch.cdist(points, rows, compute_mode="donot_use_mm_for_euclid_dist"))
    return torch.cat(parts, dim=1)


def _floats(values: Tensor) -> Tensor:
    return (to_floats(values) if values.dtype == torch.uint8 else values.detach()).double()
