"""What poisons look like: a few of each attack's, clean, poisoned and the difference, with the target beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mithridate.experiments import pictures, words
from mithridate.experiments.cells import Pair

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

SHOWN_POISONS = 8
"""Poisons shown per attack."""
SHOWN_TARGETS = 2
SHOWN_ATTACKS = 12
"""Attacks shown; the pictures of more would make the page heavy."""
LARGEST_SIDE = 144
"""Pixels; larger images are reduced, since a page shows them at half of that."""


@dataclass(frozen=True)
class Shown:
    """One poison: data URIs and how far it moved."""

    row: int
    poison: str
    clean: str | None
    difference: str | None
    moved: str


@dataclass(frozen=True)
class Exhibit:
    """Poisons of one attack, and the target beside."""

    title: str
    note: str
    target: str
    """What the targets are."""
    targets: list[str]
    items: list[Shown]


def exhibits(attacks: Sequence[Row], folder: Path) -> list[Exhibit]:
    """Pictures of each attack's poison: of its first case whose poison is stored, once per place and threat model."""
    found: dict[tuple[str, ...], Exhibit] = {}
    for row in attacks:
        defended = row.defense if row.adaptive else ""
        key = (words.where(row, attacks), row.attack, str(row.budget), defended)
        if key not in found and len(found) < SHOWN_ATTACKS:
            made = next(filter(None, (_exhibit(row, pair, folder, attacks) for pair in row.cell.trials.values())), None)
            found |= {key: made} if made else {}
    return list(found.values())


def _exhibit(row: Row, pair: Pair, folder: Path, attacks: Sequence[Row]) -> Exhibit | None:
    poison = pair[1].get("poison") or {}
    tensors = pictures.tensors(folder / "poisons" / str(poison.get("id")))
    rows, images = tensors.get("rows", np.empty(0)), tensors.get("images", np.empty(0))
    count = len(rows)
    if not count or len(images) != count:
        return None
    base, case = tensors.get("base"), pair[1].get("case") or {}
    picks = np.unique(np.linspace(0, count - 1, min(SHOWN_POISONS, count)).round().astype(int))
    items = [shown(int(rows[i]), images[i], None if base is None else base[i]) for i in picks]
    place = words.where(row, attacks)
    relabelled = f" ({poison['relabelled']:,} of them relabelled)" if poison.get("relabelled") else ""
    defended = f", knowing {row.defense}" if row.adaptive and row.defense != "none" else ""
    reduced = " Reduced to fit the page." if max(images.shape[-2:]) > LARGEST_SIDE else ""
    numbers = f"{len(items)} of {count:,} poisons of case {pair[0].get('seed', 0)}{relabelled}."
    return Exhibit(
        title=f"{row.attack}{defended}{f', {place}' if place else ''}, {row.budget.bound}",
        note=f"{numbers} {_aim(row, case)}{reduced}",
        target="test image, no trigger yet" if row.triggered else "target",
        targets=[_png(image) for image in tensors.get("target", [])[: SHOWN_TARGETS * (row.goal != "availability")]],
        items=items,
    )


def _aim(row: Row, case: dict[str, Any]) -> str:
    true, wanted = (sorted(set(case.get(key) or ())) for key in ("target_classes", "intended"))
    wants = f"wanted answer “{', '.join(wanted)}”" if wanted else ""
    if row.goal == "availability":
        return "Test images should come out wrong."
    if row.triggered:
        wants = "each should become the class after its own" if len(wanted) > 1 else wants
        return f"Trigger on any test image; {wants}."
    return f"True class of the target “{', '.join(true)}”, {wants}." if true else ""


def shown(row: int, image: np.ndarray, base: np.ndarray | None) -> Shown:
    """One poison [C, H, W] uint8 beside its clean image, with the distance between them."""
    if base is None:
        return Shown(row, _png(image), None, None, "clean image not stored")
    change = image.astype(float) - base.astype(float)
    moved = f"Linf {np.abs(change).max():.0f}/255, L2 {np.linalg.norm(change) / 255:.2f}"
    return Shown(row, _png(image), _png(base), _png(pictures.amplified(base, image)), moved)


def _png(image: np.ndarray) -> str:
    return pictures.png(pictures.reduced(image, LARGEST_SIDE))
