"""Options of export, import and verify: poison that travels to and from other toolkits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from mithridate.cli.kinds import Count, Device, Number, Text, Workers

Formats = Annotated[str | None, arg(metavar="FORMAT", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class _Data:
    data: Annotated[str, arg(metavar="DATA")]
    """The clean data that the poison is of, as for audit: the original, not a compressed copy."""
    per_class: Count = None
    """Only the first N training images of every class."""
    size: Count = None
    """Resize all images to N x N."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(_Data):
    """Write a poison in the format of another toolkit.

    What is written is read back and compared before the command ends.
    """

    poison: Annotated[Path, tyro.conf.Positional, arg(metavar="POISON")]
    """Folder of a poison: RUN/poisons/ID, what craft printed, or what import wrote."""
    out: Annotated[Path, tyro.conf.Positional, arg(metavar="OUT")]
    """New folder (or file) to write."""
    to: Annotated[str, arg(metavar="FORMAT")]
    """poisoning-benchmark, metapoison, sleeper-agent, data-poisoning, png-folder, backdoor-bench, hugging-face, npz, or
    artefact; settings after a colon, as in data-poisoning:mode=numpy."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(_Data):
    """Read a poison of another toolkit, safely, and keep it as one of ours.

    Nothing in the file is run: what is no plain data in the format's own shape is refused.
    """

    path: Annotated[Path, tyro.conf.Positional, arg(metavar="PATH")]
    """File or folder of the other toolkit."""
    out: Annotated[Path, tyro.conf.Positional, arg(metavar="OUT")]
    """New folder."""
    format: Formats = None
    """Its format, as for export --to. Default: what the names of its files look like."""
    pictures: bool = False
    """Write each image as PNG as well."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(_Data):
    """Say what is true of a poison, ours or another toolkit's, on the bytes that are stored.

    Compares rows, labels, distances and targets with the clean data. Exit code 1 if anything fails.
    """

    path: Annotated[Path, tyro.conf.Positional, arg(metavar="PATH")]
    """File or folder."""
    format: Formats = None
    """Its format, as for export --to. Default: what the names of its files look like."""
    limit: Text = None
    """How far an image may have been moved: linf:eps=8/255, l2:eps=0.5, patch:area=0.1, any-image. Default: what the
    poison's own manifest says; of other formats distances are measured and not judged."""
    relabel: bool = False
    """Labels may differ from the clean ones."""
    retrain: Count = None
    """Train N models on the poison and N on clean data, and count how many targets get the intended class."""
    model: Annotated[str, arg(metavar="NAME")] = "convnet"
    """Of --retrain, as for audit."""
    recipe: Literal["paper", "fast"] = "paper"
    """Of --retrain: paper: 40 epochs. fast: 12 epochs."""
    epochs: Count = None
    """Of --retrain: passes over the training set."""
    seed: Number = 0
    """Seed of these models."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Workers = None
    """What shares out the models: local, N, processes:N, ray or ray:ADDRESS, as for audit. Default: a process per core,
    at most 8."""
    json: bool = False
    """Print JSON instead of text."""
