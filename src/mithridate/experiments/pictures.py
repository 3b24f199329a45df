"""Pictures of a report: images as data URIs and plots as inline SVG that follow the page's light and dark colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mithridate.experiments import words
from mithridate.experiments.statistics import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mithridate.experiments.table import Row

AMPLIFIED = 20
"""How many times a difference is amplified to be seen."""
WIDE, NARROW = 760, 340
"""Width of a plot in CSS pixels: for a screen or paper, and for a phone."""

# Colours are drawn as these stand-ins and become CSS variables in the SVG, so that one plot serves light and dark.
_INK, _FAINT, _ATTACK, _DEFENSE, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _FAINT: "faint", _ATTACK: "attack", _DEFENSE: "defense", _PAPER: "paper"}


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


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """What is stored of a poison; nothing where it is not stored or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(folder / "poison.safetensors")
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
    lines: list[tuple[float, Row]] = []
    y = 0.0
    step, lead = (62.0, 24.0) if narrow else (46.0, 0.0)
    for row in attacks:
        lines.append((y + lead, row))
        y += step + 9 * (len(_controls(row)) - 2)
    axes, figure = _axes(width, y + 46, left=12 if narrow else 236, right=14 if narrow else 96)
    for top, row in lines:
        defense = "no defence" if row.defense == "none" else f"with {row.defense}"
        adaptive = ", adaptive" if row.adaptive else ""
        if narrow:
            _label(axes, 0, top - 13, f"{row.attack}, {defense}{adaptive}", "left", size=11)
            _label(axes, 100, top - 13, words.counted(row.success), "right", size=10, color=_FAINT)
        else:
            _label(axes, 0, top, row.attack, "margin", weight="bold")
            _label(axes, 0, top + 15, f"{defense}{adaptive}", "margin", size=10.5, color=_FAINT)
            _label(axes, 104, top, words.counted(row.success), "left", size=11)
        _interval(axes, top, row.success, _ATTACK, "o", filled=True)
        for i, control in enumerate(_controls(row)):
            marker = "D" if control.name == "random-noise" else "s"
            _interval(axes, top + 10 + 9 * i, control.success, _FAINT, marker, filled=False)
    axes.set_xlim(-1.5, 101.5)
    axes.set_ylim(y - 8 if not narrow else y - 14, -16)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    return _svg(figure, name, f"Success with 95 % intervals: {_read_out(attacks)}")


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
    axes, figure = _axes(width, step * len(found) + 46, left=12 if narrow else 236, right=14 if narrow else 96)
    spoken, ends = [], [0.0, 1.0]
    labels = []
    for i, ((place, defense), row) in enumerate(found.items()):
        assert row.cost is not None
        y, value = i * step + lead, 100 * row.cost.value
        low, high = (value if end is None else 100 * end for end in (row.cost.low, row.cost.high))
        axes.plot([low, high], [y, y], color=_DEFENSE, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=_DEFENSE, markersize=7)
        ends += [low, high]
        title = f"{defense} ({place})" if place else defense
        labels.append((y, title, f"{words.signed(-value)} points"))
        spoken.append(f"{title}: {value:.1f} points lost, {words.span(row.cost, 100, 1) or 'no interval'}")
    margin = 0.06 * (max(ends) - min(ends))
    first, last = min(ends) - margin, max(ends) + margin
    for y, title, points in labels:
        if narrow:
            _label(axes, first, y - 12, title, "left", size=11)
            _label(axes, last, y - 12, points, "right", size=10, color=_FAINT)
        else:
            gap = 0.03 * (last - first)
            _label(axes, 0, y, title, "margin", weight="bold")
            _label(axes, last + gap, y, points, "left", size=11)
    axes.axvline(0, color=_INK, linewidth=1)
    axes.set_xlim(first, last)
    axes.set_ylim(step * len(found) - (14 if narrow else 12), -16)
    axes.set_xlabel("points of clean test accuracy lost", color=_FAINT, fontsize=10.5)
    return _svg(figure, name, "Accuracy cost of each defence: " + ". ".join(spoken) + ".")


def _axes(width: float, height: float, *, left: float, right: float) -> tuple[Axes, Any]:
    """Axes with a vertical grid and no frame; all lengths in CSS pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    bottom = 40
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - 4) / height)
    )
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color=_FAINT, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", colors=_FAINT, length=0, labelsize=10.5)
    axes.set_yticks([])
    return axes, figure


def _label(axes: Axes, x: float, y: float, text: str, side: str, **style: Any) -> None:
    """Text at data coordinates; side "margin" puts it at the left edge of the picture instead."""
    from matplotlib.transforms import blended_transform_factory

    where = {}
    if side == "margin":
        assert axes.figure is not None
        where = {"transform": blended_transform_factory(axes.figure.transFigure, axes.transData)}
        x, side = 0.0, "left"
    halo = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5}  # grid lines stop at the text
    style = {"size": 12, "color": _INK, "bbox": halo} | where | style
    axes.text(x, y, text.replace("$", r"\$"), ha=side, va="center", clip_on=False, **style)


def _interval(axes: Axes, y: float, rate: Rate, color: str, marker: str, *, filled: bool) -> None:
    width, size = (2.4, 7.5) if filled else (1.2, 4.5)
    axes.plot([100 * rate.low, 100 * rate.high], [y, y], color=color, linewidth=width, solid_capstyle="butt")
    face = color if filled else _PAPER
    axes.plot([100 * rate.share], [y], marker, color=color, markerfacecolor=face, markersize=size, clip_on=False)


def _svg(figure: Any, name: str, spoken: str) -> str:
    """The figure as one inline <svg>: unique ids, CSS variables as colours, words for screen readers."""
    import matplotlib as mpl

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r"\s+\n", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]+"', head[0])
    kept = f'{box[0] if box else ""} role="img" aria-label="{_quoted(spoken)}"'
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {kept}>' + text[head.end() :].strip()


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
