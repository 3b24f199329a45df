"""The tables of a study of measurements: one per kind of measurement, a row per setting, averages over seeds.

Works on plain JSON, so that results can be read where the code that made them is not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from mithridate.experiments.cells import Pair, canonical, is_number
from mithridate.experiments.labels import setting
from mithridate.experiments.rates import rate
from mithridate.experiments.statistics import Mean, Rate, mean

Found = Rate | Mean


@dataclass(frozen=True, eq=False)
class MeasurementRow:
    """Measurements that differ in nothing but their seed."""

    settings: dict[str, Any]
    """What tells it from the other rows of its table, by name: "attack.step", "recipe.model"; those that it has."""
    name: str
    """The same in words."""
    found: dict[str, Found]
    """By name, a rate of yes and no, or the mean of numbers, over seeds."""
    trials: dict[int, Pair]
    """By seed."""

    def values(self, name: str) -> dict[int, Any]:
        """What was measured, by seed; seeds without it are left out."""
        outcomes = {seed: result["outcome"] for seed, (_, result) in self.trials.items()}
        return {seed: outcome[name] for seed, outcome in outcomes.items() if outcome.get(name) is not None}


@dataclass(frozen=True, eq=False)
class MeasurementGroup:
    """One kind of measurement."""

    name: str
    rows: tuple[MeasurementRow, ...]
    common: dict[str, Any]
    """Settings that all rows share."""

    @property
    def columns(self) -> list[str]:
        """Names of what was measured, in the order of the first row that has them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.found))


@dataclass(frozen=True, eq=False)
class MeasurementTable:
    """All of a study."""

    groups: tuple[MeasurementGroup, ...]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per row and measured name: settings, value, low, high, n."""
        return [
            {
                "measurement": group.name,
                "settings": row.name,
                "measured": name,
                **number(value),
            }
            for group in self.groups
            for row in group.rows
            for name, value in row.found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "common": group.common,
                    "rows": [
                        {
                            "settings": row.settings,
                            "seeds": sorted(row.trials),
                            "measured": {name: number(value) for name, value in row.found.items()},
                        }
                        for row in group.rows
                    ],
                }
                for group in self.groups
            ]
        }

    def to_csv(self) -> str:
        """One line per row and measured name."""
        out = io.StringIO()
        names = ["measurement", "settings", "measured", "value", "low", "high", "n"]
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records())
        return out.getvalue()


def measurement_table(pairs: Iterable[Pair]) -> MeasurementTable:
    """Makes the table of finished measurements.

    Raises:
        KeyError, TypeError: A trial or a result that is none of a measurement.
    """
    groups: dict[str, dict[str, dict[int, Pair]]] = {}
    for trial, result in pairs:
        same = canonical({key: value for key, value in trial.items() if key != "seed"})
        groups.setdefault(trial["type"], {}).setdefault(same, {})[int(trial["seed"])] = (trial, result)
    return MeasurementTable(tuple(_group(name, list(cells.values())) for name, cells in sorted(groups.items())))


def number(found: Found) -> dict[str, Any]:
    """A rate or a mean as plain numbers: value, low, high, n."""
    value = found.share if isinstance(found, Rate) else found.value
    return {"value": value, "low": found.low, "high": found.high, "n": found.n}


def words(found: Found | None) -> str:
    """A rate or a mean with its interval and n.

    >>> words(mean([1.0, 2.0, 3.0])), words(None)
    ('2 (-0.484 to 4.48; n = 3)', '')
    """
    if found is None:
        return ""
    if isinstance(found, Rate):
        return str(found)
    if found.low is None or found.high is None:
        return f"{found.value:.4g} (n = {found.n})"
    if found.low == found.high:
        return f"{found.value:.4g} (n = {found.n}, all alike)"
    return f"{found.value:.4g} ({found.low:.3g} to {found.high:.3g}; n = {found.n})"


def print_measurements(table: MeasurementTable, console: Console) -> None:
    """Prints every table."""
    for group in table.groups:
        console.print(f"{group.name} (95 % intervals)")
        grid = Grid(box=None, padding=(0, 2, 0, 0))
        grid.add_column("")
        for name in group.columns:
            grid.add_column(name.replace("_", " "), justify="right")
        for row in group.rows:
            grid.add_row(row.name, *(words(row.found.get(name)) for name in group.columns))
        console.print(grid)


# --- rows ------------------------------------------------------------------------------------------------------------


def _group(name: str, cells: Sequence[dict[int, Pair]]) -> MeasurementGroup:
    settings = [dict(_flat(next(iter(cell.values()))[0])) for cell in cells]
    for one in settings:
        one.pop("seed", None)
    names = list(dict.fromkeys(key for one in settings for key in one))
    differ = [key for key in names if len({canonical(one[key]) for one in settings if key in one}) > 1]
    common = {key: value for key, value in settings[0].items() if key not in differ} if settings else {}
    texts = {key: _spelling([one.get(key) for one in settings]) for key in differ}
    own = [{key: one[key] for key in differ if key in one} for one in settings]
    rows = [
        MeasurementRow(
            one,
            ", ".join(_said(key, value, texts[key](value)) for key, value in one.items()) or "all",
            _measured(cell),
            dict(sorted(cell.items())),
        )
        for one, cell in zip(own, cells, strict=True)
    ]
    rows.sort(key=lambda row: [_order(row.settings.get(key)) for key in differ])
    return MeasurementGroup(name, tuple(rows), common)


def _said(key: str, value: Any, text: str) -> str:
    """A setting in words: names speak for themselves, numbers need theirs."""
    return text if value and isinstance(value, (str, list)) else f"{key.rpartition('.')[2]} {text}"


def _spelling(values: Sequence[Any]) -> Callable[[Any], str]:
    """How the values of one setting are written: lists of choices by their names, where those tell them apart."""

    def named(value: Any) -> str:
        choices = value if isinstance(value, list) else [value]
        if choices and all(isinstance(one, dict) and "type" in one for one in choices):
            return "+".join(str(one["type"]) for one in choices)
        return setting(value)

    return named if len({named(value) for value in values}) == len({canonical(value) for value in values}) else setting


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, everything else by its text."""
    return (not is_number(value), float(value) if is_number(value) else 0.0, setting(value))


def _flat(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings within settings, by the names of both: recipe.epochs. A choice without settings is its type."""
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, dict) and inner and "function" not in inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name.removesuffix(".type") if before else name, inner


def _measured(cell: dict[int, Pair]) -> dict[str, Found]:
    """What can be averaged."""
    outcomes = [result["outcome"] for _, (_, result) in sorted(cell.items())]
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome))
    found = {name: _averaged([outcome[name] for outcome in outcomes if name in outcome]) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _averaged(values: Sequence[Any]) -> Found | None:
    """A rate where all is yes or no, a mean where all is numbers.

    Lists of equal length are about the same cases: those are the independent units, and seeds repeat them.
    """
    values = [value for value in values if value is not None]
    lists = [value if isinstance(value, list) else [value] for value in values]
    if lists and all(one and all(isinstance(item, bool) for item in one) for one in lists):
        alike = len({len(one) for one in lists}) == 1
        return rate(list(zip(*lists, strict=True)) if alike and len(lists[0]) > 1 else lists)
    return mean([float(value) for value in values]) if values and all(map(is_number, values)) else None
