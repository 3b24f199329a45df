"""What a person is told where the command line stops or warns: one line, and an exit code."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def exit_code(error: Exception) -> int | None:
    """2: a mistake in what was asked; 1: trials failed; None: an error of ours, whose traceback is wanted."""
    if not isinstance(error, RuntimeError):
        return 2
    from mithridate.experiments.study import StudyErrors

    return 1 if isinstance(error, StudyErrors) else None


def message(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows Python warnings as one line of text, each once."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
