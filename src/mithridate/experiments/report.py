"""The report: one HTML file that says what was shown, with everything needed to doubt it. It opens offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mithridate.experiments import certified, dose_pictures, epochs, headline, pages, pictures, words
from mithridate.experiments.cautions import cautions
from mithridate.experiments.cells import Pair
from mithridate.experiments.drilldown import Thumbnails, drilldown
from mithridate.experiments.exhibits import exhibits
from mithridate.experiments.heatmaps import anchors, heatmaps, transfer_grids
from mithridate.experiments.power import what_n_shows
from mithridate.experiments.rates import rate
from mithridate.experiments.reading import gather
from mithridate.experiments.table import Row, Table, table

SPELT_OUT = 6
"""Up to this many verdicts are read one by one; of more, each attack is summed up first."""
LONGEST_PLOT = 12
"""A plot with more lines than this is folded away: the heat map says the same in less room."""
PARTS = ("data", "threat model", "attack", "defence", "victim", "features trained by", "surrogate")
"""What has settings, in the order in which a report lists them."""


@dataclass
class Collected:
    """What a study folder holds."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Trials that failed, did not finish or cannot be read: one line each."""
    study: dict[str, Any] = field(default_factory=dict)
    table: Table = field(default_factory=lambda: Table(()))


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a study folder, finished or not.

    Trials that failed, are missing or cannot be read are listed in it; they never stop it.

    Args:
        folder: Results folder of a study.
        out: The HTML file; by default `report.html` in the folder.

    Returns:
        Where the report is.

    Raises:
        ValueError: `folder` is not a results folder.

    >>> import tempfile
    >>> from mithridate import Digits, NoAttack, Recipe, ThreatModel, Trial, run_study
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(epochs=1)
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = run_study([control], folder, progress=False)
    ...     write_report(folder).name
    'report.html'
    """
    folder = Path(folder)
    path = folder / "report.html" if out is None else Path(out)
    return pages.write(render(collect(folder), folder), path)


def collect(folder: Path) -> Collected:
    """Read all trials of a study folder.

    Raises:
        ValueError: There are no trials in it.
    """
    found = gather(folder, table, _stranger)
    return Collected(found.pairs, found.problems, found.study, found.made)


def _stranger(pair: Pair) -> str | None:
    return (
        None if "threat" in pair[0] or "client" not in pair[0] else "a gradient-inversion trial: it has its own report"
    )


# --- the page --------------------------------------------------------------------------------------------------------


def render(collected: Collected, folder: Path) -> str:
    """The page as text."""
    rows = collected.table.rows
    attacks, doses = [row for row in rows if not row.control], collected.table.doses()
    thumbnails, named = Thumbnails(folder), anchors(rows)
    return (
        pages.environment()
        .get_template("report.html.j2")
        .render(
            amplified=pictures.AMPLIFIED,
            title=headline.title(rows),
            headline=headline.headline(attacks, doses),
            briefs=headline.briefs(rows) if len(attacks) > SPELT_OUT else [],
            standings=headline.STANDINGS,
            verdicts=[(words.standing(row), words.verdict(row, rows)) for row in attacks],
            defenses=collected.table.defenses(),
            maps=heatmaps(rows),
            shares_of=words.all_subjects(attacks),
            grids=transfer_grids(rows),
            scenes=[(scene, _columns(scene.rows)) for scene in words.scenes(rows)],
            forest=pictures.forest(rows, "forest"),
            long_forest=len(attacks) > LONGEST_PLOT,
            costs=pictures.costs(rows, "costs"),
            certified=(curves := certified.curves(rows)),
            certified_pictures=certified.pictures(curves, "certified"),
            guarantees=certified.guarantees(rows),
            epochs=epochs.pictures(rows, "epochs"),
            doses=dose_pictures.pictures(doses, "doses"),
            exhibits=exhibits(attacks, folder),
            drills=drilldown(rows, thumbnails),
            thumbnails=thumbnails.symbols(),
            anchor=lambda row: named[id(row)],
            cautions=pages.grouped(cautions(rows)),
            problems=Counter(collected.problems),
            methods=pages.methods(_parts(collected.pairs), PARTS),
            machine=pages.machine(collected.pairs),
            example=rate([[1]] * 3 + [[0]] * 17),
            power=_power(attacks),
            comparisons=max((row.against.comparisons for row in attacks if row.against), default=0),
            command=collected.study.get("command"),
            triggered=any(row.right.n for row in rows),
            finished=len(collected.pairs),
        )
    )


def _power(attacks: Sequence[Row]) -> list[str]:
    """What the numbers of cases in this study can show."""
    if most := max((row.cell.planned or 0 for row in attacks), default=0):
        sentence = (
            f"Comparisons were stopped once they were decided, after {most} cases at the latest. Their p-values "
            "(a mixture martingale, and the exact test of all cases with the rest of the level) and the intervals of "
            "rates hold at whatever case one stops; they are wider than those of a study of fixed size. Margins are "
            "not tested."
        )
        return [sentence]
    numbers = sorted(
        {(row.against.paired.pairs, row.against.comparisons) for row in attacks if row.against and row.against.exact}
    )
    return [what_n_shows(pairs, comparisons=comparisons) for pairs, comparisons in numbers]


def _columns(rows: Sequence[Row]) -> dict[str, bool]:
    """Which of the optional columns have anything in them."""
    return {
        "eligible": any(row.eligible for row in rows),
        "noise": any("random-noise" in row.versus for row in rows),
        "nothing": any("no-attack" in row.versus for row in rows),
        "proof": any(row.certificate or row.detection for row in rows),
        "abstained": any(row.abstained for row in rows),
    }


def _parts(pairs: Sequence[Pair]) -> list[pages.Part]:
    """Every choice of every trial: (what it is, settings)."""
    found: list[pages.Part] = []
    for trial, _ in pairs:
        found += [("data", trial["data"]), ("attack", trial["attack"]), ("victim", trial.get("learner"))]
        found += [("features trained by", trial.get("pretrain")), ("surrogate", trial.get("surrogate"))]
        found += [("defence", defense) for defense in trial.get("defenses") or ()]
        found += [("threat model", trial["threat"])]
    return found
