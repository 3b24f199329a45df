"""Options of trial, study and report: what runs from files, and what is made of results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from mithridate.cli.kinds import Conditions, Count, Device, Devices, Formats, Gpus, Place, Workers


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Run one trial from its trial.json and print what came of it."""

    file: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """A trial.json, for example runs/audit/trials/ID/trial.json."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    devices: Devices = 1
    """GPUs (on a CPU: processes) that train each model together, each with its share of every batch; then one model is
    trained after the other."""
    workers: Workers = None
    """What shares out the models of each fit: local, N, processes:N, ray or ray:ADDRESS, as for study. Default: a
    process per core, at most 8."""
    gpus_per_trial: Gpus = None
    """GPUs of each fit on Ray, as for study."""
    out: Path = Path("runs/trial")
    """Results folder."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    json: bool = False
    """Print the table as JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Run a list of trials that a Python function returns; the same command again resumes."""

    function: Annotated[str, tyro.conf.Positional, arg(metavar="MODULE:FUNCTION")]
    """For example studies.witches_brew:small; the current folder is searched too."""
    limit: Count = None
    """Run only the first N trials."""
    until: Literal["decided"] | None = None
    """decided: stop each comparison of an attack or a defence once it is shown, or hardly will be."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    devices: Devices = 1
    """GPUs (on a CPU: processes) that train each model together, each with its share of every batch; then one model is
    trained after the other."""
    workers: Workers = None
    """Where trials run: local; N or processes:N, worker processes of one thread each; ray or ray:ADDRESS, a Ray cluster
    (docs/scaling.md). Default: a process per core, at most 8; one for a GPU."""
    gpus_per_trial: Gpus = None
    """GPUs of each trial on Ray; 0.25 lets four share one. Default: 1 with --device cuda, else 0."""
    out: Place = None
    """Results folder. Default: runs/ and the name of the function."""
    plan: bool = False
    """Say what would run and for about how long; train nothing but a short probe."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    fail_if: Conditions = ()
    """Exit with code 3 if this holds for a row: "success>0.2", "badnets vs mixup: success.high>20%"; as for audit, and
    for leaks as for invert."""
    json: bool = False
    """Print the table as JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the table of a results folder and write its report, finished or not.

    --format writes it for other programs as well.
    """

    folder: Annotated[Path, tyro.conf.Positional, arg(metavar="FOLDER")]
    """Results folder of an audit or a study."""
    format: Formats = ()
    """json, csv, parquet (rows with all their numbers); junit (a test per row) and sarif (code scanning), which fail
    where --fail-if holds; tensorboard (outcomes and training curves, a folder). They go beside the page, as
    report.json, report.csv, report.parquet, report.junit.xml, report.sarif and tensorboard/."""
    fail_if: Conditions = ()
    """Exit with code 3 if this holds for a row: "success>0.2", "badnets vs mixup: success.high>20%"; as for audit, and
    for leaks as for invert. Trials that failed or did not finish fail too."""
    out: Place = None
    """The HTML file; default: report.html in the folder. With one --format: the file of that format, - for standard
    output. With several: a folder for all of them and the page."""
    json: bool = False
    """Print the table as JSON instead of text."""
