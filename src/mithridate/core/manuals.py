"""Manuals: what a choice says of itself, read from its docstring and from those below its settings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from mithridate.core.schema import Choice, name_of

_SECTIONS = re.compile(r"\n\s*\n(?=Reference|Source|Args:|Raises:|Returns:|>>>)")
"""Where the prose of a docstring ends and a part of another kind begins."""


class Setting(NamedTuple):
    """One setting of a choice."""

    name: str
    """As it is typed."""
    default: str
    """As it is typed; empty where there is none."""
    text: str
    """What it means."""


class Manual(NamedTuple):
    """What a choice says of itself."""

    name: str
    """As it is typed."""
    summary: str
    """The first sentence or two: the first paragraph."""
    more: str
    """The other paragraphs, one a line; may be empty."""
    reference: str
    """The paper, and what deviates from it; may be empty."""
    settings: tuple[Setting, ...]
    """In the order of the code."""


def manual(kind: type[Choice]) -> Manual:
    """Returns the manual of a choice.

    >>> from mithridate.core.balls import Linf
    >>> [(one.name, one.text.partition(",")[0]) for one in manual(Linf).settings]
    [('eps', 'Largest change of a pixel value')]
    """
    first, *others = _SECTIONS.split(inspect.cleandoc(kind.__doc__ or ""))
    summary, *more = [_line(part) for part in re.split(r"\n\s*\n", first)]
    reference = next((_line(part) for part in others if part.startswith(("Reference", "Source"))), "")
    said = _texts(kind)
    settings = tuple(
        Setting(field.name, _default(field), said.get(field.name, ""))
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if field.init
    )
    return Manual(name_of(kind), summary, "\n".join(more), reference, settings)


def spelled(value: Any) -> str:
    """Returns a setting's value as it is typed.

    >>> from mithridate.core.balls import Linf
    >>> spelled(8 / 255), spelled(0.2), spelled(True), spelled(Linf(eps=8 / 255))
    ('8/255', '0.2', 'yes', 'linf(eps=8/255)')
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        of_bytes = 255 * value
        long = len(f"{value:.12g}") > len("0.125")
        return f"{of_bytes:.0f}/255" if long and abs(of_bytes - round(of_bytes)) < 1e-9 else f"{value:.12g}"
    if isinstance(value, Choice):
        own = [
            f"{field.name}={spelled(getattr(value, field.name))}"
            for field in dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
            if field.init
        ]
        return f"{name_of(value)}({','.join(own)})" if own else name_of(value)
    return "..".join(map(spelled, value)) if isinstance(value, tuple) else str(value)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return spelled(field.default)
    return "" if field.default_factory is dataclasses.MISSING else spelled(field.default_factory())


def _line(text: str) -> str:
    return " ".join(text.split())


@cache
def _texts(kind: type) -> dict[str, str]:
    """The strings below the settings of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):  # made in a session: there is no file
            continue
        body = ast.parse(source).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(below):
                found[field.target.id] = _line(below.value.value)
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
