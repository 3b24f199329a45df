"""Options of lift, which labels every pixel of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from tyro.conf import arg

from mithridate.cli.kinds import Device, Names, Number, Place

Real = Annotated[float, arg(metavar="X")]
Most = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Counts = Annotated[tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="")]
Kinds = Annotated[
    tuple[Literal["none", "slic", "cut-pursuit", "compare"], ...], arg(metavar="KIND ...", help_behavior_hint="")
]
Picture = Annotated[Path, tyro.conf.Positional, arg(metavar="IMAGE")]


@dataclass(frozen=True, kw_only=True)
class Lifting:
    """What segment, stereo and denoise share."""

    superpixels: Kinds = ()
    """What is solved on: none (every pixel), slic (needs scikit-image), cut-pursuit; several are measured side by side,
    each in a process of its own. compare: all three. Default: none; for stereo, and wherever --cells is given, slic if
    scikit-image is installed and otherwise cut-pursuit."""
    cells: Counts = None
    """About how many superpixels; several numbers draw a curve. Default: 2,000, or a fifth of the pixels where that is
    less."""
    compactness: Real = 10.0
    """Of SLIC: large values make squares."""
    neighbours: Literal[4, 8] = 4
    """Of a pixel: 8 measures boundaries more alike in all directions."""
    shrink: Number = 1
    """First take the means of N x N pixels."""
    tolerance: Real = 1e-3
    """The solver stops at this relative duality gap."""
    iterations: Number = 1500
    """The solver stops after so many anyway."""
    dtype: Literal["float32", "float64"] = "float32"
    """Numbers of the solver."""
    device: Device = "cpu"
    """Where the solver runs: cpu, cuda, cuda:1."""
    threads: Number = 1
    """Threads of the solver on the CPU; results are the same, bit for bit, for an equal number."""
    out: Path = Path("runs/lift")
    """Results folder: label images, pictures, result.json."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(Lifting):
    """Few colours, short boundaries."""

    name: ClassVar[str] = "segment"
    image: Picture
    """PNG, JPEG or another file that Pillow reads."""
    colours: Number = 6
    """How many, found by k-means."""
    palette: Names = None
    """The colours themselves instead, as RRGGBB in hexadecimal digits."""
    weight: Real = 0.05
    """Cost of a boundary per pixel edge, in squared distance of colours in [0, 1]."""
    seed: Number = 0
    """Of k-means."""


@dataclass(frozen=True, kw_only=True)
class Ordered(Lifting):
    """What stereo and denoise share: their labels are numbers."""

    sublabels: Number = 1
    """Relax intervals of so many labels each, so many times fewer numbers: the same answer where costs are convex
    within an interval, a worse one elsewhere. Not with --limit."""


@dataclass(frozen=True, kw_only=True)
class StereoOptions(Ordered):
    """Disparities of a rectified pair."""

    name: ClassVar[str] = "stereo"
    image: Annotated[Path, tyro.conf.Positional, arg(metavar="LEFT")]
    """The image whose pixels get disparities."""
    right: Annotated[Path, tyro.conf.Positional, arg(metavar="RIGHT")]
    """The other one; what is at column x on the left is at x - disparity here."""
    disparities: Number = 64
    """How many: 0 .. N - 1 pixels (of the shrunk images)."""
    cost: Literal["census", "absolute"] = "census"
    """How pixels are compared: order of brightness in 5 x 5 pixels, or mean absolute difference of colours."""
    truncation: Most = None
    """No pixel costs more than this. Default: 0.3 for census, 0.1 for absolute."""
    weight: Most = None
    """Of the total variation: cost per pixel edge and pixel of disparity. Default: 0.05 for census, 0.01 for
    absolute."""
    limit: Most = None
    """No jump costs more than this per pixel edge (truncated total variation; on superpixels and small images)."""
    truth: Place = None
    """True disparities of the left image: 8 or 16 bits, or PFM; 0 is unknown."""
    truth_scale: Real = 4.0
    """They are stored times this."""


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions(Ordered):
    """An image without its noise."""

    name: ClassVar[str] = "denoise"
    image: Picture
    """PNG, JPEG or another file that Pillow reads; colour channels are solved one after the other."""
    levels: Number = 32
    """Values of a pixel, evenly from black to white."""
    cost: Literal["squared", "absolute"] = "squared"
    """squared: for noise everywhere. absolute: for pixels that are wrong altogether."""
    weight: Real = 0.1
    """Of the total variation, per pixel edge: 0.05 for noise of 0.05, 0.1 for noise of 0.1."""
    limit: Most = None
    """No jump costs more than this per pixel edge (truncated total variation; on superpixels and small images)."""
    truth: Place = None
    """The image without noise, to compare with."""


@dataclass(frozen=True, kw_only=True)
class LiftOptions:
    """Label every pixel by a convex relaxation, on pixels or on superpixels: segment, stereo, denoise.

    Says the energy of the labels on the pixel grid, how far from the best it may be, time and memory.
    """

    task: Annotated[
        Annotated[SegmentOptions, tyro.conf.subcommand("segment", prefix_name=False)]
        | Annotated[StereoOptions, tyro.conf.subcommand("stereo", prefix_name=False)]
        | Annotated[DenoiseOptions, tyro.conf.subcommand("denoise", prefix_name=False)],
        arg(name=""),
    ]
