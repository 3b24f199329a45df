"""What all pages share: how a template becomes a file, the settings of a study, its machine and time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.experiments import words
from mithridate.experiments.cautions import Caution, Kind
from mithridate.experiments.cells import Pair, canonical

if TYPE_CHECKING:
    from jinja2 import Environment

Part = tuple[str, Any]
"""What a choice is, and its settings (nothing where it was not made)."""


def environment() -> Environment:
    """The templates, with the filters and functions that all of them use. Whatever is not defined is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    made = Environment(
        loader=PackageLoader("mithridate.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["tied"] = words.tied
    made.filters["coded"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    shared = ("counted", "p_texts", "signed", "span", "setting", "share_text")
    made.globals |= {name: getattr(words, name) for name in shared}
    made.globals |= {"percent": words.percent, "counts": counts}
    return made


def write(text: str, path: Path) -> Path:
    """Write a page whole or not at all."""
    return write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    draft.write_bytes(content)
    draft.replace(path)
    return path


def counts(number: int, noun: str) -> str:
    """A number of things.

    >>> counts(1, "case"), counts(1200, "case")
    ('1 case', '1,200 cases')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def grouped(found: Sequence[Caution]) -> list[tuple[Kind, list[str]]]:
    """Cautions by kind, each kind explained once."""
    groups: dict[str, tuple[Kind, list[str]]] = {}
    for text, kind in found:
        groups.setdefault(kind.name, (kind, []))[1].append(text)
    return list(groups.values())


def methods(parts: Iterable[Part], order: Sequence[str]) -> list[Part]:
    """Every choice with all its settings, each once: (what it is, settings)."""
    found: dict[str, Part] = {}
    for what, choice in parts:
        if choice:
            found.setdefault(what + canonical(choice), (what, choice))
    return sorted(found.values(), key=lambda item: (order.index(item[0]), str(item[1].get("type")), canonical(item[1])))


def machine(pairs: Sequence[Pair]) -> dict[str, str]:
    """Versions, hardware and time; several values where trials ran on different machines."""
    found: dict[str, list[str]] = {}
    for _, result in pairs:
        facts = dict(result.get("environment") or {}) | {"torch threads": result.get("threads")}
        for name, value in facts.items():
            if value is not None and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    made = {name: ", ".join(values) for name, values in found.items() if values}
    seconds: Counter[str] = Counter()
    for _, result in pairs:
        seconds.update({phase: value or 0.0 for phase, value in (result.get("seconds") or {}).items()})
    if seconds:
        phases = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items() if value)
        made["time"] = f"{duration(sum(seconds.values()))} in all ({phases})"
    peaks = [result["peak_memory_mb"] for _, result in pairs if result.get("peak_memory_mb")]
    return made | ({"peak memory": f"{max(peaks):,.0f} MB"} if peaks else {})


def duration(seconds: float) -> str:
    """A time in the unit that fits.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
