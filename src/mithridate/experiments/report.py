"""The report: one HTML file that says what was shown, with everything needed to doubt it. It opens offline."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mithridate.experiments import headline, pictures, words
from mithridate.experiments.cautions import Caution, Kind, cautions
from mithridate.experiments.cells import Pair, canonical
from mithridate.experiments.drilldown import Thumbnails, drilldown
from mithridate.experiments.exhibits import exhibits
from mithridate.experiments.heatmaps import anchors, heatmaps, transfer_grids
from mithridate.experiments.power import what_n_shows
from mithridate.experiments.rates import rate
from mithridate.experiments.table import Row, Table, table

SCHEMA = 1
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a damaged file can raise."""
SPELT_OUT = 6
"""Up to this many verdicts are read one by one; of more, each attack is summed up first."""
LONGEST_PLOT = 12
"""A plot with more lines than this is folded away: the heat map says the same in less room."""


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
    """
    folder = Path(folder)
    collected = collect(folder)
    path = folder / "report.html" if out is None else Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    draft.write_text(render(collected, folder), encoding="utf-8")
    draft.replace(path)
    return path


def collect(folder: Path) -> Collected:
    """Read all trials of a study folder.

    Raises:
        ValueError: There are no trials in it.
    """
    trials = sorted(path for path in folder.glob("trials/*") if path.is_dir())
    if not trials:
        raise ValueError(f"{folder} has no trials/ folder with trials in it; expected the results folder of a study")
    found = Collected()
    read = [_read_trial(path) for path in trials]
    try:
        found.table = table(pair for pair, _, _ in read if pair)
    except DAMAGED:  # one of them at least; look at each alone
        read = [_checked(*trial) for trial in read]
        found.table = table(pair for pair, _, _ in read if pair)
    found.pairs = [pair for pair, _, _ in read if pair]
    found.problems = [problem for _, problem, _ in read if problem]
    try:
        found.study = dict(json.loads((folder / "study.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        found.problems.append(f"study.json cannot be read ({type(error).__name__}); the command is not known")
    return found


class Read(NamedTuple):
    """One trial's folder: what is in it, or a line that says why it cannot be used."""

    pair: Pair | None
    problem: str | None
    name: str


def _read_trial(path: Path) -> Read:
    try:
        trial = json.loads((path / "trial.json").read_text(encoding="utf-8"))
        name = f"{trial['attack']['type']}, seed {trial.get('seed', 0)} ({path.name})"
    except DAMAGED as error:
        return Read(None, f"{path.name}: its settings cannot be read ({type(error).__name__})", path.name)
    if not (path / "result.json").exists():
        return Read(None, f"{name}: {_failure(path)}", name)
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        if result.get("schema") != SCHEMA:
            return Read(
                None, f"{name}: its result has schema {result.get('schema')!r}, this version reads {SCHEMA}", name
            )
    except DAMAGED as error:
        return Read(None, f"{name}: its result cannot be read ({type(error).__name__}: {error})", name)
    return Read((trial, result), None, name)


def _checked(pair: Pair | None, problem: str | None, name: str) -> Read:
    """The trial, if a table can be made of it alone."""
    try:
        table([pair] if pair else [])
    except DAMAGED as error:
        return Read(None, f"{name}: its result cannot be read ({type(error).__name__}: {error})", name)
    return Read(pair, problem, name)


def _failure(path: Path) -> str:
    try:
        error = json.loads((path / "error.json").read_text(encoding="utf-8"))
        kind = error.get("type") or error.get("error") or "error"
        return f"failed with {kind}: {error.get('message', 'no message')}"
    except FileNotFoundError:
        return "not finished"
    except (OSError, ValueError, AttributeError):
        return "failed; its error.json cannot be read"


# --- the page --------------------------------------------------------------------------------------------------------


def render(collected: Collected, folder: Path) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("mithridate.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = words.tied
    environment.filters["coded"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    environment.globals |= {name: getattr(words, name) for name in ("counted", "p_texts", "signed", "span", "setting")}
    environment.globals |= {"percent": words.percent, "amplified": pictures.AMPLIFIED, "counts": _counts}
    rows = collected.table.rows
    attacks = [row for row in rows if not row.control]
    thumbnails, named = Thumbnails(folder), anchors(rows)
    return environment.get_template("report.html.j2").render(
        title=headline.title(rows),
        headline=headline.headline(attacks),
        briefs=headline.briefs(rows) if len(attacks) > SPELT_OUT else [],
        standings=headline.STANDINGS,
        verdicts=[(words.standing(row), words.verdict(row, rows)) for row in attacks],
        defenses=collected.table.defenses(),
        maps=heatmaps(rows),
        grids=transfer_grids(rows),
        scenes=[(scene, _columns(scene.rows)) for scene in words.scenes(rows)],
        forest=pictures.forest(rows, "forest"),
        long_forest=len(attacks) > LONGEST_PLOT,
        costs=pictures.costs(rows, "costs"),
        exhibits=exhibits(attacks, folder),
        drills=drilldown(rows, thumbnails),
        thumbnails=thumbnails.symbols(),
        anchor=lambda row: named[id(row)],
        cautions=_grouped(cautions(rows)),
        problems=Counter(collected.problems),
        methods=_methods(collected.pairs),
        machine=_machine(collected.pairs),
        example=rate([[1]] * 3 + [[0]] * 17),
        power=_power(attacks),
        comparisons=max((row.against.comparisons for row in attacks if row.against), default=0),
        command=collected.study.get("command"),
        finished=len(collected.pairs),
    )


def _counts(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _grouped(found: Sequence[Caution]) -> list[tuple[Kind, list[str]]]:
    """Cautions by kind, each kind explained once."""
    groups: dict[str, tuple[Kind, list[str]]] = {}
    for text, kind in found:
        groups.setdefault(kind.name, (kind, []))[1].append(text)
    return list(groups.values())


def _power(attacks: Sequence[Row]) -> list[str]:
    """What the numbers of cases in this study can show."""
    numbers = sorted({(row.against.paired.pairs, row.against.comparisons) for row in attacks if row.against})
    return [what_n_shows(pairs, comparisons=comparisons) for pairs, comparisons in numbers]


def _columns(rows: Sequence[Row]) -> dict[str, bool]:
    """Which of the optional columns have anything in them."""
    return {
        "eligible": any(row.eligible for row in rows),
        "noise": any("random-noise" in row.versus for row in rows),
        "nothing": any("no-attack" in row.versus for row in rows),
        "proof": any(row.certificate or (row.recall is not None and not row.control) for row in rows),
        "abstained": any(row.abstained for row in rows),
    }


def _methods(pairs: Sequence[Pair]) -> list[tuple[str, dict[str, Any]]]:
    """Every choice with all its settings, each once: (what it is, settings)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for trial, _ in pairs:
        parts = [("data", trial["data"]), ("attack", trial["attack"]), ("victim", trial.get("learner"))]
        parts += [("features trained by", trial.get("pretrain")), ("surrogate", trial.get("surrogate"))]
        parts += [("defence", defense) for defense in trial.get("defenses") or ()]
        parts += [("threat model", trial["threat"])]
        for what, choice in parts:
            if choice:
                found.setdefault(what + canonical(choice), (what, choice))
    order = ("data", "threat model", "attack", "defence", "victim", "features trained by", "surrogate")
    return sorted(found.values(), key=lambda item: (order.index(item[0]), str(item[1].get("type")), canonical(item[1])))


def _machine(pairs: Sequence[Pair]) -> dict[str, str]:
    """Versions, hardware and time; several values where trials ran on different machines."""
    found: dict[str, list[str]] = {}
    for _, result in pairs:
        facts = dict(result.get("environment") or {}) | {"torch threads": result.get("threads")}
        for name, value in facts.items():
            if value is not None and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    made = {name: ", ".join(values) for name, values in found.items() if values}
    seconds: Counter[str] = Counter()
    for _, result in pairs:
        seconds.update({phase: value or 0.0 for phase, value in (result.get("seconds") or {}).items()})
    if seconds:
        phases = ", ".join(f"{phase} {_duration(value)}" for phase, value in seconds.items() if value)
        made["time"] = f"{_duration(sum(seconds.values()))} in all ({phases})"
    peaks = [result["peak_memory_mb"] for _, result in pairs if result.get("peak_memory_mb")]
    return made | ({"peak memory": f"{max(peaks):,.0f} MB"} if peaks else {})


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
