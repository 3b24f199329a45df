"""The report of a study of gradient inversion: how much leaks, to whom, and what keeps it in. It opens offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mithridate.experiments import leak_words as words, pages
from mithridate.experiments.cells import Pair
from mithridate.experiments.certified import guarantees
from mithridate.experiments.leak_cautions import leak_cautions
from mithridate.experiments.leak_cells import is_leak
from mithridate.experiments.leak_curves import batch_curves, strength_curves
from mithridate.experiments.leak_grids import SHOWN, sheets
from mithridate.experiments.leak_maps import leak_maps
from mithridate.experiments.leak_table import LeakRow, LeakTable, leak_table
from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.reading import Gathered, gather

SPELT_OUT = 6
"""Up to this many verdicts are read one by one; of more, each attack is summed up first."""
OPEN_SHEETS = 2
"""Sheets of images that are open; more are folded."""
PARTS = ("data", "model", "attack", "client", "defence")
"""What has settings, in the order in which a report lists them."""


def write_leak_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a study of gradient inversion, finished or not.

    Trials that failed, are missing or cannot be read are listed in it; they never stop it.

    Args:
        folder: Results folder of the study.
        out: The HTML file; by default `report.html` in the folder.

    Returns:
        Where the report is.

    Raises:
        ValueError: `folder` is not a results folder.
    """
    folder = Path(folder)
    path = folder / "report.html" if out is None else Path(out)
    return pages.write(render_leaks(collect_leaks(folder), folder), path)


def collect_leaks(folder: Path) -> Gathered[LeakTable]:
    """Read all trials of a results folder.

    Raises:
        ValueError: There are no trials in it.
    """
    return gather(folder, leak_table, _stranger)


def _stranger(pair: Pair) -> str | None:
    return None if is_leak(pair[0]) else "a trial that is none of gradient inversion: it has its own report"


def render_leaks(collected: Gathered[LeakTable], folder: Path) -> str:
    """The page as text."""
    table = collected.made
    rows = table.rows
    comparisons = max((row.gain.comparisons for row in rows), default=0)
    shown, left_out = sheets(rows, folder)
    return (
        pages.environment()
        .get_template("leakage.html.j2")
        .render(
            title=words.title(rows),
            headline=words.headline(rows),
            briefs=words.briefs(rows) if len(rows) > SPELT_OUT else [],
            standings=words.STANDINGS,
            verdicts=[(words.standing(row), words.verdict(row, rows)) for row in rows],
            defenses=table.defenses(),
            sheets=shown,
            open_sheets=OPEN_SHEETS,
            left_out=left_out,
            pairs_shown=SHOWN,
            curves=[
                ("Against the batch size", batch_curves(rows)),
                ("Against the defence's strength", strength_curves(rows)),
            ],
            maps=leak_maps(rows),
            scenes=[(scene, _columns(scene.rows)) for scene in words.scenes(rows)],
            protection=words.protection,
            turned=words.turned,
            epsilon=words.epsilon,
            batches=words.batches,
            standing=words.standing,
            cautions=pages.grouped(leak_cautions(rows)),
            guarantees=guarantees(rows),
            candidates=min((row.candidates for row in rows), default=0),
            comparisons=comparisons,
            fewest=fewest_pairs(comparisons),
            problems=Counter(collected.problems),
            methods=pages.methods(_parts(collected.pairs), PARTS),
            machine=pages.machine(collected.pairs),
            command=collected.study.get("command"),
            finished=len(collected.pairs),
        )
    )


def _columns(rows: Sequence[LeakRow]) -> dict[str, bool]:
    """Which of the optional columns have anything in them."""
    return {
        "loss": any(row.loss for row in rows),
        "labels": any(row.label_accuracy.n for row in rows),
        "features": any(row.feature_distance for row in rows),
    }


def _parts(pairs: Sequence[Pair]) -> list[pages.Part]:
    """Every choice of every trial: (what it is, settings)."""
    found: list[pages.Part] = []
    for trial, _ in pairs:
        client = {"type": words.batches(int(trial["client"]["batch"]))} | trial["client"]
        found += [("data", trial["data"]), ("model", trial["recipe"]), ("attack", trial["attack"]), ("client", client)]
        found += [("defence", defense) for defense in trial.get("defenses") or ()]
    return found
