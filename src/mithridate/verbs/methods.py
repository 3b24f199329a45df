"""What methods does: a list of all choices with a name, or the manuals of some."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mithridate.core.manuals import manual
from mithridate.core.schema import choices, nearest
from mithridate.evasion.attack import Evasion
from mithridate.inversion.attack import Inversion
from mithridate.inversion.client import LeakDefense
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense
from mithridate.verbs.terminal import say

if TYPE_CHECKING:
    from mithridate.cli.methods import MethodsOptions

FAMILIES: dict[str, tuple[type, str]] = {
    "attacks": (Attack, "audit --attacks, dose, craft, protect"),
    "defences": (Defense, "audit --defenses, dose, scan"),
    "gradient inversions": (Inversion, "invert --attacks"),
    "defences of a client": (LeakDefense, "invert --defenses"),
    "evasions": (Evasion, "evade --attacks"),
}
"""What they are called, and where their names are typed."""


def methods(options: MethodsOptions, _: str) -> int:
    """Does what `mithridate methods` says."""
    found = {title: choices(family) for title, (family, _) in FAMILIES.items()}
    known = {name for kinds in found.values() for name in kinds}
    for name in options.names:
        if name not in known:
            raise ValueError(f"no method is called {name!r}; {nearest(name, known)}")
    wanted = options.names or known
    found = {title: {name: kinds[name] for name in kinds if name in wanted} for title, kinds in found.items()}
    if options.json:
        plain = {title: [_plain(kind) for kind in kinds.values()] for title, kinds in found.items()}
        say(json.dumps(plain, indent=1))
    elif options.names:
        for title, kinds in found.items():
            for kind in kinds.values():
                _tell(kind, title)
    else:
        for title, kinds in found.items():
            say(f"\n{_heading(title)}")
            _columns([(name, manual(kind).summary) for name, kind in kinds.items()])
        say("\nmithridate methods NAME: what can be set, and the paper. Typed: NAME:setting=value,setting=value")
    return 0


def _heading(title: str) -> str:
    return f"{title}, for {FAMILIES[title][1]}"


def _tell(kind: type, title: str) -> None:
    """Prints one manual."""
    one = manual(kind)
    say(f"\n{one.name} ({_heading(title)})\n")
    for text in (one.summary, *one.more.splitlines(), _threat(kind), one.reference):
        if text:
            _paragraph(text)
    if one.settings:
        first = one.settings[0]
        say(f"what can be set, with defaults; typed {one.name}:{first.name}={first.default}\n")
        _columns([(f"{setting.name}={setting.default}", setting.text) for setting in one.settings])


def _threat(kind: type) -> str:
    """What an attack may do unless --budget, --eps or a preset say otherwise."""
    if not issubclass(kind, Attack):
        return ""
    threat = kind.threat
    return f"Dose, unless it is given: {100 * threat.budget:g} % of the training images; {threat.ball.describe()}."


def _paragraph(text: str) -> None:
    Console(highlight=False, markup=False, emoji=False).print(text, end="\n\n")


def _columns(rows: list[tuple[str, str]]) -> None:
    """Prints rows of two columns, the second one wrapped."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for left, right in rows:
        grid.add_row(f"  {left}", right)
    Console(highlight=False, markup=False, emoji=False).print(grid)


def _plain(kind: type) -> dict[str, Any]:
    one = manual(kind)
    return {**one._asdict(), "settings": [setting._asdict() for setting in one.settings]}
