"""While settings in a stranger's file are read, nothing that they name is imported."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator

_distrusting = contextvars.ContextVar("distrusting", default=False)


@contextlib.contextmanager
def distrusting() -> Iterator[None]:
    """Inside, `module:name` in JSON is an error, except for classes of modules that the program has imported itself.

    To import a module is to run it, and it may lie beside the file that names it.

    >>> from mithridate.core.balls import Ball
    >>> from mithridate.core.schema import from_json
    >>> with distrusting():
    ...     from_json({"type": "antigravity:Ball"}, Ball)
    Traceback (most recent call last):
        ...
    ValueError: the file names 'antigravity:Ball' to be imported, which runs it; if you trust it, import it first
    """
    token = _distrusting.set(True)
    try:
        yield
    finally:
        _distrusting.reset(token)


def check_import(text: str, *, function: bool = False) -> None:
    """Checks that `module:name` may be looked up now.

    Raises:
        ValueError: It is in a stranger's file, and of a module that is not imported yet, or a function.
    """
    if _distrusting.get() and (function or text.partition(":")[0] not in sys.modules):
        raise ValueError(
            f"the file names {text[:100]!r} to be imported, which runs it; if you trust it, import it first"
        )
