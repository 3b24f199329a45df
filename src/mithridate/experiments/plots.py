"""Plots as inline SVG that follow the page's light and dark colours."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 760, 340
"""Width of a plot in CSS pixels: for a screen or paper, and for a phone."""

# Colours are drawn as these stand-ins and become CSS variables in the SVG, so that one plot serves light and dark.
INK, FAINT, ATTACK, DEFENSE, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
LINES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
"""Of several lines in one plot; markers and words tell them apart as well."""
VARIABLES = {INK: "ink", FAINT: "faint", ATTACK: "attack", DEFENSE: "defense", PAPER: "paper"}
VARIABLES |= {color: f"l{number}" for number, color in enumerate(LINES)}


def axes_of(width: float, height: float, *, left: float, right: float) -> tuple[Axes, Any]:
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
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", colors=FAINT, length=0, labelsize=10.5)
    axes.set_yticks([])
    return axes, figure


def panels_of(width: float, height: float, count: int, *, stacked: bool) -> tuple[list[Axes], Any]:
    """Axes side by side, or stacked, with a horizontal grid and no frame; all lengths in CSS pixels."""
    from matplotlib.figure import Figure

    left, bottom, top, gap = 34, 46, 26, 26
    figure = Figure(figsize=(width / 72, height / 72))
    columns, lines = (1, count) if stacked else (count, 1)
    wide, tall = (width - columns * left - (columns - 1) * gap - 6) / columns, height / lines - bottom - top
    made = []
    for number in range(count):
        column, line = (0, number) if stacked else (number, 0)
        x, y = left + column * (left + wide + gap), height - (line + 1) * (height / lines) + bottom
        axes = figure.add_axes((x / width, y / height, wide / width, tall / height))
        axes.patch.set_visible(False)
        for side in ("left", "right", "top", "bottom"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=FAINT, length=0, labelsize=10.5)
        made.append(axes)
    figure.patch.set_visible(False)
    return made, figure


def label(axes: Axes, x: float, y: float, text: str, side: str, **style: Any) -> None:
    """Text at data coordinates; side "margin" puts it at the left edge of the picture instead."""
    from matplotlib.transforms import blended_transform_factory

    where = {}
    if side == "margin":
        assert axes.figure is not None
        where = {"transform": blended_transform_factory(axes.figure.transFigure, axes.transData)}
        x, side = 0.0, "left"
    halo = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}  # grid lines stop at the text
    style = {"size": 12, "color": INK, "bbox": halo} | where | style
    axes.text(x, y, text.replace("$", r"\$"), ha=side, va="center", clip_on=False, **style)


def svg(figure: Any, name: str, spoken: str) -> str:
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
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r"\s+\n", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]+"', head[0])
    kept = f'{box[0] if box else ""} role="img" aria-label="{_quoted(spoken)}"'
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {kept}>' + text[head.end() :].strip()


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
