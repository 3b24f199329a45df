"""Options of scan and protect: what a data curator and a data owner use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from mithridate.cli.kinds import Count, Device, Names, Number, Place, Share, Workers


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Look for poison in a training set: train on it, rank its rows, say how many would stand out by chance.

    All images are scanned; none is set aside as test data. Writes suspects.csv, drop.txt and scan.html.
    """

    data: Annotated[str, tyro.conf.Positional, arg(metavar="DATA")]
    """A folder of class folders, parquet in Hugging Face layout (a file or a folder), hub:OWNER/NAME,
    package.module:function, or digits."""
    filters: Names = None
    """Filters, with settings if you like: spectral-signatures deep-knn confident-learning activation-clustering.
    Default: the first two."""
    contamination: Annotated[float, arg(metavar="SHARE")] = 0.02
    """Share of the rows that you would not be surprised to find poisoned; filters look for about so many."""
    false_alarms: Annotated[float, arg(metavar="N")] = 1.0
    """Length of the list of rows to drop: it ends where this many false alarms are expected."""
    model: Annotated[str, arg(metavar="NAME")] = "convnet"
    """As for audit."""
    recipe: Literal["paper", "fast"] = "fast"
    """fast: 12 epochs, which is enough to see what a model makes of each row. paper: 40 epochs."""
    epochs: Count = None
    """Passes over the training set."""
    models: Number = 1
    """Models trained; what they say is put together by the median."""
    size: Count = None
    """Resize all images to N x N."""
    per_class: Count = None
    """Scan only the first N images of every class."""
    cache: Place = None
    """Folder for a memory-mapped copy of the pixels, for data larger than memory."""
    top: Number = 60
    """Suspects shown on the page."""
    copy: Place = None
    """Write a copy of the data without the rows to drop: the image files, or the parquet files with all columns."""
    seed: Number = 0
    """Seed of the models and of the null runs."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Workers = None
    """What shares out the models: local, N, processes:N, ray or ray:ADDRESS, as for audit. Default: a process per core,
    at most 8."""
    out: Path = Path("runs/scan")
    """Results folder; the models are kept there for the next scan."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ProtectOptions:
    """Publish a data set of no use for training: a copy whose every image is changed by a little, within --eps.

    Names, labels, other columns and metadata stay; images become PNG. The same command again goes on where it was
    stopped. What was stored is read back and measured. A record of settings and hashes is written beside the copy.
    """

    data: Annotated[str, tyro.conf.Positional, arg(metavar="IN")]
    """A folder of class folders, parquet in Hugging Face layout (a file or a folder), or hub:OWNER/NAME; images may
    differ in size. Training images are protected, test splits are not copied."""
    out: Annotated[Path, tyro.conf.Positional, arg(metavar="OUT")]
    """Folder of the copy, in the layout of the original."""
    eps: Share = 8 / 255
    """Largest change of a pixel value, in [0, 1]: 8/255."""
    method: Annotated[str, arg(metavar="NAME")] = "adversarial-release"
    """How, with settings if you like: adversarial-release secure-release error-minimizing:noise=class-wise tensorclog
    class-wise-noise."""
    steps: Count = None
    """Steps of the search for each chunk. Default: the method's own."""
    chunk: Number = 512
    """Images that are perturbed together: bounds the memory."""
    size: Count = None
    """Side of the images that the surrogate sees. Default: the images' own size where all have one of at most 64, else
    64; perturbations are resized to each image."""
    train_on: Annotated[int, arg(metavar="N")] = 5000
    """Images that the surrogate is trained on, drawn from all."""
    model: Annotated[str, arg(metavar="NAME")] = "convnet"
    """The surrogate, as for audit."""
    recipe: Literal["paper", "fast"] = "fast"
    """fast: 12 epochs. paper: 40 epochs."""
    epochs: Count = None
    """Passes of the surrogate over its images."""
    jpeg: Annotated[int | None, arg(metavar="QUALITY", help_behavior_hint="")] = None
    """Store JPEG of this quality in place of PNG. It changes pixels besides, beyond --eps, and may take the protection
    away: the change as stored is measured and said."""
    check: bool = False
    """Train models on clean and on protected images and compare their accuracy on clean ones that were held out."""
    models: Number = 3
    """Models of each kind for --check."""
    seed: Number = 0
    """Seed of everything random."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Workers = None
    """What shares out the surrogates: local, N, processes:N, ray or ray:ADDRESS, as for audit. Default: a process per
    core, at most 8."""
    record: Place = None
    """Folder of the record: settings, hashes, surrogates. Default: OUT.record, beside the copy."""
    json: bool = False
    """Print JSON instead of text."""
