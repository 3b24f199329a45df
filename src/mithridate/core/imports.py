"""Objects by name: `package.module:name` is imported, the current folder included."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from mithridate.core.distrust import check_import
from mithridate.core.spelling import nearest


def resolve(text: str) -> Any:
    """Imports ``package.module:name``; the current folder is searched too.

    Raises:
        ValueError: the text is not of that form, the module cannot be imported, or it has no such name.

    >>> resolve("pathlib:Path.home")() == Path.home()
    True
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{text!r} names nothing to import; write package.module:name")
    if module_name.endswith(".py"):
        dotted = ".".join(Path(module_name).with_suffix("").parts)
        raise ValueError(f"{text!r} names a file; name the module in it, from the current folder: {dotted}:{attribute}")
    check_import(text)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{text!r}: no module {error.name!r}; is it installed, or in the current folder?") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in vars(value) if not name.startswith("_")]
            raise ValueError(f"{text!r}: {module_name} has no {part!r}; {nearest(part, names)}")
        value = getattr(value, part)
    return value
