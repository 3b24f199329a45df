"""Progress for long loops: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_showing: ContextVar[bool] = ContextVar("showing", default=False)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items with a progress bar that vanishes at the end; only the outermost loop shows one.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    if _showing.get() or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as show

    total = total if total is not None else (len(items) if isinstance(items, Sized) else None)
    token = _showing.set(True)
    try:
        yield from show(items, description=label, total=total, console=Console(stderr=True), transient=True)
    finally:
        _showing.reset(token)


class quiet:
    """Switches the bars of inner loops off, for a caller that shows its own.

    >>> with quiet():
    ...     list(track([1, 2], "counting"))
    [1, 2]
    """

    def __enter__(self) -> None:
        self._token = _showing.set(True)

    def __exit__(self, *_: object) -> None:
        _showing.reset(self._token)
