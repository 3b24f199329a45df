"""Problems that are lifted: segmentation into few colours, stereo on rectified pairs, denoising.

A problem says what every label costs at every pixel, and how labels of neighbours may differ. The costs of all labels
at once are what makes lifting large, so they are made a few labels at a time: a graph of superpixels then never needs
room for pixels times labels.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mithridate.lifting.energy import Potts, Regulariser, TotalVariation, TruncatedVariation

CHUNK = 8
"""Labels whose costs are made at once."""
CENSUS_RADIUS = 2
"""Windows of 5 x 5 pixels: 24 comparisons, which fit in an int32."""
TRUNCATION = {"census": 0.3, "absolute": 0.1}
WEIGHT = {"census": 0.05, "absolute": 0.01}
"""Of stereo, unless the user says: of nine pairs of settings for each cost, tried on Teddy and Cones at a quarter of
their size, these have 4.4 % and 4.7 % bad pixels; the best have 4.2 % and 4.6 %, the worst 7.0 % and 7.4 %."""
SAMPLE = 20_000
"""Pixels that k-means looks at."""

Matching = Literal["census", "absolute"]
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What every label costs at every pixel, and what it costs that neighbours differ.

    >>> problem = Problem.from_costs(torch.rand(4, 5, 3), Potts(weight=0.1))
    >>> problem.height, problem.width, problem.labels, problem.costs().shape
    (4, 5, 3, torch.Size([4, 5, 3]))
    """

    cost: Callable[[int, int], Tensor]
    """(first, last) -> costs [H, W, last - first] of the labels first .. last - 1."""
    guide: Tensor
    """[H, W, 3] in [0, 1]: the image that superpixels are made from."""
    labels: int
    regulariser: Regulariser
    values: Tensor | None = None
    """[L] increasing: what ordered labels stand for (disparities in pixels, brightness); None: labels have no order."""
    colours: Tensor | None = None
    """[L, 3] in [0, 1]: how to show the labels of a segmentation."""

    @classmethod
    def from_costs(
        cls, costs: Tensor, regulariser: Regulariser, *, values: Tensor | None = None, guide: Tensor | None = None
    ) -> Problem:
        """Makes a problem of costs of the user's own.

        Args:
            costs: [H, W, L] per pixel.
            regulariser: What it costs that neighbours differ.
            values: [L] what ordered labels stand for.
            guide: [H, W, 3] in [0, 1] for superpixels. Default: brightness is each pixel's cheapest label.

        Raises:
            ValueError: costs of another shape, or that are not finite.
        """
        if costs.ndim != 3 or min(costs.shape) < 1:
            raise ValueError(f"the costs are {list(costs.shape)}; expected [height, width, labels]")
        if not bool(torch.isfinite(costs).all()):
            raise ValueError("some costs are not finite; give a forbidden label a large cost instead")
        if guide is None:
            best = costs.argmin(-1).float() / max(1, costs.shape[2] - 1)
            guide = best[:, :, None].expand(-1, -1, 3)
        return cls(lambda first, last: costs[:, :, first:last], guide, costs.shape[2], regulariser, values)

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.guide.shape[0]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.guide.shape[1]

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, Tensor]]:
        """Yields (first label, costs [H, W, up to `size`]), all labels in order."""
        for first in range(0, self.labels, size):
            yield first, self.cost(first, min(first + size, self.labels))

    def costs(self) -> Tensor:
        """Returns the costs of all labels at once, [H, W, L]."""
        return torch.cat([part for _, part in self.chunks()], dim=-1)


def check_image(image: Tensor, name: str = "the image") -> Tensor:
    """Returns an image [H, W, 3], grey repeated, after checking it.

    Raises:
        ValueError: another shape, or pixels outside [0, 1].

    >>> check_image(torch.zeros(2, 3, 1)).shape
    torch.Size([2, 3, 3])
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3) or min(image.shape) < 1:
        raise ValueError(f"{name} is {list(image.shape)}; expected [height, width, 1 or 3]")
    low, high = (float(end) for end in image.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} has pixels in {low:g}..{high:g}; expected [0, 1], so divide 8-bit pixels by 255")
    return image if image.dtype.is_floating_point and image.shape[2] == 3 else image.float().expand(-1, -1, 3)


def brightness(image: Tensor) -> Tensor:
    """Returns the brightness [H, W] of an image [H, W, 3].

    >>> brightness(torch.ones(1, 1, 3)).item()
    1.0
    """
    return image @ torch.tensor(GREY, dtype=image.dtype, device=image.device)


# --- segmentation ----------------------------------------------------------------------------------------------------


def segmentation(image: Tensor, *, colours: int | Tensor = 6, weight: float = 0.05, seed: int = 0) -> Problem:
    """Minimal partition of an image into regions of few colours.

    A label costs the squared distance of the pixel's colour to that of the label, plus `weight` per pixel edge between
    two labels.

    Reference: Mumford, Shah. "Optimal approximations by piecewise smooth functions and associated variational
    problems". Communications on Pure and Applied Mathematics 42, 1989, with constants that are given beforehand.

    Args:
        image: [H, W, 1 or 3] in [0, 1].
        colours: How many, found by k-means, or the colours themselves, [L, 3] in [0, 1].
        weight: Cost of a boundary per pixel edge, in squared distance of colours.
        seed: Of k-means.

    Raises:
        ValueError: fewer than two colours, more than the image has, a negative weight.

    >>> image = torch.tensor([[0.0, 0.1, 0.9, 1.0]])[:, :, None]
    >>> segmentation(image, colours=2).colours[:, 0]
    tensor([0.0500, 0.9500])
    """
    image = check_image(image)
    centres = main_colours(image, colours, seed) if isinstance(colours, int) else colours.to(image)
    if centres.ndim != 2 or centres.shape[1] != 3 or len(centres) < 2:
        raise ValueError(f"the colours are {list(centres.shape)}; expected [2 or more, 3] in [0, 1]")

    def cost(first: int, last: int) -> Tensor:
        return (image[:, :, None, :] - centres[first:last]).square_().sum(-1)

    return Problem(cost, image, len(centres), Potts(weight=weight), colours=centres)


def main_colours(image: Tensor, count: int, seed: int = 0) -> Tensor:
    """Returns the colours [count, 3] of an image by k-means, the darkest first; the best of five starts.

    Reference: Arthur, Vassilvitskii. "k-means++: the advantages of careful seeding". SODA 2007: how it starts.

    Raises:
        ValueError: fewer than two, or more than the image has.

    >>> main_colours(torch.tensor([[0.0, 1.0, 0.0]])[:, :, None].expand(-1, -1, 3), 2)[:, 0]
    tensor([0., 1.])
    """
    if count < 2:
        raise ValueError(f"{count} colours; a segmentation needs 2 or more")
    rng = np.random.default_rng(seed)
    pixels = image.reshape(-1, 3).double().cpu().numpy()
    if len(pixels) > SAMPLE:
        pixels = pixels[rng.choice(len(pixels), SAMPLE, replace=False)]
    distinct = len(np.unique(pixels, axis=0))
    if count > distinct:
        raise ValueError(f"{count} colours, but the image has {distinct}; ask for at most {distinct}")
    found = min((_means(pixels, count, rng) for _ in range(5)), key=lambda one: one[1])[0]
    order = np.lexsort((found[:, 0], found @ GREY))
    return torch.from_numpy(found[order]).to(image)


def _means(pixels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Centres of one run of k-means, and the mean squared distance to them."""
    from scipy.cluster.vq import kmeans2, vq

    centres = pixels[rng.integers(len(pixels), size=1)]
    for _ in range(count - 1):
        distance = vq(pixels, centres)[1] ** 2
        centres = np.concatenate([centres, pixels[rng.choice(len(pixels), size=1, p=distance / distance.sum())]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that runs empty keeps its colour
        centres, _ = kmeans2(pixels, centres, iter=30, minit="matrix")
    return centres, float((vq(pixels, centres)[1] ** 2).mean())


# --- stereo ----------------------------------------------------------------------------------------------------------


def stereo(
    left: Tensor,
    right: Tensor,
    *,
    disparities: int,
    cost: Matching = "census",
    weight: float | None = None,
    limit: float | None = None,
    truncation: float | None = None,
) -> Problem:
    """Disparity of a rectified pair: pixel x of the left image is at x - d in the right one.

    Reference for `census`: Zabih, Woodfill. "Non-parametric local transforms for computing visual correspondence".
    ECCV 1994: which of the 24 pixels around a pixel are darker than it; the cost is the share of answers that differ.
    Where x - d lies left of the right image, the cost is that of the last disparity that does not.

    Args:
        left: [H, W, 1 or 3] in [0, 1]; the disparities are those of its pixels.
        right: The other image, of the same size.
        disparities: The labels are 0 .. disparities - 1, in pixels.
        cost: `census`, or `absolute`: mean absolute difference of the colours.
        weight: Of the total variation: cost per pixel edge and pixel of disparity. Default: 0.05 for `census`, 0.01
            for `absolute`. It is the same at any size: shrunk images have shorter edges and smaller jumps alike.
        limit: No jump costs more than this per pixel edge (truncated total variation).
        truncation: No pixel costs more than this. Default: 0.3 for `census`, 0.1 for `absolute`.

    Raises:
        ValueError: images of two sizes, fewer than two disparities or more than columns, a truncation or weight that
            is no positive number.

    >>> left = torch.rand(6, 12, 1, generator=torch.Generator().manual_seed(0))
    >>> right = left.roll(-2, dims=1)
    >>> stereo(left, right, disparities=4).costs()[:, 6:9].argmin(-1).unique()
    tensor([2])
    """
    left, right = check_image(left, "the left image"), check_image(right, "the right image")
    if left.shape != right.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (left, right)]
        raise ValueError(
            f"the left image is {sizes[0]} pixels, the right one {sizes[1]}; a rectified pair has one size"
        )
    if not 2 <= disparities <= left.shape[1]:
        raise ValueError(f"{disparities} disparities for images of {left.shape[1]} columns; give 2 to {left.shape[1]}")
    if cost not in TRUNCATION:
        raise ValueError(f"the cost {cost!r} is not known; census or absolute")
    most = TRUNCATION[cost] if truncation is None else truncation
    if not most > 0:
        raise ValueError(f"truncation is {most:g}; it is the largest cost of a pixel, so more than 0")
    pair = tuple(census(brightness(image)) for image in (left, right)) if cost == "census" else (left, right)
    compare = _census_cost if cost == "census" else _absolute_cost

    def costs(first: int, last: int) -> Tensor:
        found = left.new_empty((*left.shape[:2], last - first))
        for number, disparity in enumerate(range(first, last)):
            found[:, :, number] = compare(pair[0], moved(pair[1], disparity))
        return found.clamp_max_(most)

    slope = WEIGHT[cost] if weight is None else weight
    regulariser = TotalVariation(weight=slope) if limit is None else TruncatedVariation(weight=slope, limit=limit)
    values = torch.arange(disparities, dtype=left.dtype, device=left.device)
    return Problem(costs, left, disparities, regulariser, values)


def moved(image: Tensor, disparity: int) -> Tensor:
    """Returns the image [H, W, ...] moved right by some columns, its first column repeated.

    >>> moved(torch.tensor([[1, 2, 3]]), 1)
    tensor([[1, 1, 2]])
    """
    if disparity == 0:
        return image
    return torch.cat([image[:, :1].expand(-1, disparity, *image.shape[2:]), image[:, :-disparity]], dim=1)


def census(grey: Tensor) -> Tensor:
    """Returns which of the 24 pixels around each pixel [H, W] are darker than it, as bits of an int32.

    >>> census(torch.tensor([[0.0, 1.0, 0.0]])).tolist()[0][0]
    0
    """
    height, width = grey.shape
    rows, columns = (
        torch.arange(-CENSUS_RADIUS, size + CENSUS_RADIUS, device=grey.device).clamp_(0, size - 1)
        for size in (height, width)
    )
    padded = grey[rows][:, columns]
    bits = torch.zeros(height, width, dtype=torch.int32, device=grey.device)
    side = 2 * CENSUS_RADIUS + 1
    for down, across in itertools.product(range(side), repeat=2):
        if (down, across) != (CENSUS_RADIUS, CENSUS_RADIUS):
            bits = (bits << 1) | (padded[down : down + height, across : across + width] < grey)
    return bits


def _census_cost(one: Tensor, other: Tensor) -> Tensor:
    """Share of bits that differ; counted in parallel within the int32, two, four and eight at a time."""
    bits = one ^ other
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = (bits + (bits >> 8) + (bits >> 16) + (bits >> 24)) & 0xFF
    return bits.float() / ((2 * CENSUS_RADIUS + 1) ** 2 - 1)


def _absolute_cost(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs_().mean(-1)


# --- denoising -------------------------------------------------------------------------------------------------------


def denoising(
    channel: Tensor,
    *,
    levels: int = 32,
    weight: float = 0.1,
    limit: float | None = None,
    cost: Literal["squared", "absolute"] = "squared",
    guide: Tensor | None = None,
) -> Problem:
    """One channel without its noise: as near to it as its total variation allows.

    Reference: Rudin, Osher, Fatemi. "Nonlinear total variation based noise removal algorithms". Physica D 60, 1992
    (`squared`); the values are `levels` ones here, so the best labelling is found for any cost.

    Args:
        channel: [H, W] in [0, 1].
        levels: Values, evenly from 0 to 1.
        weight: Of the total variation, per pixel edge.
        limit: No jump costs more than this per pixel edge.
        cost: `squared`, for Gaussian noise, or `absolute`, for pixels that are wrong altogether.
        guide: [H, W, 3], what superpixels are made from. Default: the channel.

    Raises:
        ValueError: another shape, fewer than two levels, a negative weight.

    >>> denoising(torch.tensor([[0.0, 1.0]]), levels=3).costs()
    tensor([[[0.0000, 0.2500, 1.0000],
             [1.0000, 0.2500, 0.0000]]])
    """
    if channel.ndim != 2:
        raise ValueError(f"the channel is {list(channel.shape)}; expected [height, width], so denoise one at a time")
    grey = check_image(channel[:, :, None], "the channel")
    if levels < 2:
        raise ValueError(f"{levels} levels; denoising needs 2 or more")
    if cost not in ("squared", "absolute"):
        raise ValueError(f"the cost {cost!r} is not known; squared or absolute")
    values = torch.linspace(0, 1, levels, dtype=grey.dtype, device=grey.device)

    def costs(first: int, last: int) -> Tensor:
        apart = grey[:, :, :1] - values[first:last]
        return apart.square_() if cost == "squared" else apart.abs_()

    regulariser = TotalVariation(weight=weight) if limit is None else TruncatedVariation(weight=weight, limit=limit)
    return Problem(costs, grey if guide is None else check_image(guide), levels, regulariser, values)
