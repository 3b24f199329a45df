"""The table of a study: one row per cell, every rate with its interval and its controls. Built from plain JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from mithridate.experiments import cells as grid, words
from mithridate.experiments.cells import Cell, Pair
from mithridate.experiments.labels import Labels
from mithridate.experiments.statistics import (
    Mean,
    PairedMargin,
    PairedSuccess,
    Rate,
    mean,
    paired_exact,
    paired_margin,
    percent,
    rate,
)

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Versus:
    """A cell compared with another, target by target."""

    name: str
    """random-noise, no-attack, or undefended."""
    success: Rate
    """Success of the other cell, on all its targets."""
    paired: PairedSuccess
    """Controls: does this cell succeed more often? undefended: does the defence make it succeed less often?"""
    worse: PairedSuccess
    """The same question the other way round."""
    margin: PairedMargin
    """Controls: margins here minus margins there. undefended: margins there minus margins here."""


@dataclass(frozen=True)
class Certificate:
    """Certified radius of the answers on targets. A replaced row is one deletion and one insertion."""

    median: float
    """Insertions plus deletions that provably leave the answer as it is."""
    share: float
    """Share of targets certified against one replaced image at least."""
    covers: float | None
    """Share of targets certified against as many replaced images as this poison has; None without poison."""


@dataclass(frozen=True)
class Row:
    """One cell of the study: everything but the seed equal."""

    attack: str
    """Name, with the settings that tell it from other cells of the same attack."""
    defense: str
    """Names joined by " + ", or "none"."""
    scenario: str
    model: str
    data: str
    adaptive: bool
    control: bool
    triggered: bool
    """A backdoor: outcomes are triggered test images."""
    cell: Cell = dataclasses.field(repr=False)
    budget: words.Budget
    trials: int
    """Independent units: drawn cases."""
    victims: int
    """Trained models."""
    success: Rate
    eligible: Rate | None
    """Success over the targets that most clean victims classify rightly."""
    margin: Mean
    """Logit of the intended class minus the best other, over trials."""
    versus: dict[str, Versus]
    accuracy: Mean
    cost: Mean | None
    """Accuracy lost against the clean, undefended victims; a share, positive = lost."""
    abstained: float
    removed: float | None
    """Training rows that a filter dropped, per victim."""
    recall: float | None
    """Share of the poisons among them."""
    certificate: Certificate | None
    notes: dict[str, Mean]
    seconds: dict[str, float]
    """Wall time by phase, summed over trials."""
    warnings: tuple[str, ...]

    @property
    def against(self) -> Versus | None:
        """The strictest control there is: random noise, else no attack."""
        return next((self.versus[name] for name in grid.CONTROLS if name in self.versus), None)

    @property
    def settings(self) -> dict[str, Any]:
        """The trial's settings."""
        return self.cell.setting


@dataclass(frozen=True)
class Table:
    """Rows of a study, most of what a report says.

    >>> print(Table(()))
    no finished trials
    """

    rows: tuple[Row, ...]

    def verdict(self) -> list[str]:
        """One sentence per attack cell: what it did, what its control did, and whether that is shown to be more."""
        return [words.verdict(row, self.rows) for row in self.rows if not row.control]

    def defenses(self) -> list[str]:
        """One line per defence: whether it helps against each attack, and what it costs."""
        return words.defense_lines(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: rows with all their numbers, and the sentences."""
        return {"rows": [_plain(row) for row in self.rows], "verdict": self.verdict(), "defenses": self.defenses()}

    def to_csv(self) -> str:
        """One line per row, for a spreadsheet. Shares and p-values are plain numbers; empty = not measured."""
        lines = [_flat(row) for row in self.rows]
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue()

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        print_table(self, Console(file=out, width=140, force_terminal=False, color_system=None))
        return out.getvalue().rstrip("\n")


def table(pairs: Iterable[Pair]) -> Table:
    """Build the table of some finished trials.

    Args:
        pairs: (trial.json, result.json) of each, read; trials without a result are left out by the caller.
    """
    made = grid.cells(pairs)
    labels = Labels.of([cell.setting for cell in made])
    return Table(tuple(_row(cell, made, labels) for cell in made))


def _row(cell: Cell, others: Sequence[Cell], labels: Labels) -> Row:
    unattacked = grid.clean(cell, others)
    right = grid.eligible(cell, unattacked)
    success, margins = cell.outcomes("success"), cell.outcomes("margin")
    return Row(
        attack=labels.attack(cell.setting),
        defense=labels.defense(cell.setting),
        scenario=cell.scenario,
        model=labels.model(cell.setting),
        data=labels.data(cell.setting),
        adaptive=bool(cell.setting.get("adaptive")),
        control=cell.control,
        triggered=cell.triggered,
        cell=cell,
        budget=words.Budget.of(cell.setting, cell.results),
        trials=sum(bool(values) for values in success.values()),
        victims=sum(len(result["outcome"].get("success") or ()) for result in cell.results),
        success=rate(list(success.values())),
        eligible=None if right is None else rate(list(cell.outcomes("success", right).values())),
        margin=mean([fmean(values) for values in margins.values() if values]),
        versus=_comparisons(cell, others),
        accuracy=mean(cell.accuracies()),
        cost=grid.cost(cell, unattacked),
        abstained=_share([value for values in cell.outcomes("abstained").values() for value in values]),
        certificate=_certificate(cell),
        notes=cell.notes(),
        seconds=_seconds(cell),
        warnings=tuple(sorted({text for result in cell.results for text in result.get("warnings") or ()})),
        **_removed(cell),
    )


def _comparisons(cell: Cell, others: Sequence[Cell]) -> dict[str, Versus]:
    found = {}
    if not cell.control:
        controls = {name: grid.control_of(cell, others, name) for name in grid.CONTROLS}
        found = {name: _versus(name, cell, other, cell, other) for name, other in controls.items() if other}
    bare = grid.undefended(cell, others)
    if bare:
        found["undefended"] = _versus("undefended", cell, bare, bare, cell)
    return {name: versus for name, versus in found.items() if versus.paired.pairs}


def _versus(name: str, cell: Cell, other: Cell, more: Cell, less: Cell) -> Versus:
    """Compare `cell` with `other`; `more` is the one of the two that is expected to succeed more often."""
    seeds = list(grid.paired(cell, other))
    first, second = ([arm.outcomes("success")[seed] for seed in seeds] for arm in (more, less))
    high, low = more.outcomes("margin"), less.outcomes("margin")
    both = [seed for seed in seeds if high[seed] and low[seed]]
    return Versus(
        name,
        rate(list(other.outcomes("success").values())),
        paired_exact(first, second),
        paired_exact(second, first),
        paired_margin([fmean(high[seed]) for seed in both], [fmean(low[seed]) for seed in both]),
    )


def _removed(cell: Cell) -> dict[str, float | None]:
    removed, caught, present = [], 0.0, 0.0
    for result in cell.results:
        defense = result.get("defense") or {}
        removed += defense.get("removed") or []
        hits = defense.get("removed_poisons") or []
        caught += sum(hits)
        present += len(hits) * ((result.get("poison") or {}).get("count") or 0)
    return {"removed": fmean(removed) if removed else None, "recall": caught / present if present else None}


def _certificate(cell: Cell) -> Certificate | None:
    radii = cell.outcomes("radius")
    values = [value for found in radii.values() for value in found]
    if not values:
        return None
    counts = {seed: (result.get("poison") or {}).get("count") or 0 for seed, (_, result) in cell.trials.items()}
    covers = [value // 2 >= counts[seed] for seed, found in radii.items() for value in found if counts[seed]]
    share = fmean(value >= 2 for value in values)
    return Certificate(float(median(values)), share, fmean(covers) if covers else None)


def _seconds(cell: Cell) -> dict[str, float]:
    total: dict[str, float] = {}
    for result in cell.results:
        for phase, seconds in (result.get("seconds") or {}).items():
            total[phase] = total.get(phase, 0.0) + (seconds or 0.0)
    return total


def _share(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


# --- out -------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """JSON values; a number that is not one (NaN) becomes null, and a row's cell its settings and seeds."""
    if isinstance(value, Cell):
        return {"settings": value.setting, "seeds": list(value.trials)}
    if isinstance(value, Rate):
        return {"share": _plain(value.share)} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        name: getattr(row, name) for name in ("scenario", "data", "model", "attack", "defense", "adaptive", "control")
    }
    line |= {"budget": row.budget.limit, "poisons": row.budget.count, "bound": row.budget.bound}
    line |= {"trials": row.trials, "victims": row.victims, "successes": row.success.successes, "n": row.success.n}
    line |= {"success": row.success.share, "low": row.success.low, "high": row.success.high, "n_eff": row.success.n_eff}
    line |= {"eligible_success": row.eligible.share if row.eligible else None, "margin": row.margin.value}
    for name in (*grid.CONTROLS, "undefended"):
        other = row.versus.get(name)
        line[f"{name} success"] = other.success.share if other else None
        line[f"{name} p"] = other.paired.p if other else None
        line[f"{name} margin difference"] = other.margin.difference.value if other else None
        line[f"{name} margin p"] = other.margin.p if other else None
    line |= {"accuracy": row.accuracy.value, "cost": row.cost.value if row.cost else None}
    line |= {"removed": row.removed, "recall": row.recall}
    line |= {"median_radius": row.certificate.median if row.certificate else None}
    line |= {"seconds": sum(row.seconds.values()), "warnings": "; ".join(row.warnings)}
    return {key: "" if (plain := _plain(value)) is None else plain for key, value in line.items()}


def _accuracy(row: Row) -> str:
    loss = f" ({words.signed(-100 * row.cost.value)})" if row.cost else ""
    return f"{100 * row.accuracy.value:.1f} %{loss}" if row.accuracy.n else ""


def _margin(row: Row) -> str:
    margin = row.against.margin if row.against else None
    return f"{words.signed(margin.difference.value, 2)} ({words.p_text(margin.p)})" if margin else ""


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "attack": lambda row: row.attack + (" (adaptive)" if row.adaptive else ""),
    "defence": lambda row: row.defense.replace(" + ", " +\n"),
    "success (95 %)": lambda row: (
        f"{percent(row.success.share)} % ({words.span(row.success)})" if row.success.n else ""
    ),
    "of": lambda row: words.counted(row.success),
    "control": lambda row: words.counted(row.against.success) if row.against else "",
    "p": lambda row: words.p_text(row.against.paired.p).removeprefix("p ").removeprefix("= ") if row.against else "",
    "margin vs control": _margin,
    "accuracy (points)": _accuracy,
    "found": lambda row: f"{percent(row.recall)} %" if row.recall is not None and not row.control else "",
    "radius": lambda row: f"{row.certificate.median:g}" if row.certificate else "",
}


_RIGHT = ("of", "control", "radius")


def print_table(table: Table, console: Console) -> None:
    """Print one grid per threat model, then the sentences. Columns with nothing in them are left out."""
    from rich.table import Table as Grid
    from rich.text import Text

    if not table.rows:
        console.print("no finished trials")
        return
    for scene in words.scenes(table.rows):
        entries = {name: [entry(row) for row in scene.rows] for name, entry in _COLUMNS.items()}
        shown = {name: column for name, column in entries.items() if any(column)}
        drawn = Grid(box=None, padding=(0, 2, 0, 0))
        for name in shown:
            drawn.add_column(
                name, justify="right" if name in _RIGHT else "left", overflow="fold", no_wrap=name == "defence"
            )
        for row, line in zip(scene.rows, zip(*shown.values(), strict=True), strict=True):
            drawn.add_row(*(Text(words.tied(entry)) for entry in line), style="dim" if row.control else "")
        console.print(Text(scene.title, style="bold"))
        console.print(drawn)
        console.print()
    for line in (*table.verdict(), *table.defenses()):
        console.print(Text(f"* {line}"))
