"""Study definitions: functions of the user's that return trials, and where in their file something went wrong."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mithridate
from mithridate.core.schema import resolve
from mithridate.experiments.job import Job

NOT_THEIRS = tuple(
    str(folder)
    for folder in (Path(mithridate.__file__).parent, *(sysconfig.get_path(k) for k in ("stdlib", "purelib", "platlib")))
)
"""Folders of code that no user wrote for a study."""


def definition(text: str) -> list[Job]:
    """Calls a study definition, ``package.module:function``; the current folder is searched too.

    Raises:
        ValueError: Nothing of that name; or it raises: the message says where.
        TypeError: It is no function, or does not return a list of trials.
    """
    try:
        function = resolve(text)
        if not callable(function):
            raise TypeError(f"{text} is {type(function).__name__}; a study is a function that returns a list of Trial")
        trials: Any = function()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        place = where(error)
        if place is None:
            raise
        raise ValueError(
            f"the study {text} cannot be read: {place} raised {type(error).__name__}: {error}; MITHRIDATE_DEBUG=1 "
            "shows how it came there"
        ) from error
    wrong = [trial for trial in trials if not isinstance(trial, Job)] if isinstance(trials, Sequence) else [trials]
    if wrong:
        raise TypeError(f"{text} returned {type(wrong[0]).__name__} where a list of Trial was expected")
    return list(trials)


def where(error: BaseException | None) -> str | None:
    """Returns the last line of code of the user's that an error, or what caused it, went through.

    >>> where(ValueError("never raised")) is None
    True
    """
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename and not _ours(error.filename):
            return f"{error.filename}, line {error.lineno},"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not _ours(frame.filename):
                inside = "" if frame.name == "<module>" else f" in {frame.name}"
                return f"{frame.filename}, line {frame.lineno}{inside},"
        error = error.__cause__
    return None


def _ours(file: str) -> bool:
    return file.startswith(("<", *NOT_THEIRS))
