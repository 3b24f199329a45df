"""Pictures of what lift finds: label images in colour, results side by side, energy by time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mithridate.experiments.lifting_tasks import Segment, Stereo, Task
from mithridate.experiments.liftings import Outcome

UNKNOWN = (0, 0, 0)
"""Colour of pixels whose truth is unknown."""
PANEL = 3.6
"""Width of one picture, in inches."""
HEADING = 0.5
"""Height of the two lines above it, in inches."""
COLUMNS = 3
"""Pictures in a row."""
KINDS = {"pixels": ("#333333", "s"), "slic": ("#0b6e99", "o"), "cut-pursuit": ("#c2510c", "^")}
"""Colour and marker of each discretisation."""

# --- label images ----------------------------------------------------------------------------------------------------


def painted(task: Task, outcome: Outcome) -> np.ndarray:
    """Returns labels as people look at them, uint8 [H, W, 3]: mean colours, disparities from near to far, the image."""
    labels = outcome.labels
    if isinstance(task, Segment):
        assert outcome.colours is not None
        return _bytes(outcome.colours[labels[0]])
    if isinstance(task, Stereo):
        return colour_map(labels[0].astype(float), task.disparities - 1)
    levels = int(getattr(task, "levels", labels.max() + 1))
    return _bytes(np.broadcast_to(np.moveaxis(labels, 0, 2) / (levels - 1), (*labels.shape[1:], 3)))


def colour_map(disparities: np.ndarray, most: float) -> np.ndarray:
    """Returns disparities [H, W] as colours, uint8 [H, W, 3]: near ones are red, unknown ones (NaN) black.

    >>> colour_map(np.array([[0.0, 4.0, np.nan]]), 4)[0, 2].tolist()
    [0, 0, 0]
    """
    from matplotlib import colormaps

    shares = np.clip(np.nan_to_num(disparities) / max(most, 1), 0, 1)
    colours = _bytes(colormaps["turbo"](shares)[..., :3])
    colours[~np.isfinite(disparities)] = UNKNOWN
    return colours


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Writes the labels [H, W] themselves as a grey PNG: 8 bits, or 16 where there are more than 256."""
    Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)).save(path)


def _bytes(shares: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(255 * np.asarray(shares, dtype=float)), 0, 255).astype(np.uint8)


# --- figures ---------------------------------------------------------------------------------------------------------


def write_side_by_side(path: Path, task: Task, outcomes: Sequence[Outcome]) -> None:
    """Draws the image, the truth where there is one, and every result with what it cost."""
    from matplotlib.figure import Figure

    panels = [("image", _bytes(task.picture().numpy()))]
    if isinstance(task, Stereo):
        truth = task.known()
        if truth is not None:
            panels.append(("truth (black: unknown)", colour_map(truth.numpy(), task.disparities - 1)))
    base = next((outcome for outcome in outcomes if outcome.name == "pixels"), None)
    panels += [(_title(outcome, base), painted(task, outcome)) for outcome in outcomes]
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)  # four are two and two
    height, width = panels[0][1].shape[:2]
    tall = PANEL * height / width + HEADING
    figure = Figure(figsize=(PANEL * columns, tall * rows), layout="constrained")
    for number, (text, pixels) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(text, fontsize=8.5, loc="left")
        axes.set_axis_off()
    figure.savefig(path, dpi=max(130, min(300, round(width / PANEL))))


def _title(outcome: Outcome, base: Outcome | None) -> str:
    energy = f"energy {outcome.energy:,.6g}"
    if base is not None and outcome is not base and base.energy:
        energy += f" ({outcome.energy / base.energy - 1:+.1%})"
    words = f"{outcome.name}: {outcome.cells:,} cells\n{energy}, {outcome.total:.3g} s"
    if "visible" in outcome.judged:
        words += f", {outcome.judged['visible']['bad1']:.1%} bad"
    if outcome.judged.get("psnr") is not None:
        words += f", {outcome.judged['psnr']:.1f} dB"
    return words


def write_trade_off(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draws energy on the pixel grid against seconds and against memory, a line per kind of cells."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    costs = [("seconds, images to labels", lambda one: one.total)]
    if all(one.memory_mb for one in outcomes):
        costs.append(("memory, MiB", lambda one: one.memory_mb))
    for place, (words, cost) in enumerate(costs):
        axes = figure.add_subplot(1, len(costs), place + 1)
        for kind in dict.fromkeys(_kind(one) for one in outcomes):
            _line(axes, sorted((one for one in outcomes if _kind(one) == kind), key=lambda one: one.cells), kind, cost)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(words)
        axes.set_ylabel("energy on the pixel grid")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=140)


def _kind(outcome: Outcome) -> str:
    return str(outcome.discretisation["type"])


def _line(axes: Any, found: Sequence[Outcome], kind: str, cost: Any) -> None:
    color, marker = KINDS.get(kind, ("#666666", "D"))
    axes.plot([cost(one) for one in found], [one.energy for one in found], color=color, marker=marker, label=kind)
    for one in found:
        axes.annotate(f"{one.cells:,}", (cost(one), one.energy), (4, 4), textcoords="offset points", fontsize=7)
