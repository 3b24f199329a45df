"""The API reference names every public name, and nothing else of the package's door."""

from __future__ import annotations

import re
from pathlib import Path

import mithridate as mi

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^\.\. auto(?:class|function):: mithridate\.(\w+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(set(mi.__all__) - {"__version__"})


def test_every_public_name_has_an_example() -> None:
    """In its own docstring, or in that of one of its own methods."""
    bare = []
    for name in set(mi.__all__) - {"__version__"}:
        public = getattr(mi, name)
        own = [public, *vars(public).values()] if isinstance(public, type) else [public]
        if not any(">>>" in (getattr(one, "__doc__", None) or "") for one in own):
            bare.append(name)
    assert sorted(bare) == []
