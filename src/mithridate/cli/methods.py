"""Options of methods: which attacks and defences there are, and what can be set in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Say which attacks and defences there are; of those that are named, what can be set and which paper they are of.

    mithridate methods witches-brew mixup
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, arg(metavar="NAME")] = ()
    """Attacks, defences, gradient inversions, what clients do against them, evasions. Default: a line about each."""
    json: bool = False
    """Print JSON instead of text."""
