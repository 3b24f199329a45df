"""The table of a study: one row per cell, every rate with its interval and its controls. Built from plain JSON."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mithridate.experiments import cells as grid, words
from mithridate.experiments.cells import Cell, Pair
from mithridate.experiments.columns import RIGHT, WHOLE, entries, plain, record, share, side_by_side, spreadsheet
from mithridate.experiments.compare import Comparisons, Versus as Versus, against, compared, success_of
from mithridate.experiments.doses import DoseResponse, dose_responses
from mithridate.experiments.labels import Labels
from mithridate.experiments.proofs import Certificate as Certificate, Detection as Detection, certificate, detection
from mithridate.experiments.statistics import Mean, Rate, mean
from mithridate.experiments.threats import Budget

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Row:
    """One cell of the study: everything but the seed equal."""

    attack: str
    """Name, with the settings that tell it from other cells of the same attack."""
    defense: str
    """Names joined by " + ", or "none"."""
    scenario: str
    access: str
    """White box, grey box or black box; nothing for a control, which uses none of the attacker's means."""
    model: str
    surrogate: str
    """The architecture that the attacker trains: the victim's own unless the study says otherwise."""
    data: str
    adaptive: bool
    control: bool
    goal: str
    """What the attacker wants, and so what outcomes are: of chosen targets (misclassify), of triggered test images
    (backdoor), or of test images (availability)."""
    cell: Cell = dataclasses.field(repr=False)
    budget: Budget
    trials: int
    """Independent units: drawn cases."""
    victims: int
    """Trained models."""
    success: Rate
    eligible: Rate | None
    """Success over the targets that most clean victims classify rightly."""
    margin: Mean
    """Logit of the intended class minus the best other, over trials."""
    versus: Comparisons
    accuracy: Mean
    highest: Mean
    """The highest clean test accuracy of any epoch, where epochs were watched."""
    right: Mean
    """Of a backdoor: accuracy of triggered test images to their true label."""
    cost: Mean | None
    """Accuracy lost against the clean, undefended victims; a share, positive = lost."""
    abstained: float
    detection: Detection | None
    """What was left out of training; None where nothing ever is."""
    certificate: Certificate | None
    guarantees: tuple[dict[str, Any], ...]
    """What the whole training procedure proves."""
    notes: dict[str, Mean]
    seconds: dict[str, float]
    """Wall time by phase, summed over trials."""
    warnings: tuple[str, ...]

    @property
    def triggered(self) -> bool:
        """A backdoor: outcomes are triggered test images."""
        return self.goal == "backdoor"

    @property
    def against(self) -> Versus | None:
        """The strictest control there is: random noise, else no attack."""
        return against(self.versus)

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

    def adaptive_of(self, row: Row) -> Row | None:
        """The row of the attacker who knows the defence and differs in nothing else; None where that was not run.

        None too for rows that are no static attack on a defence.
        """
        found = grid.adaptive_of(row.cell, [other.cell for other in self.rows])
        return next((other for other in self.rows if other.cell is found), None)

    def verdict(self) -> list[str]:
        """One sentence per attack cell: what it did, what its control did, and whether that is shown to be more."""
        return [words.verdict(row, self.rows) for row in self.rows if not row.control]

    def doses(self) -> list[DoseResponse]:
        """How much poison each attack takes, where it was run at three doses or more."""
        return dose_responses(self.rows)

    def defenses(self) -> list[str]:
        """One line per defence: whether it helps against each attack, and what it costs."""
        return words.defense_lines(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: rows with all their numbers, and the sentences."""
        rows = [plain(row) | {"adaptive_success": plain(share(self.adaptive_of(row)))} for row in self.rows]
        doses = [found.to_json() for found in self.doses()]
        return {"rows": rows, "doses": doses, "verdict": self.verdict(), "defenses": self.defenses()}

    def records(self) -> list[dict[str, Any]]:
        """The columns of a spreadsheet, row by row. Shares and p-values are plain numbers; None = not measured."""
        return [record(row, self.adaptive_of(row)) for row in self.rows]

    def to_csv(self) -> str:
        """One line per row, for a spreadsheet. Shares and p-values are plain numbers; empty = not measured."""
        return spreadsheet(self.records())

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        print_table(self, Console(file=out, width=140, force_terminal=False, color_system=None))
        return out.getvalue().rstrip("\n")


def table(pairs: Iterable[Pair]) -> Table:
    """Build the table of some finished trials.

    Args:
        pairs: (trial.json, result.json) of each, read; trials without a result are left out by the caller.

    >>> import tempfile
    >>> from mithridate import Digits, NoAttack, Recipe, ThreatModel, Trial, run_study
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(epochs=1)
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = table(run_study([control], folder, progress=False))
    >>> [(row.attack, row.defense, row.trials) for row in made.rows]
    [('no-attack', 'none', 1)]
    """
    made = grid.cells(pairs)
    labels = Labels.of([cell.setting for cell in made])
    return Table(tuple(_row(cell, made, labels, versus) for cell, versus in zip(made, compared(made), strict=True)))


def _row(cell: Cell, others: Sequence[Cell], labels: Labels, versus: Comparisons) -> Row:
    unattacked = grid.clean(cell, others)
    right = grid.eligible(cell, unattacked)
    success, margins = cell.outcomes("success"), cell.outcomes("margin")
    return Row(
        attack=labels.attack(cell.setting),
        defense=labels.defense(cell.setting),
        scenario=cell.scenario,
        access=cell.access,
        model=labels.model(cell.setting),
        surrogate=labels.surrogate(cell.setting),
        data=labels.data(cell.setting),
        adaptive=bool(cell.setting.get("adaptive")),
        control=cell.control,
        goal=cell.goal,
        cell=cell,
        budget=Budget.of(cell.setting, cell.results),
        trials=sum(bool(values) for values in success.values()),
        victims=sum(len(result["outcome"].get("success") or ()) for result in cell.results),
        success=_success(cell),
        eligible=None if right is None else success_of(cell, right),
        margin=mean([fmean(values) for values in margins.values() if values]),
        versus=versus,
        accuracy=mean(cell.accuracies()),
        highest=mean(cell.highest()),
        right=mean(cell.right()),
        cost=grid.cost(cell, unattacked),
        abstained=_share([value for values in cell.outcomes("abstained").values() for value in values]),
        detection=detection(cell),
        certificate=certificate(cell),
        guarantees=tuple(next((result.get("guarantees") or () for result in cell.results), ())),
        notes=cell.notes(),
        seconds=_seconds(cell),
        warnings=tuple(sorted({text for result in cell.results for text in result.get("warnings") or ()})),
    )


def _success(cell: Cell) -> Rate:
    """Success with its interval; where test images should come out wrong, over models: these are what was drawn."""
    found = success_of(cell)
    if cell.goal != "availability":
        return found
    spread = mean(cell.wrong())
    low, high = (0.0 if spread.low is None else spread.low), (1.0 if spread.high is None else spread.high)
    return dataclasses.replace(found, n_eff=float(spread.n), low=max(0.0, low), high=min(1.0, high))


def _seconds(cell: Cell) -> dict[str, float]:
    total: dict[str, float] = {}
    for result in cell.results:
        for phase, seconds in (result.get("seconds") or {}).items():
            total[phase] = total.get(phase, 0.0) + (seconds or 0.0)
    return total


def _share(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


# --- out -------------------------------------------------------------------------------------------------------------


def print_table(table: Table, console: Console) -> None:
    """Print one grid per scene, then the sentences. Columns with nothing in them are left out.

    Where a scene has adaptive attackers, their success stands beside that of the static ones.
    """
    from rich.table import Table as Grid
    from rich.text import Text

    if not table.rows:
        console.print("no finished trials")
        return
    for scene in words.scenes(table.rows):
        lines = side_by_side(scene.rows, table.adaptive_of)
        shown = entries(lines)
        drawn = Grid(box=None, padding=(0, 2, 0, 0))
        for name in shown:
            drawn.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold", no_wrap=name in WHOLE)
        for line, texts in zip(lines, zip(*shown.values(), strict=True), strict=True):
            drawn.add_row(*(Text(words.tied(text)) for text in texts), style="dim" if line.row.control else "")
        console.print(Text(scene.title, style="bold"))
        console.print(drawn)
        console.print()
    halves = [sentence for found in table.doses() for sentence in found.sentences()]
    for sentence in (*halves, *table.verdict(), *table.defenses()):
        console.print(Text(f"* {sentence}"))
