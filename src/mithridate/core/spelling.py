"""Words as people type them: what an unknown one may have meant, and where a text falls into parts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LISTED = 24
"""Names that an error message lists at most."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Says which known words there are, the nearest first: the tail of an error message.

    >>> nearest("witchs-brew", ["badnets", "witches-brew"])
    'did you mean witches-brew? known: badnets, witches-brew'
    """
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    more = f", ... ({len(known)} in all)" if len(known) > LISTED else ""
    listed = ", ".join(known[:LISTED]) or "none"
    return (f"did you mean {match[0]}? " if match else "") + f"known: {listed}{more}"


def split(text: str, mark: str = ",") -> list[str]:
    """Splits at marks outside parentheses and brackets; empty parts are left out.

    >>> split("a=1,b=f(c=2,d=3)"), split("linf(eps=1/255)+patch", "+")
    (['a=1', 'b=f(c=2,d=3)'], ['linf(eps=1/255)', 'patch'])
    """
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part for part in (*parts, text[start:]) if part]


def spoken(family: type) -> str:
    """Returns the name of a family of choices as a sentence has it.

    >>> spoken(type("LeakDefense", (), {}))
    'leak defense'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family.__name__).lower()
