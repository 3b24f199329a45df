"""Superpixels instead of pixels: how much higher does the energy end, and how much time and memory does it save?

    mithridate study studies.graph_discretizations:small
    mithridate study studies.graph_discretizations:medium
    mithridate study studies.graph_discretizations:paper
    mithridate study studies.graph_discretizations:sublabels
    python -m studies.graph_discretizations studies/results/graph-discretizations

Stereo on Teddy and Cones with their true disparities, segmentation of photographs of scikit-image. Weights are the
defaults of `mithridate lift`, fixed before; all are solved to a relative gap of 1e-3 or 1,500 steps. Every labelling
is painted back and judged by its energy on the pixel grid. Run it with `--workers 1`: times are measured.

The pairs are expected in $MITHRIDATE_MIDDLEBURY (default ../shared/data/middlebury): teddy/ and cones/ with im2.png,
im6.png and disp2.pgm, disparities times 4 (quarter size of the 2003 set of vision.middlebury.edu).

References: Geiping, Gaede, Bauermeister, Moeller. "Fast Convex Relaxations using Graph Discretizations". BMVC 2020;
arXiv 2004.11075. Scharstein, Szeliski. "High-Accuracy Stereo Depth Maps Using Structured Light". CVPR 2003.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

import mithridate as mi
from mithridate.core.extras import extra
from mithridate.experiments.lifting_tasks import Segment, Stereo, Task
from mithridate.experiments.liftings import Solving, side_by_side
from mithridate.experiments.measurements import Value
from mithridate.experiments.store import Store
from mithridate.experiments.study import load_results
from mithridate.lifting.discretisations import CutPursuit, Discretisation, Pixels, Slic

PAIRS = ("teddy", "cones")
PHOTOS = ("astronaut", "chelsea", "coffee")
DISPARITIES = 60
"""Of the pairs at full size; their largest is 53.75 and 55."""
LIMIT = 0.25
"""Of the truncated variation: a jump of five disparities and any larger one cost the same."""


def middlebury() -> Path:
    """Folder of the stereo pairs."""
    own = Path(__file__).resolve().parents[2] / "shared" / "data" / "middlebury"
    return Path(os.environ.get("MITHRIDATE_MIDDLEBURY", own))


@dataclass(frozen=True, kw_only=True)
class Lift(mi.Measurement):
    """One image on one discretisation, in a process of its own."""

    scene: str
    """teddy, cones, or a photograph of scikit-image."""
    on: Literal["pixels", "slic", "cut-pursuit"]
    cells: int | None = None
    shrink: int = 1
    limit: float | None = None
    """Truncated total variation, for stereo."""
    colours: int = 8
    """Of a segmentation."""
    sublabels: int = 1
    """Disparities per interval of the relaxation."""

    def discretisation(self) -> Discretisation:
        """What is solved on."""
        if self.on == "pixels":
            return Pixels()
        cells = {} if self.cells is None else {"cells": self.cells}
        return Slic(**cells) if self.on == "slic" else CutPursuit(**cells)

    def task(self, folder: Path) -> Task:
        """What is solved; a photograph is written into the folder first."""
        if self.scene in PAIRS:
            here = middlebury() / self.scene
            if not here.is_dir():
                raise FileNotFoundError(
                    f"no folder is called {here}; $MITHRIDATE_MIDDLEBURY must hold teddy/ and cones/ with im2.png, "
                    "im6.png, disp2.pgm"
                )
            return Stereo(
                image=here / "im2.png",
                right=here / "im6.png",
                truth=here / "disp2.pgm",
                disparities=DISPARITIES // self.shrink,
                shrink=self.shrink,
                limit=self.limit,
            )
        photo = folder / f"{self.scene}.png"
        data: Any = extra("skimage.data", "image", "photographs")
        Image.fromarray(np.asarray(getattr(data, self.scene)())).save(photo)
        return Segment(image=photo, colours=self.colours, weight=0.05, shrink=self.shrink)

    def measure(self, store: Store, device: str) -> Mapping[str, Value]:
        with tempfile.TemporaryDirectory() as folder:
            solving = Solving(device=device, sublabels=self.sublabels)
            (found,) = side_by_side(self.task(Path(folder)), [self.discretisation()], solving)
        against = {
            f"{name}_{where}": found.judged[where][name] for where in found.judged for name in ("bad1", "bad2", "error")
        }
        return {
            "cells": found.cells,
            "energy": found.energy,
            "dual": found.dual,
            "gap": found.gap,
            "iterations": found.iterations,
            "seconds": found.total,
            **{f"seconds_{name}": seconds for name, seconds in found.seconds.items()},
            "memory_mb": found.memory_mb,
            **against,
        }


def curve(
    scene: str, cells: tuple[int, ...], *, repeats: int = 1, pixels: bool = True, **settings: Any
) -> Iterator[Lift]:
    """A scene on pixels, and on both kinds of superpixels at several numbers of cells; seeds are repetitions."""
    for seed in range(repeats):
        if pixels:
            yield Lift(scene=scene, on="pixels", seed=seed, **settings)
        for on in ("slic", "cut-pursuit"):
            for count in cells:
                yield Lift(scene=scene, on=on, cells=count, seed=seed, **settings)


def small() -> list[Lift]:
    """Returns the pairs at a quarter of their size and three photographs at half of theirs; five minutes."""
    found = [one for scene in PAIRS for one in curve(scene, (250, 500, 1000, 2000), repeats=3, shrink=4)]
    found += [one for scene in PAIRS for one in curve(scene, (500, 2000), repeats=3, shrink=4, limit=LIMIT)]
    found += [one for scene in PHOTOS for one in curve(scene, (500, 2000), repeats=3, shrink=2)]
    return found


def medium() -> list[Lift]:
    """Returns all at full size, the pairs with 60 disparities, truncated on superpixels only; twenty minutes."""
    return list(_full(repeats=1))


def paper() -> list[Lift]:
    """Returns `medium` three times, for the spread of its times, and truncated total variation on all pixels; hours."""
    pixels = [Lift(scene=scene, on="pixels", limit=LIMIT) for scene in PAIRS]
    return [*_full(repeats=3), *pixels]


def sublabels() -> list[Lift]:
    """Returns the pairs at full size with 1 to 6 disparities per interval, on pixels and superpixels; ten minutes."""
    return [
        Lift(scene=scene, on=on, cells=cells, sublabels=count)
        for scene in PAIRS
        for on, cells in (("slic", 5000), ("pixels", None))
        for count in (1, 2, 3, 6)
    ]


def _full(repeats: int) -> Iterator[Lift]:
    cells = (1000, 2000, 5000, 10_000, 20_000)
    for scene in (*PAIRS, *PHOTOS):
        yield from curve(scene, cells, repeats=repeats)
    for scene in PAIRS:
        yield from curve(scene, cells[1:3], repeats=repeats, pixels=False, limit=LIMIT)


# --- the comparison --------------------------------------------------------------------------------------------------


class Against(NamedTuple):
    """One discretisation beside the pixels, medians over repetitions."""

    scene: str
    on: str
    cells: int
    energy: float
    """Above the energy on pixels, as a share of it."""
    times: float
    """How many times less time, cells included."""
    memory: float
    """How many times less memory."""
    found: dict[str, float]


def compare(folder: Path) -> list[Against]:
    """Reads a results folder; the pixels come first in each scene."""
    scenes: dict[tuple[Any, ...], dict[tuple[str, int, int], list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for trial, result in load_results(folder):
        scene = (trial["scene"], trial["shrink"], trial["limit"] or 0)
        kind = (trial["on"], trial["cells"] or 0, trial.get("sublabels", 1))  # older results have no sublabels
        scenes[scene][kind].append(result["outcome"])
    rows = []
    for (scene, shrink, limit), kinds in sorted(scenes.items()):
        name = scene + (f", 1/{shrink} of its size" if shrink > 1 else "") + (", truncated" if limit else "")
        middle = {
            kind: {key: median([one[key] for one in found]) for key in found[0] if found[0][key] is not None}
            for kind, found in kinds.items()
        }
        base = middle.get(("pixels", 0, 1))
        for (on, cells, count), one in sorted(middle.items(), key=lambda kind: (kind[0][0] != "pixels", kind[0])):
            if base is None:
                continue
            times, memory = (base[key] / max(one[key], 1e-9) for key in ("seconds", "memory_mb"))
            where = on if count == 1 else f"{on}, {count} labels per interval"
            rows.append(Against(name, where, cells, one["energy"] / base["energy"] - 1, times, memory, one))
    return rows


def written(rows: list[Against]) -> Iterator[str]:
    """The comparison as a table of Markdown."""
    yield "| | on | cells | energy above the pixels' | wrong by > 1, visible | iterations | seconds (cells) | MiB |"
    yield "|---|---|---|---|---|---|---|---|"
    before = ""
    for row in rows:
        one = row.found
        wrong = f"{one['bad1_visible']:.1%}" if "bad1_visible" in one else ""
        pixels = row.on == "pixels"
        energy = f"0 ({one['energy']:,.0f})" if pixels else f"{row.energy:+.1%}"
        seconds = (
            f"{one['seconds']:.2f}"
            if pixels
            else f"{one['seconds']:.2f} ({one['seconds_graph']:.2f}), 1/{row.times:.1f}"
        )
        memory = f"{one['memory_mb']:.0f}" if pixels else f"{one['memory_mb']:.0f}, 1/{row.memory:.1f}"
        numbers = f"{one['cells']:,.0f} | {energy} | {wrong} | {one['iterations']:.0f} | {seconds} | {memory}"
        yield f"| {row.scene if row.scene != before else ''} | {row.on} | {numbers} |"
        before = row.scene


if __name__ == "__main__":
    for place in sys.argv[1:]:
        print(*written(compare(Path(place))), sep="\n")
