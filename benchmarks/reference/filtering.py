"""Filters and a guard by hand: as one writes them first, and the ways that were tried to make them fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# --- spectral signatures: the rows of each class with the highest score ----------------------------------------------


def spectral_plain(features: Tensor, labels: Tensor, count: int) -> Tensor:
    """Singular value decomposition of each class's centred features; marks `count` rows of each class, [N] bool."""
    marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        centred = features[members] - features[members].mean(0)
        direction = torch.linalg.svd(centred, full_matrices=False)[2][0]
        scores = (centred @ direction) ** 2
        marked[members[scores.argsort(descending=True)[:count]]] = True
    return marked


def spectral_by_covariance(features: Tensor, labels: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """All eigenvectors of each class's covariance, in that number format."""
    marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        centred = features[members].to(dtype)
        centred -= centred.mean(0)
        direction = torch.linalg.eigh(centred.T @ centred)[1][:, -1]
        marked[members[(centred @ direction).square().topk(count).indices]] = True
    return marked


# --- deep k-NN: the rows whose k nearest neighbours mostly have another label ----------------------------------------


def knn_plain(features: Tensor, labels: Tensor, k: int) -> Tensor:
    """All distances in one matrix, all of them sorted, a loop over the rows; marks [N] bool."""
    order = torch.cdist(features, features).argsort(1)
    marked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for row in range(len(labels)):
        near = order[row][order[row] != row][:k]
        votes = torch.bincount(labels[near], minlength=int(labels.max()) + 1)
        marked[row] = votes[labels[row]] < votes.max()
    return marked


def knn_whole(features: Tensor, labels: Tensor, k: int) -> Tensor:
    """All distances in one matrix, `topk`, votes of all rows at once."""
    distances = torch.cdist(features, features).fill_diagonal_(math.inf)
    return _outvoted(labels, labels[distances.topk(k, largest=False, sorted=False).indices])


def knn_blocks(features: Tensor, labels: Tensor, k: int, block: int = 512) -> Tensor:
    """Blocks of rows by all columns, one matrix product and one `topk` each."""
    lengths, marked = features.square().sum(1), []
    for start in range(0, len(features), block):
        rows = features[start : start + block]
        scores = torch.addmm(lengths, rows, features.T, alpha=-2)
        scores[:, start:].diagonal().fill_(math.inf)
        near = scores.topk(k, largest=False, sorted=False).indices
        marked.append(_outvoted(labels[start : start + block], labels[near], int(labels.max()) + 1))
    return torch.cat(marked)


def knn_tiles(features: Tensor, labels: Tensor, k: int, block: int = 512, width: int = 4096) -> Tensor:
    """Blocks of rows by blocks of columns; the k nearest so far are merged with those of each new tile."""
    lengths, marked = features.square().sum(1), []
    for start in range(0, len(features), block):
        rows = features[start : start + block]
        best = rows.new_full((len(rows), k), math.inf)
        near = torch.zeros(len(rows), k, dtype=torch.int64, device=rows.device)
        own = torch.arange(start, start + len(rows), device=rows.device)[:, None]
        for left in range(0, len(features), width):
            scores = torch.addmm(lengths[left : left + width], rows, features[left : left + width].T, alpha=-2)
            columns = torch.arange(left, left + scores.shape[1], device=rows.device)
            scores = scores.masked_fill(columns == own, math.inf)
            found = scores.topk(min(k, scores.shape[1]), largest=False, sorted=False)
            best, kept = torch.cat([best, found.values], 1).topk(k, largest=False, sorted=False)
            near = torch.cat([near, found.indices + left], 1).gather(1, kept)
        marked.append(_outvoted(labels[start : start + block], labels[near], int(labels.max()) + 1))
    return torch.cat(marked)


def _outvoted(labels: Tensor, neighbours: Tensor, classes: int | None = None) -> Tensor:
    """Whether another label than a row's own is the most frequent of its neighbours' [B, k]."""
    classes = int(labels.max()) + 1 if classes is None else classes
    votes = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    votes.scatter_add_(1, neighbours, torch.ones_like(neighbours))
    return votes.gather(1, labels[:, None])[:, 0] < votes.amax(1)


# --- STRIP: the images whose predictions stay sure when they are blended ---------------------------------------------


def entropies_plain(network: nn.Module, images: Tensor, overlays: Tensor) -> Tensor:
    """Mean entropy of the predictions of each image's blends [B], one image after the other."""
    found = []
    with torch.no_grad():
        for image in images:
            shares = network((image + overlays).clamp(0, 1)).softmax(1)
            found.append(-(shares * shares.clamp_min(1e-12).log()).sum(1).mean())
    return torch.stack(found)


def entropies_in_chunks(network: nn.Module, images: Tensor, overlays: Tensor, blends: int) -> Tensor:
    """The same for so many blends at a time, channels last, in the number format of the network."""
    found = []
    dtype = next(network.parameters()).dtype
    images, overlays = images.to(dtype), overlays.to(dtype)
    with torch.no_grad():
        for part in images.split(max(1, blends // len(overlays))):
            blended = (part[:, None] + overlays).clamp_(0, 1).flatten(0, 1)
            shares = network(blended.contiguous(memory_format=torch.channels_last)).float().softmax(1)
            found.append(torch.special.entr(shares).sum(1).view(len(part), -1).mean(1))
    return torch.cat(found)


def refused(entropies: Tensor, known: Tensor, false_alarms: float) -> Tensor:
    """Whether an entropy lies below that quantile of a normal distribution fitted to the known ones."""
    normal = torch.distributions.Normal(known.mean(), known.std())
    return entropies < normal.icdf(torch.tensor(false_alarms, device=known.device))
