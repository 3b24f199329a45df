"""The command line in the process of the tests: what the fixture `run` returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]
"""Arguments, as they are typed or as paths -> what is said."""
