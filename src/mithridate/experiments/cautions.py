"""What to be careful about in a study: warnings that trials gave and doubts that follow from the numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments.statistics import FEWEST_PAIRS, LEVEL, percent

if TYPE_CHECKING:
    from mithridate.experiments.table import Row


class Caution(NamedTuple):
    """A warning and what it means for the reader."""

    text: str
    meaning: str


_MEANINGS = (
    (r"plain to see", "The poison may change images so much that anyone who looks at the data notices."),
    (r"micro-?batch|out of memory", "Memory ran short and work was cut into smaller pieces; slower, same result."),
    (r"bf16|precision", "Numbers were computed with another precision than asked for; compare speeds with care."),
    (
        r"not resumable|lambda",
        "A setting cannot be named in another process: this study cannot be resumed or re-run by id.",
    ),
    (r"damaged", "A stored file could not be read and was made again."),
    (r"nan|inf\b|diverge", "Training broke down somewhere; the outcome of that trial says little."),
    (r"accuracy", "The model itself is weak or was hurt; success on targets then has other causes than the attack."),
)
_OTHER = "Raised while a trial ran; shown as it came."


def cautions(rows: Sequence[Row]) -> list[Caution]:
    """Doubts that follow from the numbers first, then what the trials warned of."""
    found = [*_controls(rows), *_power(rows), *_noise(rows), *_adaptive(rows), *_many(rows)]
    raised: dict[str, set[str]] = {}
    for row in rows:
        for text in row.warnings:
            raised.setdefault(text, set()).add(row.attack)
    found += [Caution(f"{text} ({', '.join(sorted(names))})", meaning(text)) for text, names in sorted(raised.items())]
    return found


def meaning(text: str) -> str:
    """What a warning means, in one sentence.

    >>> meaning("out of memory: micro-batches of 25")
    'Memory ran short and work was cut into smaller pieces; slower, same result.'
    """
    return next((words for pattern, words in _MEANINGS if re.search(pattern, text, re.IGNORECASE)), _OTHER)


def _controls(rows: Sequence[Row]) -> list[Caution]:
    beside = {row.attack for row in rows if "random-noise" in row.versus}
    alone = sorted({row.attack for row in rows if not row.control} - beside)
    if not alone:
        return []
    text = f"No random-noise control beside {', '.join(alone)}."
    return [Caution(text, "Without it nobody can tell the attack from changing images at random by as much.")]


def _power(rows: Sequence[Row]) -> list[Caution]:
    few = sorted({row.attack for row in rows if row.against and row.against.paired.pairs < FEWEST_PAIRS})
    if not few:
        return []
    text = f"Fewer than {FEWEST_PAIRS} paired cases for {', '.join(few)}."
    return [Caution(text, f"Even if every case succeeds and no control does, the exact test cannot reach {LEVEL}.")]


def _noise(rows: Sequence[Row]) -> list[Caution]:
    loud = [row for row in rows if row.control and row.success.n and row.success.low > 0.05]
    return [
        Caution(
            f"{row.attack} (defence: {row.defense}) moves {percent(row.success.share)} % by itself.",
            "Targets near a class boundary, or a weak model: compare attacks with this rate, not with 0.",
        )
        for row in loud
    ]


def _adaptive(rows: Sequence[Row]) -> list[Caution]:
    met = {row.defense for row in rows if not row.control and row.defense != "none"}
    static = sorted(met - {row.defense for row in rows if row.adaptive})
    if not static:
        return []
    text = f"Only attacks that do not know the defence were run against {', '.join(static)}."
    return [Caution(text, "A defence usually looks better against an attacker who does not adapt to it.")]


def _many(rows: Sequence[Row]) -> list[Caution]:
    tests = sum(row.against is not None for row in rows)
    if tests < 5:
        return []
    text = f"{tests} attack settings were compared with their controls."
    idle = f"of {tests} attacks that do nothing {tests * LEVEL:.1g} would seem to work on average"
    return [Caution(text, f"p-values are not corrected for their number: {idle}.")]
