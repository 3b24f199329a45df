"""True images above their reconstructions: the best, the median and the worst of a cell, batches shown together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mithridate.experiments import leak_words as words, pictures

if TYPE_CHECKING:
    from mithridate.experiments.leak_table import LeakRow

SHOWN = 10
"""Pairs per cell."""
LARGEST_SIDE = 96
"""Pixels; larger images are reduced."""
ROOM = 5_000_000
"""Characters of pictures on a page; what does not fit is left out, and the page says so."""
IMAGES = "images.safetensors"


@dataclass(frozen=True)
class Pair:
    """A true image, its reconstruction (data URIs) and how alike they are."""

    true: str
    found: str
    psnr: float
    rank: int
    says: str
    """Where it stands among the images of its cell (best, median, worst), and its class."""


class Group(NamedTuple):
    """Images that are shown together: some single ones, or those of one batch."""

    title: str
    pairs: list[Pair]


@dataclass(frozen=True)
class Strip:
    """The images of one cell."""

    row: LeakRow
    title: str
    note: str
    groups: list[Group]


class Sheet(NamedTuple):
    """The cells of one attack with one batch size, in one place."""

    title: str
    strips: list[Strip]


class _One(NamedTuple):
    psnr: float
    rank: int
    name: str
    seed: int
    place: int


def sheets(rows: Sequence[LeakRow], folder: Path) -> tuple[list[Sheet], int]:
    """(images of each cell that has some stored, number of cells left out for want of room)."""
    room, left_out, made = ROOM, 0, []
    for scene in words.scenes(rows):
        for size in sorted({row.batch for row in scene.rows}):
            strips = []
            for row in (row for row in scene.rows if row.batch == size):
                strip = _strip(row, folder) if room > 0 else None
                left_out += room <= 0
                if strip:
                    strips.append(strip)
                    room -= sum(len(p.true) + len(p.found) for group in strip.groups for p in group.pairs)
            if strips:
                place = f", {scene.place}" if scene.place else ""
                made.append(Sheet(f"{scene.attack}, {words.batches(size)}{place}", strips))
    return made, left_out


def _strip(row: LeakRow, folder: Path) -> Strip | None:
    stored = {seed: _stored(folder, result) for seed, (_, result) in row.cell.trials.items()}
    batches = {seed: _images(row, seed) for seed, tensors in stored.items() if tensors is not None}
    if not batches:
        return None
    single = all(len(found) == 1 for found in batches.values())
    groups = _singles(batches) if single else _batches(batches)
    drawn = [Group(title, [_pair(one, says, stored) for says, one in found]) for title, found in groups]
    shown = sum(len(group.pairs) for group in drawn)
    reduced = " Reduced to fit the page." if _side(stored) > LARGEST_SIDE else ""
    missing = len(stored) - len(batches)
    lost = f" The images of {missing} of {len(stored)} cases are not stored or cannot be read." if missing else ""
    note = f"{shown} of {sum(map(len, batches.values()))} images.{reduced}{lost}"
    return Strip(row, words.protection(row), note, drawn)


def _stored(folder: Path, result: dict) -> dict[str, np.ndarray] | None:
    """The true and the found images of a trial, where both are there and fit each other and the result."""
    tensors = pictures.tensors(folder / "trials" / str(result.get("trial")), IMAGES)
    true, found = tensors.get("true"), tensors.get("found")
    if true is None or found is None or true.ndim != 4 or true.shape != found.shape or true.dtype != np.uint8:
        return None
    return {"true": true, "found": found} if len(true) == len(result["outcome"]["psnr"]) else None


def _side(stored: dict[int, dict[str, np.ndarray] | None]) -> int:
    return max(max(tensors["true"].shape[-2:]) for tensors in stored.values() if tensors)


def _images(row: LeakRow, seed: int) -> list[_One]:
    result = row.cell.trials[seed][1]
    names = (result.get("data") or {}).get("classes") or []
    labels = (result.get("case") or {}).get("labels") or []
    said = [str(names[n]) if 0 <= n < len(names) else str(n) for n in labels]
    outcome = result["outcome"]
    return [
        _One(float(psnr), int(rank), said[place] if place < len(said) else "", seed, place)
        for place, (psnr, rank) in enumerate(zip(outcome["psnr"], outcome["rank"], strict=True))
    ]


Picked = list[tuple[str, list[tuple[str, _One]]]]


def _singles(batches: dict[int, list[_One]]) -> Picked:
    """Single images from the best to the worst, evenly spaced where there are more than fit."""
    ordered = sorted((one for found in batches.values() for one in found), key=lambda one: -one.psnr)
    picks = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered))).round().astype(int)).tolist()
    middle = min(picks, key=lambda place: abs(place - (len(ordered) - 1) / 2))
    names = {middle: "median"} | ({0: "best", len(ordered) - 1: "worst"} if len(ordered) > 1 else {0: ""})
    return [("", [(names.get(place, ""), ordered[place]) for place in picks])]


def _batches(batches: dict[int, list[_One]]) -> Picked:
    """The best, the worst and the median batch, as many as fit, each whole or its first images."""
    ordered = sorted(batches.values(), key=lambda found: -fmean(one.psnr for one in found))
    named = {"best batch": ordered[0], "worst batch": ordered[-1], "median batch": ordered[(len(ordered) - 1) // 2]}
    size = max(len(found) for found in ordered)
    fitting = max(1, SHOWN // size)
    order = ("median batch",) if fitting == 1 else ("best batch", "worst batch") if fitting == 2 else tuple(named)
    order = order if len(ordered) >= len(order) else ("median batch",)
    shown: Picked = []
    for name in sorted(order, key=["best batch", "median batch", "worst batch"].index):
        found = named[name]
        title = "the only batch" if len(ordered) == 1 else name
        title = f"{title} (case {found[0].seed})" + (f", its first {SHOWN} images" if len(found) > SHOWN else "")
        shown.append((title, [("", one) for one in found[:SHOWN]]))
    return shown


def _pair(one: _One, says: str, stored: dict[int, dict[str, np.ndarray] | None]) -> Pair:
    tensors = stored[one.seed]
    assert tensors is not None
    true, found = (pictures.png(pictures.reduced(tensors[name][one.place], LARGEST_SIDE)) for name in ("true", "found"))
    return Pair(true, found, one.psnr, one.rank, ", ".join(filter(None, (says, one.name))))
