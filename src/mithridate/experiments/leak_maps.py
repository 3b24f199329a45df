"""Defences against batch sizes: a map of how many images are picked out, for each attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments import leak_words as words
from mithridate.experiments.heatmaps import tone

if TYPE_CHECKING:
    from mithridate.experiments.leak_table import LeakRow


class Box(NamedTuple):
    """One cell of a map."""

    row: LeakRow
    tone: int
    """Step of the colour scale."""
    standing: str


class Map(NamedTuple):
    """One attack in one place: protections (lines) by batch sizes."""

    title: str
    sizes: list[int]
    lines: list[tuple[str, list[Box | None]]]


def leak_maps(rows: Sequence[LeakRow]) -> list[Map]:
    """A map for each attack and place."""
    made = []
    for scene in words.scenes(rows):
        sizes = sorted({row.batch for row in scene.rows})
        boxes = {(words.protection(row), row.batch): _box(row) for row in scene.rows}
        order = sorted(scene.rows, key=lambda row: (row.defense != "none", row.batch != sizes[0]))  # stable
        names = dict.fromkeys(words.protection(row) for row in order)
        lines = [(name, [boxes.get((name, size)) for size in sizes]) for name in names]
        made.append(Map(f"{scene.attack}{f', {scene.place}' if scene.place else ''}", sizes, lines))
    return made


def _box(row: LeakRow) -> Box:
    return Box(row, tone(row.found.identified.share), words.standing(row))
