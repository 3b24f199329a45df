"""Optional packages: imported inside the one function that needs them, with the line that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """An optional package cannot be imported; the message says what needs it and holds the line that installs it."""


def extra(module: str, name: str, what: str) -> ModuleType:
    """Imports an optional package.

    Args:
        module: The module to import.
        name: The extra of mithridate that installs it.
        what: What needs it, as the message says it.

    Raises:
        MissingExtra: It cannot be imported, because it is not there or does not fit the other packages.

    >>> extra("json", "hub", "reading text").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # a compiled part for another torch raises what it likes
        raise MissingExtra(
            f"{what} needs {module}, which cannot be imported here ({error}); pip install 'mithridate[{name}]'"
        ) from error
