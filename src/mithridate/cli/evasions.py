"""Options of evade, which attacks a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from mithridate.cli.kinds import Count, Device, Names, Number, Numbers, Place, Text


@dataclass(frozen=True, kw_only=True)
class EvadeOptions:
    """Move test images until a trained model gets them wrong; how many it still gets right, by strength.

    Without options: `convnet`, trained on the digits for this, under PGD, WITCHcraft and the standard set. The same
    command again resumes.
    """

    model: Text = None
    """A kept model (a folder fits/ID of a results folder), or package.module:function that returns a trained module.
    With --weights, an architecture as for audit. Default: convnet, trained now."""
    weights: Place = None
    """Safetensors weights of that architecture."""
    data: Annotated[str, arg(metavar="DATA")] = "digits"
    """As for audit; its test images are attacked."""
    attacks: Names = None
    """fgsm pgd mi-fgsm witchcraft apgd square standard, with settings if you like: pgd:steps=40,restarts=5,loss=cw.
    Default: pgd witchcraft standard."""
    eps: Numbers = None
    """Largest change of a pixel in [0, 1], as a number or 8/255; several make a curve. Default: 2/255 4/255 8/255; on
    digits 16/255 32/255 48/255."""
    l2: bool = False
    """Let eps be the Euclidean length of an image's change."""
    images: Count = None
    """Test images, drawn once. Default: 1,000."""
    size: Count = None
    """Resize all images to N x N."""
    batch: Number = 250
    """Images at a time."""
    judges: Names = None
    """Other libraries that attack the same images, side by side: foolbox (PGD), autoattack."""
    seed: Number = 0
    """Of everything drawn."""
    device: Device = "cpu"
    """Where the model runs: cpu, cuda, cuda:1."""
    out: Path = Path("runs/evade")
    """Results folder."""
    json: bool = False
    """Print JSON instead of text."""
