"""Verification: what is true of a parcel, measured on its own pixels beside the clean data at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mithridate.core.balls import AnyImage, Ball
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.poisoning.exchange.parcel import Parcel, Reference

LOOKED_UP = 200
"""Poisons whose nearest training image is looked for; more are a random part of them."""
NEARER = 0.5
"""Another row is the true base of a poison if it is at most this much as far away as the row that is named."""
LOSSY = 16 / 255
"""Mean difference up to which two images are taken for one that was compressed."""

Standing = Literal["holds", "fails", "unknown"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    """In a word."""
    standing: Standing
    """unknown: the parcel, or the data, do not say enough."""
    said: str
    """In a sentence, with numbers."""


def verify(parcel: Parcel, data: Reference, *, ball: Ball | None = None, relabel: bool = False) -> list[Finding]:
    """Compares a parcel with the clean data.

    Args:
        parcel: As it was read.
        data: What its rows are of.
        ball: How far an image may have been moved; None: distances are measured and judged by nobody.
        relabel: Whether labels may differ from those of the clean rows.

    Returns:
        What was found of size, rows, labels, base images, distances and targets, in that order. What cannot be looked
        at because of an earlier failure is left out.

    >>> from mithridate import Digits
    >>> train, test = Digits(train=100).load()
    >>> parcel = Parcel(train.pixels(train.ids[:2]), train.labels[:2], rows=train.ids[:2])
    >>> [finding.standing for finding in verify(parcel, Reference(train, test))]
    ['holds', 'holds', 'holds', 'holds', 'unknown', 'unknown']
    """
    size = _size(parcel, data)
    if size.standing == "fails":
        return [size]
    rows = _rows(parcel, data.train)
    if rows.standing != "holds":
        return [size, rows, _targets(parcel, data)]
    return [
        size,
        rows,
        _labels(parcel, data.train, relabel=relabel),
        _base(parcel, data.train, ball),
        _distances(parcel, data.train, ball),
        _targets(parcel, data),
    ]


def _size(parcel: Parcel, data: Reference) -> Finding:
    found, expected = tuple(parcel.images.shape[1:]), data.train.shape
    text = "x".join(map(str, found))
    if found != expected:
        return Finding("size", "fails", f"images are {text}, those of the data {'x'.join(map(str, expected))}")
    return Finding("size", "holds", f"{len(parcel):,} images of {text}, 8 bits")


def _rows(parcel: Parcel, train: ImageData) -> Finding:
    if parcel.rows is None:
        return Finding("rows", "unknown", "the format does not say which training rows are replaced")
    rows = parcel.rows.cpu()
    outside = rows[~torch.isin(rows, train.ids.cpu())]
    if len(outside):
        return Finding(
            "rows",
            "fails",
            f"{len(outside)} rows are not in the training set of {len(train):,}; one is {int(outside[0])}",
        )
    values, counts = rows.unique(return_counts=True)
    if len(values) < len(rows):
        twice = int(values[counts > 1][0])
        return Finding("rows", "fails", f"{len(rows) - len(values)} rows are named more than once; one is {twice}")
    return Finding("rows", "holds", f"{len(rows):,} different rows of {len(train):,}")


def _labels(parcel: Parcel, train: ImageData, *, relabel: bool) -> Finding:
    rows = _on(parcel.rows, train)
    if parcel.labels is None:
        return Finding("labels", "holds", "the format has none: they are those of the rows")
    own, given = train.labels_of(rows).cpu(), parcel.labels.cpu()
    if bool(((given < 0) | (given >= len(train.classes))).any()):
        return Finding("labels", "fails", f"label {int(given.max())} is none of the {len(train.classes)} classes")
    changed = (own != given).nonzero()[:, 0]
    if not len(changed):
        return Finding("labels", "holds", "all as in the training set")
    first = int(changed[0])
    names = train.classes[int(own[first])], train.classes[int(given[first])]
    one = f"row {int(rows[first])} is {names[0]} there and {names[1]} here"
    text = f"{len(changed):,} of {len(own):,} differ from the training set; {one}"
    return Finding("labels", "holds", text) if relabel else Finding("labels", "fails", f"{text}; --relabel allows it")


def _base(parcel: Parcel, train: ImageData, ball: Ball | None) -> Finding:
    """Whether the rows at hand are what was poisoned."""
    rows = _on(parcel.rows, train)
    if parcel.base is not None:
        own, sent = train.pixels(rows).cpu(), parcel.base.cpu()
        other = (own != sent).flatten(1).any(1)
        if not bool(other.any()):
            return Finding(
                "base", "holds", "the clean images that came along are those of the training set, bit by bit"
            )
        far = (own[other].float() - sent[other].float()).abs().mean() / 255
        if float(far) <= LOSSY:
            return Finding(
                "base",
                "fails",
                f"{int(other.sum()):,} clean images that came along differ from the training set by "
                f"{255 * float(far):.2g}/255 in the mean: the data at hand are a compressed copy, on which distances "
                "mean nothing; use the original",
            )
        return Finding("base", "fails", f"{int(other.sum()):,} clean images that came along are others than those rows")
    if isinstance(ball, AnyImage):
        return Finding("base", "unknown", "images may be any, so they do not show which rows they were")
    wrong = list(_elsewhere(parcel, train))
    if wrong:
        poison, row, nearest, named, near = wrong[0]
        return Finding(
            "base",
            "fails",
            f"{len(wrong)} of {min(len(parcel), LOOKED_UP)} images look like other rows: image {poison} names row "
            f"{row} (L2 {named:.3g}) and looks like row {nearest} (L2 {near:.3g})",
        )
    return Finding("base", "holds", f"of {min(len(parcel), LOOKED_UP)} images none looks more like another row")


def _elsewhere(parcel: Parcel, train: ImageData) -> Iterator[tuple[int, int, int, float, float]]:
    """(image, row named, nearest row, distance to both) of images that lie nearer to another training image."""
    rows, count = _on(parcel.rows, train), len(parcel)
    chosen = torch.randperm(count, generator=stream(0, "verify"))[:LOOKED_UP].sort().values
    images = parcel.images[chosen].to(train.device).float().flatten(1) / 255
    best = torch.full((len(chosen),), torch.inf, device=train.device)
    where = torch.zeros(len(chosen), dtype=torch.int64, device=train.device)
    for part in train.ids.split(4096):
        distance, index = torch.cdist(images, train.floats(part).flatten(1)).min(1)
        nearer = distance < best
        best, where = torch.where(nearer, distance, best), torch.where(nearer, part[index], where)
    named = (images - train.floats(rows[chosen.to(rows.device)]).flatten(1)).norm(dim=1)
    for i in (best < NEARER * named).nonzero()[:, 0].tolist():
        yield int(chosen[i]), int(rows[chosen[i]]), int(where[i]), float(named[i]), float(best[i])


def _distances(parcel: Parcel, train: ImageData, ball: Ball | None) -> Finding:
    rows = _on(parcel.rows, train)
    largest, total, outside = 0.0, 0.0, []
    for place in torch.arange(len(parcel)).split(1024):
        base, images = train.floats(rows[place.to(rows.device)]), parcel.images[place].to(train.device).float() / 255
        change = (images - base).flatten(1)
        largest, total = max(largest, float(change.abs().max())), total + float(change.norm(dim=1).sum())
        if ball is not None:
            outside += place[~ball.contains(base, images).cpu()].tolist()
    text = f"largest change of a pixel {255 * largest:.0f}/255, mean L2 {total / max(len(parcel), 1):.3g}"
    if ball is None:
        return Finding("distance", "unknown", f"{text}; name a limit to have it judged")
    if outside:
        return Finding(
            "distance",
            "fails",
            f"{text}; {len(outside):,} of {len(parcel):,} images are not within the limit ({ball.describe()}); one is "
            f"image {outside[0]}",
        )
    return Finding("distance", "holds", f"{text}; all inside: {ball.describe()}")


def _targets(parcel: Parcel, data: Reference) -> Finding:
    if parcel.target_rows is None and parcel.target_images is None:
        return Finding("targets", "unknown", "the format does not say which test images are aimed at")
    rows = parcel.target_rows
    if rows is None:
        assert parcel.target_images is not None
        rows = _found(parcel.target_images, data.test)
        if bool((rows < 0).any()):
            if parcel.patch is not None or parcel.trigger is not None or "trigger" in parcel.notes:
                return Finding("targets", "unknown", "target images carry a trigger, and the test set has them without")
            return Finding(
                "targets", "fails", f"{int((rows < 0).sum())} of {len(rows)} target images are not in the test set"
            )
    elif bool((~torch.isin(rows, data.test.ids.cpu())).any()):
        return Finding("targets", "fails", f"target row {int(rows.max())} is not in the test set of {len(data.test):,}")
    elif parcel.target_images is not None and not torch.equal(
        data.test.pixels(rows.to(data.test.device)).cpu(), parcel.target_images
    ):
        return Finding("targets", "fails", "the target images that came along are not those rows of the test set")
    known = data.test.labels_of(rows.to(data.test.device)).cpu()
    if parcel.target_labels is not None and not torch.equal(known, parcel.target_labels):
        return Finding(
            "targets", "fails", f"targets are of class {known.tolist()}, not {parcel.target_labels.tolist()}"
        )
    return Finding("targets", "holds", f"test rows {', '.join(map(str, rows[:5].tolist()))}{', ...' * (len(rows) > 5)}")


def _found(images: Tensor, data: ImageData) -> Tensor:
    """The row of each image [T, C, H, W] uint8 in a data set, -1 where it is in none, [T] int64."""
    rows = torch.full((len(images),), -1, dtype=torch.int64)
    for part in data.ids.split(4096):
        pixels = data.pixels(part).cpu().flatten(1)
        same = torch.stack([(pixels == image).all(1) for image in images.flatten(1)])
        hit, index = same.max(1)
        rows = torch.where(hit & (rows < 0), part.cpu()[index], rows)
    return rows


def _on(rows: Tensor | None, train: ImageData) -> Tensor:
    assert rows is not None
    return rows.to(train.device)
