"""The table of docs/choose-a-defense.md and its extract in the README: defences against the threats that were measured.

python -m studies.defence_guide            # writes both between their markers
python -m studies.defence_guide --check    # 1 if a page says something else
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mithridate.experiments.statistics import percent
from mithridate.experiments.table import Row
from mithridate.experiments.words import counted, signed, span
from studies.tables import BEGIN, END
from studies.verdicts import rows

PAGE = Path(__file__).parent.parent / "docs" / "choose-a-defense.md"
README = PAGE.parent.parent / "README.md"
THREATS = {
    "backdoor, digits": ("defenses-digits", "badnets", "convnet"),
    "backdoor, CIFAR-10 small": ("cifar10-small", "badnets", "convnet"),
    "gradient matching, CIFAR-10 small": ("defenses-gradient-matching", "witches-brew", "convnet"),
    "class-targeted availability": ("release-cifar10", "adversarial-release (aim=targeted)", "convnet"),
}
"""Column: stored study, attack, architecture (an MLP has its own row of each)."""


EXTRACT = {
    "spectral-signatures": ("spectral-signatures",),
    "mixup": ("mixup",),
    "adversarial-training": ("adversarial-training",),
    "adversarial-poisoning": ("adversarial-poisoning", "adversarial-poisoning (inner=gradient-matching)"),
    "dp-instahide": ("dp-instahide", "dp-instahide (sampler=groups)"),
}
"""Rows of the README: a name, and what it is called in the studies; its threats are the first three."""

Cells = dict[tuple[str, str, bool], Row]
"""By defence, threat, and whether the attacker knows the defence."""


def cells() -> Cells:
    """Rows of all threats, those of undefended models among them: the models that defences are compared with."""
    found: Cells = {}
    for threat, (name, attack, model) in THREATS.items():
        met = [row for row in rows(name) if row.attack.startswith(attack) and row.model.startswith(model)]
        compared = {counted(row.versus["undefended"].success) for row in met if "undefended" in row.versus}
        for row in met:
            if row.defense != "none" or counted(row.success) in compared:
                found.setdefault((row.defense, threat, row.adaptive), row)
    return found


def rate(row: Row) -> str:
    """Success with its interval."""
    return f"{percent(row.success.share)} % ({span(row.success)})"


def undefended(row: Row) -> str:
    """Success without a defence, with what it counts."""
    return f"{rate(row)}, {row.victims} models" if row.goal == "availability" else f"{rate(row)}, n = {row.trials}"


def words(static: Row | None, adaptive: Row | None) -> str:
    """Success with a defence; bold where it is shown to be lower; what the defence costs; the adaptive attacker."""
    if static is None or "undefended" not in static.versus:
        return ""
    other = static.versus["undefended"]
    success, _, ends = rate(static).partition(" (")
    said = f"**{success}** ({ends}" if other.shown else f"{success} ({ends}"
    said += ", shown to be more" if other.worse_shown else ""
    if static.goal != "availability" and static.cost is not None:  # there, what it costs is what is measured
        said += f"; {signed(-100 * static.cost.value)}"
    return said + (f"; knowing it {rate(adaptive)}" if adaptive is not None else "")


def lines() -> Iterator[str]:
    """Yields the table, line by line; defences in the order of the alphabet."""
    found = cells()
    names = sorted({name for (name, _, _), row in found.items() if "undefended" in row.versus})
    yield from _table(found, {name: (name,) for name in names}, list(THREATS))


def extract() -> Iterator[str]:
    """Yields the table of the README."""
    yield from _table(cells(), EXTRACT, list(THREATS)[:3])


def _table(found: Cells, names: dict[str, tuple[str, ...]], threats: list[str]) -> Iterator[str]:
    yield "| defence | " + " | ".join(threats) + " |"
    yield "|---|" + "---|" * len(threats)
    yield "| none | " + " | ".join(undefended(found["none", threat, False]) for threat in threats) + " |"
    for name, called in names.items():
        row = []
        for threat in threats:
            one = next((other for other in called if (other, threat, False) in found), name)
            row.append(words(found.get((one, threat, False)), found.get((one, threat, True))))
        yield f"| `{name}` | " + " | ".join(row) + " |"


def written(page: str, table: Iterator[str]) -> str:
    """Returns the page with its table made anew from what is stored."""
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return "\n".join([page[:before], *table, page[after:]])


if __name__ == "__main__":
    stale = False
    for path, table in ((PAGE, lines()), (README, extract())):
        text = path.read_text(encoding="utf-8")
        new = written(text, table)
        stale |= new != text
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path}")
    if "--check" in sys.argv[1:]:
        sys.exit(int(stale))
