"""Gates: conditions like `success>0.2` under which a study counts as failed, read, checked and judged."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mithridate.core.spelling import nearest
from mithridate.experiments.entries import MEASURES, Entry, Measure, Number
from mithridate.experiments.statistics import Mean, Rate

SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
ENDS = ("low", "high")
_NAMED = 12
"""Rows that a message names at most."""
_CONDITION = re.compile(r"(?P<name>[A-Za-z][\w-]*)(?:\.(?P<end>\w+))?\s*(?P<sign>[<>]=?)\s*(?P<limit>[^<>=\s][^<>=]*)")
_EXAMPLES = "write it in quotes, like 'success>0.2', 'success.high>20%' or 'badnets vs mixup: success>0.2'"


@dataclass(frozen=True)
class Condition:
    """One condition under which a study counts as failed.

    `success>0.2` is about the measured share; `success.low>0.2` holds only where the whole 95 % interval lies above,
    `success.high>0.2` unless it lies below. Controls are never judged.
    """

    text: str
    """As it was typed."""
    name: str
    """Of the measure."""
    end: str
    """low or high: that end of the interval; empty: the value itself."""
    sign: str
    limit: float
    attack: str | None = None
    """Only rows of this attack: by its name, or by its label in the table."""
    defense: str | None = None
    """Only rows of this stack of defences, joined by "+"; "none": the undefended ones."""

    def about(self, entry: Entry) -> bool:
        """Whether it is about a row."""
        stack = "+".join(entry.defenses) or "none"
        return (
            not entry.control
            and self.attack in (None, entry.attack, entry.label)
            and self.defense in (None, stack, entry.defense.replace(" + ", "+"))
        )

    def holds(self, value: float) -> bool:
        """Whether it holds for a number."""
        return SIGNS[self.sign](value, self.limit)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Breach:
    """Why a gate is closed: a condition that holds for a row, or that could not be judged."""

    condition: Condition
    entry: Entry | None
    """The row; None where there is none that could be judged."""
    value: float | None
    """What was compared with the limit; None where nothing could be."""
    text: str
    """The row, and what was measured of it or why nothing was."""

    @property
    def measured(self) -> bool:
        """Whether the condition holds, in contrast to not being judged."""
        return self.value is not None

    def __str__(self) -> str:
        return f"{self.condition} {'holds' if self.measured else 'cannot be judged'}: {self.text}"


# --- reading ---------------------------------------------------------------------------------------------------------


def conditions(texts: Iterable[str], kind: str) -> list[Condition]:
    """Reads conditions as people type them: `[ATTACK] [vs DEFENCE]: NAME[.low|.high] SIGN NUMBER`.

    Args:
        texts: Each one condition.
        kind: Of the trials: poison or leak; their measures differ, and other trials have none.

    Raises:
        ValueError: It cannot be read, the measure does not exist, or no number could ever meet it.

    >>> found = conditions(["success > 20%", "badnets vs mixup+noise: accuracy.low<=0.9"], "poison")
    >>> found[0].limit, found[0].holds(0.2), found[0].holds(0.21)
    (0.2, False, True)
    >>> found[1].attack, found[1].defense, found[1].name, found[1].end
    ('badnets', 'mixup+noise', 'accuracy', 'low')
    """
    given = list(texts)
    if given and kind not in MEASURES:
        raise ValueError(
            f"{given[0]!r}: conditions are about attacks, and a study of measurements has none; leave it out"
        )
    return [_read(text, kind) for text in given]


def _read(text: str, kind: str) -> Condition:
    place, _, rest = text.rpartition(":")
    parts = _CONDITION.fullmatch(rest.strip())
    if parts is None:
        raise ValueError(f"{text!r} is no condition; {_EXAMPLES}")
    name, end, sign = parts["name"], parts["end"] or "", parts["sign"]
    if name not in MEASURES[kind]:
        raise ValueError(f"{text!r}: nothing measured is called {name!r}; {nearest(name, MEASURES[kind])}")
    measure = MEASURES[kind][name]
    if end and not measure.interval:
        raise ValueError(f"{text!r}: {name} has no interval; write {name}{sign}{parts['limit']}")
    if end and end not in ENDS:
        raise ValueError(f"{text!r}: an interval has no end {end!r}; {nearest(end, ENDS)}")
    limit = _limit(text, name, sign, parts["limit"].strip(), measure)
    attack, defense = _place(text, place)
    return Condition(text, name, end, sign, limit, attack, defense)


def _limit(text: str, name: str, sign: str, number: str, measure: Measure) -> float:
    """The number of a condition, if one that is larger and one that is smaller could be measured."""
    percent = number.endswith("%")
    try:
        digits = number.removesuffix("%").strip()
        limit = float(digits) if "e" in digits.lower() else float(Fraction(digits) / (100 if percent else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{text!r}: {number!r} is not a number; {_EXAMPLES}") from None
    if percent and (not measure.share or "e" in digits.lower()):
        raise ValueError(f"{text!r}: {name} is the {measure.meaning}; write a plain number")
    smallest, largest = measure.range
    never = {">": limit >= largest, ">=": limit > largest, "<": limit <= smallest, "<=": limit < smallest}
    if never[sign] or not smallest <= limit <= largest:
        hint = f"; write {limit:g}% or {limit / 100:g}" if measure.share and 1 < limit <= 100 else ""
        bounds = f"from {smallest:g}" + (f" to {largest:g}" if math.isfinite(largest) else "")
        raise ValueError(f"{text!r} says nothing, since {name} is the {measure.meaning}, {bounds}{hint}")
    return limit


def _place(text: str, place: str) -> tuple[str | None, str | None]:
    """The attack and the defences that a condition is about."""
    attack, mark, defense = f" {place.strip()} ".partition(" vs ")
    attack, defense = attack.strip(), defense.strip()
    if (mark and not defense) or (":" in text and not (attack or defense)):
        raise ValueError(f"{text!r} names neither attack nor defence before the colon; {_EXAMPLES}")
    stack = "+".join(part.strip() for part in defense.split("+"))
    return attack or None, stack or None


def check_places(found: Iterable[Condition], attacks: Iterable[str], stacks: Iterable[str]) -> None:
    """Looks before anything is trained whether the attacks and defences of conditions will be there to be judged.

    Args:
        found: Conditions.
        attacks: Names of the attacks that will be run.
        stacks: Names of the defences that will be run, joined by "+"; "none" for no defence.

    Raises:
        ValueError: One will not; the message names the nearest.
    """
    for condition in found:
        for name, known, what in (
            (condition.attack, set(attacks), "attack"),
            (condition.defense, set(stacks), "defence"),
        ):
            if name is not None and name not in known and name.partition(" (")[0] not in known:
                raise ValueError(f"{condition.text!r}: no {what} {name!r} is run here; {nearest(name, known)}")


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(found: Sequence[Condition], rows: Sequence[Entry]) -> list[Breach]:
    """Judges the rows of a table by some conditions. A condition that nothing could be judged by is a breach as well.

    Args:
        found: Conditions.
        rows: All entries of the table; controls among them are left out.

    >>> print(*judge(conditions(["success>0.2"], "poison"), []))
    success>0.2 cannot be judged: no attack has finished
    """
    return [breach for condition in found for breach in _judged(condition, rows)]


def _judged(condition: Condition, rows: Sequence[Entry]) -> list[Breach]:
    about = [entry for entry in rows if condition.about(entry)]
    if not about:
        names = [entry.name for entry in rows if not entry.control]
        more = "; ..." if len(names) > _NAMED else ""
        there = f"no such row; there are: {'; '.join(names[:_NAMED])}{more}" if names else "no attack has finished"
        return [_unjudged(condition, None, there)]
    found = [_of_row(condition, entry) for entry in about]
    if any(judged for judged, _ in found) or any(breach for _, breach in found):
        return [breach for _, breach in found if breach]
    return [_unjudged(condition, None, f"{condition.name} was measured in none of {len(about)} rows")]


def _of_row(condition: Condition, entry: Entry) -> tuple[bool, Breach | None]:
    """Whether a row could be judged, and what is wrong with it."""
    measure = MEASURES[entry.kind][condition.name]
    if condition.name not in entry.numbers:
        missing = _unjudged(condition, entry, f"{condition.name} was not measured")
        return False, missing if measure.everywhere else None
    number = entry.numbers[condition.name]
    value, told = _value(number, condition.end), f"{condition.name} {measure.text(number)}"
    if value is None:
        return False, _unjudged(condition, entry, f"{told} has no interval")
    return True, Breach(condition, entry, value, f"{entry.name}: {told}") if condition.holds(value) else None


def _unjudged(condition: Condition, entry: Entry | None, why: str) -> Breach:
    return Breach(condition, entry, None, f"{entry.name}: {why}" if entry else why)


def _value(number: Number, end: str) -> float | None:
    if isinstance(number, (Rate, Mean)):
        return getattr(number, end) if end else (number.share if isinstance(number, Rate) else number.value)
    return number
