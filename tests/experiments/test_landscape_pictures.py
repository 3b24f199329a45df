"""Pictures of landscapes: there is something on each, and what cannot be drawn is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mithridate.experiments.landscape_pictures import (
    draw_by_width,
    draw_densities,
    draw_lines,
    draw_plane,
    draw_spectra,
)
from mithridate.landscape.curvature import density
from mithridate.landscape.losses import Loss
from mithridate.landscape.slices import line, plane, random_direction


def ink(path: Path) -> float:
    """Share of the picture that is not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def test_every_picture_shows_something(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(20, 4)
    labels = torch.arange(20) % 3
    ways = random_direction(model, 0), random_direction(model, 1)
    along = [line(model, inputs, labels, way, [-1, -0.5, 0, 0.5, 1]) for way in ways]
    draw_lines(tmp_path / "new" / "lines.png", {"one": along[0], "other": along[1]})
    surface = plane(model, inputs, labels, ways, [-1, 0, 1], [-1, 0, 1])
    draw_plane(tmp_path / "plane.png", surface)
    draw_densities(tmp_path / "density.png", {"here": density(Loss(model, inputs, labels), probes=2, steps=10)})
    draw_spectra(tmp_path / "spectra.png", {"0": torch.tensor([2.0, 1.0]), "2": torch.tensor([3.0, 0.5, 0.1])})
    draw_by_width(tmp_path / "widths.png", {"mlp": {8: [0.4, 0.5], 16: [0.6, 0.7]}}, "Kernels")
    for path in sorted(tmp_path.rglob("*.png")):
        assert ink(path) > 0.01, path
    assert len(list(tmp_path.rglob("*.png"))) == 5
    one, other = tmp_path / "one.png", tmp_path / "new" / "lines.png"
    draw_lines(one, {"one": along[0]})
    assert ink(one) < ink(other)
    with pytest.raises(ValueError, match="planes are for draw_plane"):
        draw_lines(one, {"surface": surface})
    with pytest.raises(ValueError, match="takes a slice from `plane`"):
        draw_plane(one, along[0])
    with pytest.raises(ValueError, match="one or more runs"):
        draw_by_width(one, {}, "Kernels")
