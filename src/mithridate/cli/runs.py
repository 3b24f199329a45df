"""Options of trial, study and report: what runs from files, and what is made of results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from mithridate.cli.kinds import Count, Device, Place


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Run one trial from its trial.json and print what came of it."""

    file: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """A trial.json, for example runs/audit/trials/ID/trial.json."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each, which share out the models of each fit. Default: one per core, at most 8."""
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
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each. Default: one per core, at most 8; one for a GPU."""
    out: Place = None
    """Results folder. Default: runs/ and the name of the function."""
    plan: bool = False
    """Say what would run and for about how long; train nothing but a short probe."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    json: bool = False
    """Print the table as JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the table of a results folder and write its report, finished or not."""

    folder: Annotated[Path, tyro.conf.Positional, arg(metavar="FOLDER")]
    """Results folder of an audit or a study."""
    out: Place = None
    """The HTML file. Default: report.html in the folder."""
    json: bool = False
    """Print the table as JSON instead of text."""
