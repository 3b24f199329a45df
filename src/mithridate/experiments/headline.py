"""What was shown, in a few plain sentences: the first thing a report says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments import words
from mithridate.experiments.statistics import percent

if TYPE_CHECKING:
    from mithridate.experiments.doses import DoseResponse
    from mithridate.experiments.table import Row

STANDINGS = {
    "shown": ("▲", "shown"),
    "weak": ("△", "over no attack"),
    "margins": ("◇", "margins only"),
    "open": ("○", "not shown"),
    "alone": ("?", "no control"),
}
"""By `words.standing`: a sign, so that nothing hangs on colour, and the words beside it."""
_SAYS = {
    "shown": "beats its control",
    "weak": "beats no attack (random noise was not run)",
    "margins": "margins move, but success is not shown to beat its control",
    "open": "not shown to beat its control",
    "alone": "nothing shown, for want of a control",
}


_SAYS_WITH = {
    "shown": "beats its control with",
    "weak": "beats no attack (random noise was not run) with",
    "margins": "only margins are shown to move with",
    "open": "not shown with",
    "alone": "no control with",
}


class Brief(NamedTuple):
    """One attack in one place: its standing without a defence, and what it did."""

    standing: str
    sentences: list[str]


def title(rows: Sequence[Row]) -> str:
    """Models and data of a study."""
    names = [sorted({getattr(row, name) for row in rows}) for name in ("model", "data")]
    return " on ".join(", ".join(name) for name in names) if rows else "no finished trials"


MOST_DOSES = 3
"""Dose-responses that a headline tells; the page tells all."""


def headline(attacks: Sequence[Row], doses: Sequence[DoseResponse] = ()) -> str:
    """How much poison it takes, where that was measured, and how many attack settings are shown to work.

    >>> headline([])
    'No attack has finished, so nothing is shown.'
    """
    if not attacks:
        return "No attack has finished, so nothing is shown."
    taken = [found.sentences()[0] for found in doses if found.series[0].defense == "none"]
    shown, weak = (sum(words.standing(row) == word for row in attacks) for word in ("shown", "weak"))
    settings = "attack setting" if len(attacks) == 1 else "attack settings"
    verb = "is" if shown == 1 or len(attacks) == 1 else "are"
    more = f"; {weak} to beat no attack, where random noise was not run" if weak else ""
    moved = sum(words.standing(row) == "margins" for row in attacks)
    margins = f" In {moved} of the others margins are shown to move." if moved else ""
    counts = f"{shown} of {len(attacks)} {settings} {verb} shown to beat the control{more}.{margins}"
    return " ".join([*taken[:MOST_DOSES], counts])


def briefs(rows: Sequence[Row]) -> list[Brief]:
    """One brief per attack, place and dose: what is shown first, otherwise in the order of the rows."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for number, scene in enumerate(words.scenes(rows)):
        for row in scene.rows:
            if not row.control:
                groups.setdefault((number, row.attack), []).append(row)
    return sorted(
        (_brief(found, rows) for found in groups.values()), key=lambda one: list(STANDINGS).index(one.standing)
    )


def _brief(found: Sequence[Row], rows: Sequence[Row]) -> Brief:
    bare = next((row for row in found if row.defense == "none"), None)
    place = words.where(found[0], rows)
    name = f"{found[0].attack}{f', {place}' if place else ''}, {found[0].budget}"
    sentences = [f"{name}: {_bare(bare)}."]
    static = [row for row in found if row.defense != "none" and not row.adaptive]
    adaptive = [row for row in found if row.defense != "none" and row.adaptive]
    sentences += [f"Not knowing the defence: {_defended(static)}."] if static else []
    sentences += [f"Adapting to the defence: {_defended(adaptive)}."] if adaptive else []
    return Brief(words.standing(bare) if bare else "alone", sentences)


def _bare(row: Row | None) -> str:
    if row is None or not row.success.n:
        return "not run without a defence"
    against = f", control {percent(row.against.success.share)} %" if row.against and row.against.success.n else ""
    did = f"{percent(row.success.share)} % of {words.subject(row)}"
    return f"without a defence {did}{against}; {_SAYS[words.standing(row)]}"


def _defended(rows: Sequence[Row]) -> str:
    parts = []
    for standing, says in _SAYS_WITH.items():
        found = [row for row in rows if words.standing(row) == standing]
        found.sort(key=lambda row: -row.success.share)
        names = [f"{row.defense} ({percent(row.success.share)} %)" for row in found if row.success.n]
        parts += [f"{says} {_listed(names)}"] if names else []
    return "; ".join(parts) or "no outcome was measured"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
