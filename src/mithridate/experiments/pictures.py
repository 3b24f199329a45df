"""Pictures of a report: images as data URIs and plots as inline SVG that follow the page's light and dark colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mithridate.experiments import words
from mithridate.experiments.plots import ATTACK, DEFENSE, FAINT, INK, NARROW, PAPER, WIDE, axes_of, label, svg
from mithridate.experiments.statistics import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mithridate.experiments.table import Row

AMPLIFIED = 20
"""How many times a difference is amplified to be seen."""

# --- images ----------------------------------------------------------------------------------------------------------


def png(image: np.ndarray) -> str:
    """A PNG data URI of an image [C, H, W] uint8, one file pixel per pixel (the page scales it up).

    >>> png(np.zeros((1, 8, 8), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    channels = image if image.shape[0] in (1, 3) else image[:1]
    pixels = channels[0] if channels.shape[0] == 1 else channels.transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def amplified(base: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The difference times `AMPLIFIED` around middle grey, uint8; what oversteps is clipped."""
    change = AMPLIFIED * (image.astype(float) - base.astype(float))
    return np.clip(128 + change, 0, 255).round().astype(np.uint8)


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """The image [C, H, W] uint8, made smaller where its longer side has more than `side` pixels.

    >>> reduced(np.zeros((3, 200, 100), dtype=np.uint8), 50).shape
    (3, 50, 25)
    """
    height, width = image.shape[-2:]
    if max(height, width) <= side:
        return image
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BOX) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def contact_sheet(images: np.ndarray, side: int = 128, columns: int = 8) -> np.ndarray:
    """All images [B, C, H, W] uint8 on one sheet [h, w, 3], each pixel enlarged so that images are about `side` wide.

    >>> contact_sheet(np.zeros((3, 1, 8, 8), dtype=np.uint8), side=16).shape
    (20, 56, 3)
    """
    count, channels, height, width = images.shape
    scale = max(1, side // max(height, width))
    large = images.repeat(scale, axis=2).repeat(scale, axis=3)
    coloured = large if channels == 3 else large[:, :1].repeat(3, axis=1)
    columns = min(columns, count)
    gap, (tall, wide) = 2, coloured.shape[2:]
    sheet = np.full((-(-count // columns) * (tall + gap) + gap, columns * (wide + gap) + gap, 3), 255, dtype=np.uint8)
    for number, image in enumerate(coloured):
        top, left = gap + number // columns * (tall + gap), gap + number % columns * (wide + gap)
        sheet[top : top + tall, left : left + wide] = image.transpose(1, 2, 0)
    return sheet


def tensors(folder: Path, name: str = "poison.safetensors") -> dict[str, np.ndarray]:
    """What is stored of a poison (or under another name); nothing where it is not stored or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(folder / name)
    except (OSError, SafetensorError):
        return {}


def target(folder: Path) -> np.ndarray | None:
    """The first target [C, H, W] uint8 beside a stored poison, read without the rest."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "poison.safetensors", framework="numpy") as stored:
            images = stored.get_tensor("target")
    except (OSError, SafetensorError):
        return None
    return images[0] if len(images) else None


# --- plots -----------------------------------------------------------------------------------------------------------


def forest(rows: Sequence[Row], name: str) -> list[str]:
    """Success rates with their intervals, each attack above its controls: a wide SVG and one for phones."""
    attacks = [row for row in rows if not row.control and row.success.n]
    return [_forest(attacks, width, f"{name}-{width}") for width in (WIDE, NARROW)] if attacks else []


def _forest(attacks: Sequence[Row], width: int, name: str) -> str:
    narrow = width == NARROW
    named = [_named(row) for row in attacks]
    lines: list[tuple[float, Row]] = []
    y = 0.0
    step, lead = (75.0, 37.0) if narrow else (46.0, 0.0)
    for row in attacks:
        lines.append((y + lead, row))
        y += step + 9 * (len(_controls(row)) - 2)
    margin = min(400.0, max(236.0, *(max(7.5 * len(first), 5.8 * len(second)) + 20 for first, second in named)))
    axes, figure = axes_of(width, y + 46, left=12 if narrow else margin, right=14 if narrow else 96)
    for (top, row), (first, second) in zip(lines, named, strict=True):
        if narrow:
            label(axes, 0, top - 27, first, "left", size=11, weight="bold")
            label(axes, 0, top - 13, second, "left", size=10, color=FAINT)
            label(axes, 100, top - 27, words.counted(row.success), "right", size=10, color=FAINT)
        else:
            label(axes, 0, top, first, "margin", weight="bold")
            label(axes, 0, top + 15, second, "margin", size=10.5, color=FAINT)
            label(axes, 104, top, words.counted(row.success), "left", size=11)
        _interval(axes, top, row.success, ATTACK, "o", filled=True)
        for i, control in enumerate(_controls(row)):
            marker = "D" if control.name == "random-noise" else "s"
            _interval(axes, top + 10 + 9 * i, control.success, FAINT, marker, filled=False)
    axes.set_xlim(-1.5, 101.5)
    axes.set_ylim(y - 8 if not narrow else y - 14, -16)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    return svg(figure, name, f"Success with 95 % intervals: {_read_out(attacks)}")


def _named(row: Row) -> tuple[str, str]:
    """The attack, and below it what tells it apart: its settings and the defence."""
    name, _, settings = row.attack.partition(" (")
    defense = "no defence" if row.defense == "none" else f"with {row.defense}"
    return name, ", ".join(filter(None, (settings.removesuffix(")"), defense, "adaptive" if row.adaptive else "")))


def _controls(row: Row) -> list[Any]:
    return [row.versus[name] for name in ("random-noise", "no-attack") if name in row.versus]


def _read_out(attacks: Sequence[Row]) -> str:
    """The picture in words, for those who cannot see it."""
    parts = []
    for row in attacks:
        against = "; ".join(f"{control.name} {control.success}" for control in _controls(row))
        defense = "" if row.defense == "none" else f" with {row.defense}"
        parts.append(f"{row.attack}{defense} {row.success}{f' against {against}' if against else ''}")
    return ". ".join(parts) + "."


def costs(rows: Sequence[Row], name: str) -> list[str]:
    """Accuracy lost to each defence, with intervals: a wide SVG and one for phones; none where nothing was measured."""
    found: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda r: r.attack != "no-attack"):  # unattacked data first
        if row.defense != "none" and row.cost is not None and row.cost.n:
            found.setdefault((words.where(row, rows, attacker=False), row.defense), row)
    return [_costs(found, width, f"{name}-{width}") for width in (WIDE, NARROW)] if found else []


def _costs(found: dict[tuple[str, str], Row], width: int, name: str) -> str:
    narrow = width == NARROW
    step, lead = (44, 18) if narrow else (32, 0)
    axes, figure = axes_of(width, step * len(found) + 46, left=12 if narrow else 236, right=14 if narrow else 96)
    spoken, ends = [], [0.0, 1.0]
    labels = []
    for i, ((place, defense), row) in enumerate(found.items()):
        assert row.cost is not None
        y, value = i * step + lead, 100 * row.cost.value
        low, high = (value if end is None else 100 * end for end in (row.cost.low, row.cost.high))
        axes.plot([low, high], [y, y], color=DEFENSE, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=DEFENSE, markersize=7)
        ends += [low, high]
        title = f"{defense} ({place})" if place else defense
        labels.append((y, title, f"{words.signed(-value)} points"))
        spoken.append(f"{title}: {value:.1f} points lost, {words.span(row.cost, 100, 1) or 'no interval'}")
    margin = 0.06 * (max(ends) - min(ends))
    first, last = min(ends) - margin, max(ends) + margin
    for y, title, points in labels:
        if narrow:
            label(axes, first, y - 12, title, "left", size=11)
            label(axes, last, y - 12, points, "right", size=10, color=FAINT)
        else:
            gap = 0.03 * (last - first)
            label(axes, 0, y, title, "margin", weight="bold")
            label(axes, last + gap, y, points, "left", size=11)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlim(first, last)
    axes.set_ylim(step * len(found) - (14 if narrow else 12), -16)
    axes.set_xlabel("points of clean test accuracy lost", color=FAINT, fontsize=10.5)
    return svg(figure, name, "Accuracy cost of each defence: " + ". ".join(spoken) + ".")


def _interval(axes: Axes, y: float, rate: Rate, color: str, marker: str, *, filled: bool) -> None:
    width, size = (2.4, 7.5) if filled else (1.2, 4.5)
    axes.plot([100 * rate.low, 100 * rate.high], [y, y], color=color, linewidth=width, solid_capstyle="butt")
    face = color if filled else PAPER
    axes.plot([100 * rate.share], [y], marker, color=color, markerfacecolor=face, markersize=size, clip_on=False)
