"""Nearest neighbours of features, exact and in blocks: memory for a few hundred rows of distances, never for all."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mithridate.core.memory import shrinking

BLOCK = 512
"""Rows searched at once: the matrix product is at its full speed from about here."""
HELD = 2**26
"""Distances held at once, where that still leaves MIN_BLOCK rows: 256 MiB of float32."""
MIN_BLOCK = 64
ALIGNED = 16
"""Rows of distances begin at multiples of this: elsewhere the matrix product takes 1.4 times as long on a CPU."""


def nearest(features: Tensor, k: int, *, then: Callable[[Tensor], Tensor] | None = None, block: int = 0) -> Tensor:
    """Finds the k nearest other rows of each row by Euclidean distance, nearest first.

    Every pair is looked at. Features are centred and compared in float32 (float64 where they are float64): a squared
    distance is |b|^2 - 2ab, and |a|^2, the same for the whole row, is left out. What rounding may swap are rows whose
    squared distances differ by less than about 1e-6 (1e-15) of the features' own squared length, measured from their
    mean; a common offset costs nothing. Which of equally near rows come first is left to `torch.topk`.

    Args:
        features: [N, D].
        k: neighbours of each row, at least 1 and fewer than N; a row is not its own neighbour, its copies are.
        then: what to keep of each block of B rows in place of the neighbours: [B, k] -> [B, ...], blocks in order.
        block: rows per block; chosen by N unless given, and halved where memory runs out.

    Returns:
        Row numbers [N, k] int64, or what `then` made of them, [N, ...].

    Raises:
        ValueError: If there are not that many other rows, or a feature is not finite.

    >>> nearest(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), 2).tolist()
    [[1, 2], [0, 2], [1, 0], [2, 1]]
    """
    if features.ndim != 2:
        raise ValueError(f"features have the shape {tuple(features.shape)}; it must be [rows, features]")
    count = len(features)
    if not 1 <= k < count:
        raise ValueError(f"{k} neighbours of {count} rows; ask for at least 1 and at most {count - 1}")
    points = features.detach() if features.dtype == torch.float64 else features.detach().float()
    points = points - points.mean(0)
    lengths = points.square().sum(1)
    if not bool(lengths.isfinite().all()):
        raise ValueError("some features are not finite: the model has diverged; train it at a lower learning rate")
    groups = min(16, math.isqrt(count // k))
    width = -(-count // (ALIGNED * groups)) * ALIGNED * groups

    def work(size: int) -> Tensor:
        found: Tensor | None = None
        scores = points.new_empty(min(size, count), width)  # one buffer for all blocks
        for start in range(0, count, size):
            rows = points[start : start + size]
            part = scores[: len(rows)]
            torch.addmm(lengths, rows, points.T, alpha=-2, out=part[:, :count])
            part[:, count:] = math.inf
            part[:, start:].diagonal().fill_(math.inf)
            index = _smallest(part, k, groups)
            kept = index if then is None else then(index)
            if found is None:  # not a list: pieces kept between the blocks would stop the heap from shrinking
                found = kept.new_empty(count, *kept.shape[1:])
            found[start : start + len(rows)] = kept
        assert found is not None
        return found

    return shrinking(work, block or max(MIN_BLOCK, min(BLOCK, HELD // count)))


def _smallest(scores: Tensor, k: int, groups: int) -> Tensor:
    """Positions of the k smallest of each row [B, W], smallest first: `topk` of fewer numbers.

    Columns a distance of W / groups apart form a bundle. The k smallest lie in those k bundles whose smallest member is
    smallest, so these alone are searched.
    """
    if groups == 1:
        return scores.topk(k, largest=False).indices
    bundles = scores.unflatten(1, (groups, -1))
    best = bundles.amin(1).topk(k, largest=False, sorted=False).indices
    members = bundles.gather(2, best[:, None].expand(-1, groups, -1)).flatten(1)
    index = members.topk(k, largest=False).indices
    return best.gather(1, index % k) + index // k * bundles.shape[2]
