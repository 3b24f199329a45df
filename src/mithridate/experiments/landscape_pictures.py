"""Landscape pictures: slices, densities, spectra and drifting kernels as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mithridate.landscape.curvature import Density
from mithridate.landscape.slices import Slice

SIZE = (6.4, 3.8)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
"""Apart for most kinds of sight (Okabe, Ito)."""


def _axes(title: str, across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: Path | str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def draw_lines(path: Path | str, lines: Mapping[str, Slice], title: str = "Loss along a line") -> None:
    """Draws 1-D slices, each by its name.

    Raises:
        ValueError: No lines, or a plane among them.
    """
    if not lines or any(one.second is not None for one in lines.values()):
        raise ValueError("draw_lines takes slices from `line`, one or more; planes are for draw_plane")
    figure, axes = _axes(title, "distance", "loss")
    for (name, one), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        axes.plot(one.first.numpy(), one.loss.numpy(), color=colour, label=name)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    _saved(figure, path)


def draw_plane(path: Path | str, plane: Slice, title: str = "Loss in a plane") -> None:
    """Draws a 2-D slice as a map with lines of equal loss; colours are logarithmic.

    Raises:
        ValueError: A line, or fewer than two distances along a direction.
    """
    if plane.second is None or min(plane.loss.shape) < 2:
        raise ValueError("draw_plane takes a slice from `plane` with two or more distances along each direction")
    figure, axes = _axes(title, "along the first direction", "along the second direction")
    axes.grid(False)
    heights = np.log10(plane.loss.numpy().T.clip(1e-8))
    drawn = axes.pcolormesh(plane.first.numpy(), plane.second.numpy(), heights, cmap="viridis", shading="nearest")
    axes.contour(plane.first.numpy(), plane.second.numpy(), heights, levels=10, colors="white", linewidths=0.5)
    axes.plot(0, 0, marker="+", color="white")
    axes.set_aspect("equal")
    figure.colorbar(drawn, label="log10 of the loss")
    _saved(figure, path)


def draw_densities(
    path: Path | str, densities: Mapping[str, Density], title: str = "Eigenvalues of the Hessian"
) -> None:
    """Draws spectral densities; heights are logarithmic, since most eigenvalues lie near zero."""
    figure, axes = _axes(title, "eigenvalue", "density")
    for (name, one), colour in zip(densities.items(), _colours(len(densities)), strict=True):
        axes.semilogy(one.values.numpy(), one.heights.numpy().clip(1e-7), color=colour, label=name)
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_ylim(1e-6, None)
    if len(densities) > 1:
        axes.legend(frameon=False, fontsize=8)
    _saved(figure, path)


def draw_spectra(path: Path | str, spectra: Mapping[str, Tensor], title: str = "Singular values of layers") -> None:
    """Draws singular values of layers, falling, each over the share of their number."""
    figure, axes = _axes(title, "share of the singular values", "singular value")
    for number, (name, values) in enumerate(spectra.items()):
        shade = number / max(1, len(spectra) - 1)
        across = (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(across, values.cpu().numpy(), color=(0.1 + 0.7 * shade, 0.45, 0.7 - 0.5 * shade), label=name)
    if len(spectra) <= 12:
        axes.legend(frameon=False, fontsize=7)
    _saved(figure, path)


def draw_by_width(
    path: Path | str, found: Mapping[str, Mapping[int, Sequence[float]]], title: str, up: str = "cosine of the kernels"
) -> None:
    """Draws a number against the width of networks: every run as a point, a line through the means per family.

    Raises:
        ValueError: No runs.
    """
    if not found or not all(runs for widths in found.values() for runs in widths.values()):
        raise ValueError("draw_by_width takes one or more runs of every width of every family")
    figure, axes = _axes(title, "width", up)
    for (family, widths), colour in zip(found.items(), _colours(len(found)), strict=True):
        across = sorted(widths)
        axes.plot(across, [float(np.mean(widths[width])) for width in across], color=colour, label=family)
        for width in across:
            axes.plot([width] * len(widths[width]), widths[width], ".", color=colour)
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=8)
    _saved(figure, path)


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
