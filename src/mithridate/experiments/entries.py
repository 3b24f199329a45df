"""Rows of a table, poisoning or leaks, as entries of one kind: what gates judge and what other programs are told."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mithridate.experiments import leak_words, words
from mithridate.experiments.cells import Pair, canonical
from mithridate.experiments.labels import model_of
from mithridate.experiments.leak_cells import state_of
from mithridate.experiments.leak_table import LeakRow, LeakTable
from mithridate.experiments.measurement_table import MeasurementTable
from mithridate.experiments.measurements import Measurement
from mithridate.experiments.statistics import Mean, Rate, percent
from mithridate.experiments.table import Row, Table

Number = Rate | Mean | float
"""What was measured of a row: a share or a mean with its interval, or a number that has none."""
SHARE = (0.0, 1.0)
ANY = (-math.inf, math.inf)


@dataclass(frozen=True)
class Measure:
    """A number that rows have."""

    meaning: str
    range: tuple[float, float] = SHARE
    """Smallest and largest value it can have."""
    unit: str = "%"
    """Of a share, which is stored as a fraction, `%`; of other numbers theirs, or nothing."""
    interval: bool = True
    everywhere: bool = False
    """Whether every attack has it; what is missing then was not measured, and is not just beside the point."""

    @property
    def share(self) -> bool:
        """Whether it is a fraction, shown in percent."""
        return self.unit == "%"

    def text(self, value: Number) -> str:
        """The number with its interval and what it was counted on.

        >>> Measure("a share").text(Rate(3, 20, 20.0, 0.05, 0.36))
        '15 % (5 to 36 %; 3 of 20)'
        >>> Measure("a share").text(Mean(0.914, 0.8, 1.028, 3))
        '91.4 % (80.0 to 100.0 %; mean of 3)'
        >>> Measure("PSNR", unit="dB").text(Mean(20.04, None, None, 1))
        '20 dB (a single value)'
        """
        if isinstance(value, Rate):
            return f"{percent(value.share)} % ({words.span(value)} %; {words.counted(value)})"
        if not isinstance(value, Mean):
            return self._one(value)
        counted = "a single value" if value.n == 1 else f"mean of {value.n}"
        if value.low is None or value.high is None:
            return f"{self._one(value.value)} ({counted})"
        smallest, largest = self.range
        low, high = self._plain(max(value.low, smallest)), self._plain(min(value.high, largest))
        return f"{self._one(value.value)} ({low} to {high}{' %' * self.share}; {counted})"

    def _one(self, value: float) -> str:
        return f"{self._plain(value)} {self.unit}".rstrip()

    def _plain(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.share else f"{value:.3g}"


MEASURES: dict[str, dict[str, Measure]] = {
    "poison": {
        "success": Measure("share of outcomes that the attacker wanted", everywhere=True),
        "eligible_success": Measure("share of these among targets that most clean victims get right"),
        "accuracy": Measure("share of clean test images that victims get right", everywhere=True),
        "highest": Measure("highest accuracy of any epoch"),
        "true_label": Measure("share of triggered images that get their true label"),
        "cost": Measure("share of accuracy lost against clean, undefended victims", (-1.0, 1.0)),
        "margin": Measure("score of the intended class minus the best other, in logits", ANY, ""),
        "recall": Measure("share of the poisons that a filter drops"),
        "precision": Measure("share of poison in what a filter drops"),
        "false_alarms": Measure("share of the other rows that a filter drops"),
        "p": Measure("p-value of success against the strictest control", unit="", interval=False),
        "holm": Measure("same after Holm's correction (0.025 or less is shown)", unit="", interval=False),
    },
    "leak": {
        "identified": Measure("share of images picked out by their reconstruction", everywhere=True),
        "psnr": Measure("PSNR of reconstructions", ANY, "dB", everywhere=True),
        "ssim": Measure("SSIM of reconstructions", (-1.0, 1.0), "", everywhere=True),
        "gain": Measure("PSNR over that of the mean image", ANY, "dB"),
        "label_accuracy": Measure("share of the labels found"),
        "feature_distance": Measure("relative distance of penultimate features", (0.0, math.inf), ""),
        "epsilon": Measure("epsilon that the defences prove of one message", (0.0, math.inf), "", interval=False),
        "p": Measure("p-value of picking out against chance", unit="", interval=False),
        "holm": Measure("same after Holm's correction (0.025 or less is shown)", unit="", interval=False),
    },
}
"""By kind of trials and name; names are those of the columns of the CSV where it has one."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One row: one cell of a study."""

    kind: str
    """Of the trials: poison or leak."""
    name: str
    """What tells it from all other rows of its table."""
    suite: str
    """Its attack, place and dose: the rows of all defences share it."""
    attack: str
    """Name of the attack."""
    label: str
    """The same, with the settings that tell it from other cells of the attack."""
    defense: str
    """The defences as the table names them, or "none"."""
    defenses: tuple[str, ...]
    """Names of the defences, in their order."""
    control: bool
    numbers: dict[str, Number]
    """By name of the measure, what was measured."""
    standing: str
    """The verdict in a word: shown, weak, margins, alone, open."""
    verdict: str
    """The verdict in a sentence."""
    seconds: float
    trials: dict[int, Pair]
    """By seed."""
    identity: str
    """The same for the same attack, defences, dose and model, in every run of a study."""

    def text(self, name: str) -> str:
        """A number of it in words.

        Raises:
            KeyError: It was not measured.
        """
        return MEASURES[self.kind][name].text(self.numbers[name])


AnyTable = Table | LeakTable | MeasurementTable


def kind_of(table: AnyTable) -> str:
    """The kind of trials that a table is of: poison, leak or measurement."""
    if isinstance(table, MeasurementTable):
        return Measurement.kind
    return "poison" if isinstance(table, Table) else "leak"


def entries(table: AnyTable) -> list[Entry]:
    """Returns the rows of a table as entries, in their order; measurements, which are no attacks, have none.

    >>> entries(Table(()))
    []
    """
    if isinstance(table, MeasurementTable):
        return []
    if isinstance(table, Table):
        found = [_of_poison(row, table.rows) for row in table.rows]
        doses = [_dose(row) for row in table.rows]
    else:
        found, doses = [_of_leak(row, table.rows) for row in table.rows], [row.knowledge for row in table.rows]
    return _named(found, doses)


def _named(found: Sequence[Entry], doses: Sequence[str]) -> list[Entry]:
    """Tells rows of equal names apart by their doses, and where that does not help by numbers."""
    alike = Counter(entry.name for entry in found)
    names = [
        entry.name if alike[entry.name] == 1 else f"{entry.name}, {dose}"
        for entry, dose in zip(found, doses, strict=True)
    ]
    seen: Counter[str] = Counter()
    made = []
    for entry, name in zip(found, names, strict=True):
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name} #{seen[name]}"
        seen[entry.identity] += 1
        mark = entry.identity if seen[entry.identity] == 1 else _identity([entry.identity, name])
        made.append(replace(entry, name=name, identity=mark))
    return made


def _dose(row: Row) -> str:
    """What the attacker may do, in few words."""
    if row.attack == "no-attack":
        return f"{words.aim(row)}, {row.budget.bound}"
    return f"{words.aim(row)}, {100 * row.budget.limit:.3g} % poison, {row.budget.bound}"


def _of_poison(row: Row, rows: Sequence[Row]) -> Entry:
    adapting = "adapting" if row.adaptive and row.defense != "none" else ""
    control, found = row.against, row.detection
    numbers: dict[str, Number | None] = {
        "success": row.success,
        "eligible_success": row.eligible,
        "accuracy": row.accuracy,
        "highest": row.highest,
        "true_label": row.right,
        "cost": row.cost,
        "margin": row.margin,
        "recall": found.recall if found else None,
        "precision": found.precision if found else None,
        "false_alarms": found.false_alarms if found else None,
        "p": control.paired.p if control else None,
        "holm": control.holm if control else None,
    }
    dose = words.aim(row) if row.attack == "no-attack" else f"{words.aim(row)}, {row.budget}"
    setting = row.settings
    means = [row.scenario, row.access, row.adaptive, row.data, model_of(setting.get("learner") or {}), row.surrogate]
    return Entry(
        kind="poison",
        name=_joined(_against(row), adapting, words.where(row, rows)),
        suite=_joined(row.attack, words.place(row), words.access(row, rows), dose),
        attack=row.cell.attack,
        label=row.attack,
        defense=row.defense,
        defenses=_names(row.cell.defenses),
        control=row.control,
        numbers=_measured(numbers),
        standing="control" if row.control else words.standing(row),
        verdict=_control(row) if row.control else words.verdict(row, rows),
        seconds=sum(row.seconds.values()),
        trials=row.cell.trials,
        identity=_identity([setting["attack"], setting.get("defenses"), setting["threat"], *means]),
    )


def _control(row: Row) -> str:
    rates = f"{percent(row.success.share)} % of {words.subject(row)}" if row.success.n else "nothing measured"
    return f"{row.attack}, a control: {rates}."


def _of_leak(row: LeakRow, rows: Sequence[LeakRow]) -> Entry:
    numbers: dict[str, Number | None] = {
        "identified": row.found.identified,
        "psnr": row.found.psnr,
        "ssim": row.found.ssim,
        "gain": row.gain.psnr.difference,
        "label_accuracy": row.label_accuracy,
        "feature_distance": row.feature_distance,
        "epsilon": row.epsilon,
        "p": row.gain.identified.p,
        "holm": row.gain.identified_holm,
    }
    setting, adapting = row.settings, "adapting" if row.adaptive and row.defense != "none" else ""
    place = [row.adaptive, setting.get("distinct"), row.data, model_of(setting["recipe"]), state_of(setting)]
    return Entry(
        kind="leak",
        name=_joined(_against(row), adapting, leak_words.where(row, rows), leak_words.batches(row.batch)),
        suite=_joined(row.attack, row.data, row.model, row.sharing, row.knowledge),
        attack=row.cell.attack,
        label=row.attack,
        defense=row.defense,
        defenses=_names(row.cell.defenses),
        control=False,
        numbers=_measured(numbers),
        standing=leak_words.standing(row),
        verdict=leak_words.verdict(row, rows),
        seconds=row.seconds * row.trials,
        trials=row.cell.trials,
        identity=_identity([setting["attack"], setting.get("defenses"), setting["client"], *place]),
    )


def _against(row: Row | LeakRow) -> str:
    return row.attack if row.defense == "none" else f"{row.attack} vs {row.defense}"


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _names(defenses: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(str(defense["type"]) for defense in defenses)


def _measured(numbers: dict[str, Number | None]) -> dict[str, Number]:
    """What really was measured: a rate of nothing and a mean of nothing are no numbers."""
    return {name: value for name, value in numbers.items() if value is not None and _counted(value)}


def _counted(value: Number) -> bool:
    if isinstance(value, Rate):
        return value.n > 0
    return math.isfinite(value.value) if isinstance(value, Mean) else math.isfinite(value)


def _identity(settings: Any) -> str:
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:16]
