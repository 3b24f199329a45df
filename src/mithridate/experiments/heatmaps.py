"""Heat maps: attacks against defences, and surrogates against victims. Tables with coloured boxes, so they can be read
aloud, selected, searched and printed; colour only repeats what the box says."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mithridate.experiments import words
from mithridate.experiments.cells import canonical
from mithridate.experiments.headline import STANDINGS

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

SUCCESS_STEPS = (0.05, 0.2, 0.4, 0.6, 0.8)
"""Success rates at which a box gets the next darker colour."""
COST_STEPS = (0.01, 0.03, 0.10)
"""Accuracy lost, as a share, at which a box gets the next darker colour."""
WIDEST = 8
"""Columns of success that fit beside each other on a wide screen; more and each scene gets a map of its own."""


@dataclass(frozen=True)
class Box:
    """One cell of the study in a map."""

    row: Row
    anchor: str
    """Where its trials are listed."""
    tone: int
    """0 (low) to 5 (high)."""
    standing: str
    sign: str
    says: str


@dataclass(frozen=True)
class Slot:
    """What stands in one place of a map."""

    boxes: list[Box]
    """Usually one; none = not run; several where settings differ that have no column of their own."""
    width: int = 1


@dataclass(frozen=True)
class Accuracy:
    """Clean accuracy of a line of the map, and what the defence costs."""

    row: Row
    tone: int
    """0 (free) to 3 (ten points or more)."""


@dataclass(frozen=True)
class Head:
    """An attack at the top of a map."""

    attack: str
    note: str
    """Scenario, access and dose."""
    both: bool
    """Whether it has two columns: static and adaptive."""


@dataclass(frozen=True)
class Line:
    """One defence."""

    defense: str
    slots: list[Slot]
    accuracies: list[Accuracy | None]


@dataclass(frozen=True)
class HeatMap:
    """Defences down, attacks across, clean accuracy at the right."""

    title: str
    heads: list[Head]
    places: list[str]
    """One column of accuracy each."""
    lines: list[Line]

    @property
    def both(self) -> bool:
        """Whether any attack has an adaptive column."""
        return any(head.both for head in self.heads)

    @property
    def columns(self) -> int:
        """Columns of success."""
        return sum(1 + head.both for head in self.heads)


@dataclass(frozen=True)
class TransferGrid:
    """Surrogates down, victims across, for one attack; victims of one scenario stand together."""

    title: str
    scenarios: list[tuple[str, list[str]]]
    """Each scenario with its victims."""
    lines: list[tuple[str, list[Slot]]]
    """Each surrogate with one slot per victim of each scenario."""


def anchors(rows: Sequence[Row]) -> dict[int, str]:
    """Names of the rows' places in the page, by id of the row."""
    return {id(row): f"cell-{number}" for number, row in enumerate(rows, 1)}


def tone(share: float, steps: Sequence[float] = SUCCESS_STEPS) -> int:
    """The step of the colour scale.

    >>> tone(0.0), tone(0.05), tone(1.0)
    (0, 1, 5)
    """
    return bisect.bisect_right(steps, share)


def heatmaps(rows: Sequence[Row]) -> list[HeatMap]:
    """The maps of a study: one per data set and model, or one per scene where that would be too wide."""
    named = anchors(rows)
    boards: dict[tuple[str, str], list[words.Scene]] = {}
    for scene in words.scenes(rows):
        boards.setdefault((scene.rows[0].data, scene.rows[0].model), []).append(scene)
    made = []
    for (data, model), scenes in boards.items():
        whole = _heatmap(f"{model} on {data}", scenes, named)
        if whole.columns > WIDEST and len(scenes) > 1:
            made += [_heatmap(scene.title, [scene], named) for scene in scenes]
        else:
            made.append(whole)
    return [found for found in made if found.heads]


def _heatmap(title: str, scenes: Sequence[words.Scene], named: dict[int, str]) -> HeatMap:
    rows = [row for scene in scenes for row in scene.rows]
    columns: dict[tuple[int, str, str], list[Row]] = {}
    for number, scene in enumerate(scenes):
        for row in scene.rows:
            if not row.control:
                columns.setdefault((number, row.attack, row.access), []).append(row)
    heads = [_head(found) for found in columns.values()]
    places = list(dict.fromkeys(row.scenario for row in rows))
    lines = []
    for defense in sorted({row.defense for row in rows}, key=_defense_order):
        slots = [
            slot
            for head, found in zip(heads, columns.values(), strict=True)
            for slot in _slots(defense, head, found, named)
        ]
        accuracies = [_accuracy([r for r in rows if (r.scenario, r.defense) == (name, defense)]) for name in places]
        lines.append(Line(defense, slots, accuracies))
    return HeatMap(title, heads, places, lines)


def _defense_order(defense: str) -> tuple[bool, int, str]:
    """No defence first, then single ones, then stacks."""
    return defense != "none", defense.count(" + "), defense


def _head(found: Sequence[Row]) -> Head:
    row = max(found, key=lambda r: r.budget.count)
    parts = (row.scenario, row.access, f"{100 * row.budget.share:.3g} % poison", row.budget.bound)
    note = ", ".join(part.replace(" ", "\u00a0") if len(part) < 20 else part for part in parts)  # breaks at commas
    return Head(row.attack, note, any(r.adaptive and r.defense != "none" for r in found))


def _slots(defense: str, head: Head, found: Sequence[Row], named: dict[int, str]) -> list[Slot]:
    here = [row for row in found if row.defense == defense]
    if not head.both or defense == "none":  # without a defence there is nothing to adapt to
        return [Slot(_boxes(here, named), 1 + head.both)]
    return [Slot(_boxes([row for row in here if row.adaptive == adaptive], named)) for adaptive in (False, True)]


def _boxes(rows: Iterable[Row], named: dict[int, str]) -> list[Box]:
    made = []
    for row in rows:
        if row.success.n:
            standing = words.standing(row)
            made.append(Box(row, named[id(row)], tone(row.success.share), standing, *STANDINGS[standing]))
    return made


def _accuracy(rows: Sequence[Row]) -> Accuracy | None:
    """Of unattacked models where there are some."""
    found = sorted((row for row in rows if row.accuracy.n), key=lambda row: row.attack != "no-attack")
    if not found:
        return None
    lost = found[0].cost.value if found[0].cost is not None and found[0].cost.n else 0.0
    return Accuracy(found[0], tone(lost, COST_STEPS))


def transfer_grids(rows: Sequence[Row]) -> list[TransferGrid]:
    """Surrogate against victim by scenario, where an attack met more than one architecture of either."""
    named = anchors(rows)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if not row.control and row.success.n:
            key = (row.data, row.defense, str(row.adaptive))
            key += (canonical(row.settings["attack"]), canonical(row.settings["threat"]))
            groups.setdefault(key, []).append(row)
    several = [g for g in groups.values() if len({row.surrogate for row in g}) > 1 or len({row.model for row in g}) > 1]
    return [_transfer(found, named) for found in several]


def _transfer(found: Sequence[Row], named: dict[int, str]) -> TransferGrid:
    first = found[0]
    defended = f" with {first.defense}" if first.defense != "none" else ""
    adapting = ", adaptive" if first.adaptive and defended else ""
    places = list(dict.fromkeys(row.scenario for row in found))
    scenarios = [(place, sorted({row.model for row in found if row.scenario == place})) for place in places]
    budget = first.budget  # the same share everywhere, but in transfer of half the images
    where = f"{places[0]}, {first.data}, {budget}"
    if len(places) > 1:
        where = f"{first.data}, {100 * budget.share:.3g} % poison, {budget.bound}"
    title = f"{first.attack.partition(' via ')[0]}{defended}{adapting}: {where}"
    lines = []
    for surrogate in sorted({row.surrogate for row in found}):
        own = [row for row in found if row.surrogate == surrogate]
        slots = [
            Slot(_boxes((row for row in own if (row.scenario, row.model) == (place, victim)), named))
            for place, victims in scenarios
            for victim in victims
        ]
        lines.append((surrogate, slots))
    return TransferGrid(title, scenarios, lines)
