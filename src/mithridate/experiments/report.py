"""The report: one HTML file that says what was shown, with everything needed to doubt it. It opens offline."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mithridate.experiments import pictures, words
from mithridate.experiments.cautions import cautions
from mithridate.experiments.cells import Pair, canonical
from mithridate.experiments.power import what_n_shows
from mithridate.experiments.table import Row, Table, table

SCHEMA = 1
SHOWN_POISONS = 8
"""Poisons shown per attack."""
SHOWN_TARGETS = 2


@dataclass
class Collected:
    """What a study folder holds."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Trials that failed, did not finish or cannot be read: one line each."""
    study: dict[str, Any] = field(default_factory=dict)


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
    draft.write_text(render(table(collected.pairs), collected, folder), encoding="utf-8")
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
    for path in trials:
        pair, problem = _read_trial(path)
        found.pairs += [pair] if pair else []
        found.problems += [problem] if problem else []
    try:
        found.study = dict(json.loads((folder / "study.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        found.problems.append(f"study.json cannot be read ({type(error).__name__}); the command is not known")
    return found


def _read_trial(path: Path) -> tuple[Pair | None, str | None]:
    """(trial, result) of one folder, or a line that says why not."""
    try:
        trial = json.loads((path / "trial.json").read_text(encoding="utf-8"))
        name = f"{trial['attack']['type']}, seed {trial.get('seed', 0)} ({path.name})"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{path.name}: its settings cannot be read ({type(error).__name__})"
    if not (path / "result.json").exists():
        return None, f"{name}: {_failure(path)}"
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        if result.get("schema") != SCHEMA:
            return None, f"{name}: its result has schema {result.get('schema')!r}, this version reads {SCHEMA}"
        table([(trial, result)])  # whatever is missing in it shows here, not half way through the report
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return None, f"{name}: its result cannot be read ({type(error).__name__}: {error})"
    return (trial, result), None


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


def render(made: Table, collected: Collected, folder: Path) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mithridate.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = words.tied
    environment.globals |= {name: getattr(words, name) for name in ("counted", "p_text", "signed", "span", "setting")}
    environment.globals |= {"percent": words.percent, "amplified": pictures.AMPLIFIED}
    rows, attacks = made.rows, [row for row in made.rows if not row.control]
    return environment.get_template("report.html.j2").render(
        title=_title(rows),
        headline=_headline(attacks),
        verdicts=[(words.standing(row), words.verdict(row, rows)) for row in attacks],
        defenses=made.defenses(),
        scenes=[(scene, _columns(scene.rows)) for scene in words.scenes(rows)],
        forest=pictures.forest(rows, "forest"),
        costs=pictures.costs(rows, "costs"),
        grids=grids(attacks, folder),
        cautions=cautions(rows),
        problems=Counter(collected.problems),
        methods=_methods(collected.pairs),
        machine=_machine(collected.pairs),
        power=[what_n_shows(n) for n in sorted({row.against.paired.pairs for row in attacks if row.against})],
        command=collected.study.get("command"),
        finished=len(collected.pairs),
    )


def _title(rows: Sequence[Row]) -> str:
    names = [sorted({getattr(row, name) for row in rows}) for name in ("model", "data")]
    return " on ".join(", ".join(name) for name in names) if rows else "no finished trials"


def _headline(attacks: Sequence[Row]) -> str:
    if not attacks:
        return "No attack has finished, so nothing is shown."
    shown, weak = (sum(words.standing(row) == word for row in attacks) for word in ("shown", "weak"))
    settings = "attack setting" if len(attacks) == 1 else "attack settings"
    verb = "is" if shown == 1 or len(attacks) == 1 else "are"
    more = f"; {weak} to beat no attack, where random noise was not run" if weak else ""
    return f"{shown} of {len(attacks)} {settings} {verb} shown to beat the control{more}."


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


# --- the poisons -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One poison: data URIs and how far it moved."""

    row: int
    poison: str
    clean: str | None
    difference: str | None
    moved: str


@dataclass(frozen=True)
class Grid:
    """Poisons of one attack, and the target beside."""

    title: str
    note: str
    target: str
    """What the targets are."""
    targets: list[str]
    items: list[Shown]


def grids(attacks: Sequence[Row], folder: Path) -> list[Grid]:
    """Pictures of each attack's poison: of its first case whose poison is stored, once per place and threat model."""
    found: dict[tuple[str, ...], Grid] = {}
    for row in attacks:
        defended = row.defense if row.adaptive else ""
        key = (words.where(row, attacks), row.attack, str(row.budget), defended)
        if key not in found:
            grid = next(filter(None, (_grid(row, pair, folder, attacks) for pair in row.cell.trials.values())), None)
            found |= {key: grid} if grid else {}
    return list(found.values())


def _grid(row: Row, pair: Pair, folder: Path, attacks: Sequence[Row]) -> Grid | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    poison = pair[1].get("poison") or {}
    try:
        tensors = load_file(folder / "poisons" / str(poison.get("id")) / "poison.safetensors")
        rows, images = tensors["rows"], tensors["images"]
    except (OSError, KeyError, SafetensorError):
        return None
    count = len(rows)
    if not count:
        return None
    base, case = tensors.get("base"), pair[1].get("case") or {}
    picks = np.unique(np.linspace(0, count - 1, min(SHOWN_POISONS, count)).round().astype(int))
    items = [_shown(int(rows[i]), images[i], None if base is None else base[i]) for i in picks]
    place = words.where(row, attacks)
    relabelled = f" ({poison['relabelled']:,} of them relabelled)" if poison.get("relabelled") else ""
    defended = f", knowing {row.defense}" if row.adaptive and row.defense != "none" else ""
    return Grid(
        title=f"{row.attack}{defended}{f', {place}' if place else ''}",
        note=f"{len(items)} of {count:,} poisons of case {pair[0].get('seed', 0)}{relabelled}. {_aim(row, case)}",
        target="test image, no trigger yet" if row.triggered else "target",
        targets=[pictures.png(image) for image in tensors.get("target", [])[:SHOWN_TARGETS]],
        items=items,
    )


def _aim(row: Row, case: dict[str, Any]) -> str:
    true, wanted = (sorted(set(case.get(key) or ())) for key in ("target_classes", "intended"))
    wants = f"wanted answer “{', '.join(wanted)}”" if wanted else ""
    if row.triggered:
        return f"Trigger on any test image; {wants}."
    return f"True class of the target “{', '.join(true)}”, {wants}." if true else ""


def _shown(row: int, image: np.ndarray, base: np.ndarray | None) -> Shown:
    if base is None:
        return Shown(row, pictures.png(image), None, None, "clean image not stored")
    change = image.astype(float) - base.astype(float)
    moved = f"Linf {np.abs(change).max():.0f}/255, L2 {np.linalg.norm(change) / 255:.2f}"
    difference = pictures.png(pictures.amplified(base, image))
    return Shown(row, pictures.png(image), pictures.png(base), difference, moved)
