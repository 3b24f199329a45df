"""The table of docs/choose-a-defense.md: every defence against every threat that the stored results hold.

python -m studies.defence_guide            # writes the table between its markers
python -m studies.defence_guide --check    # 1 if the page says something else
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mithridate.experiments.table import Row
from studies.tables import BEGIN, END
from studies.verdicts import rows

PAGE = Path(__file__).parent.parent / "docs" / "choose-a-defense.md"
THREATS = {
    "backdoor, digits": ("defenses-digits", "badnets", "convnet"),
    "backdoor, CIFAR-10 small": ("cifar10-small", "badnets", "convnet"),
    "gradient matching, CIFAR-10 small": ("defenses-gradient-matching", "witches-brew", "convnet"),
    "class-targeted availability": ("release-cifar10", "adversarial-release (aim=targeted)", "convnet"),
}
"""Column: stored study, attack, architecture (an MLP has its own row of each)."""


def cells() -> dict[str, dict[str, Row]]:
    """Rows by defence and threat; the attacker does not know the defence."""
    found: dict[str, dict[str, Row]] = {}
    for threat, (name, attack, model) in THREATS.items():
        for row in rows(name):
            if row.attack.startswith(attack) and row.model.startswith(model) and not row.adaptive:
                found.setdefault(row.defense, {}).setdefault(threat, row)
    return found


def words(row: Row | None) -> str:
    """Success without and with the defence; bold where it is shown to be lower, and what it costs."""
    if row is None or "undefended" not in row.versus:
        return ""
    other = row.versus["undefended"]
    before, after = (round(100 * share) for share in (other.success.share, row.success.share))
    mark = "**" if other.shown else ""
    worse = ", shown to be more" if other.worse_shown else ""
    if row.goal == "availability":  # what it costs is what is measured
        return f"{mark}{before} to {after} %{mark}{worse} (n = {row.victims})"
    lost = "" if row.cost is None else f"; {round(-100 * row.cost.value, 1) + 0.0:+.1f}"  # no minus zero
    return f"{mark}{before} to {after} %{mark}{worse} (n = {row.trials}){lost}"


def lines() -> Iterator[str]:
    """Yields the table, line by line; defences in the order of the alphabet."""
    yield "| defence | " + " | ".join(THREATS) + " |"
    yield "|---|" + "---|" * len(THREATS)
    for defense, found in sorted(cells().items()):
        if any("undefended" in row.versus for row in found.values()):
            yield f"| `{defense}` | " + " | ".join(words(found.get(threat)) for threat in THREATS) + " |"


def written(page: str) -> str:
    """Returns the page with its table made anew from what is stored."""
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return "\n".join([page[:before], *lines(), page[after:]])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    new = written(text)
    if "--check" in sys.argv[1:]:
        sys.exit(int(new != text))
    PAGE.write_text(new, encoding="utf-8")
    print(f"wrote {PAGE}")
