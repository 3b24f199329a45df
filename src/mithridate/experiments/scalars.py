"""A study for TensorBoard: a run per trial with its outcomes, and a run per stored model with its training curve."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mithridate.core.extras import extra
from mithridate.experiments.cells import Pair, is_number
from mithridate.experiments.files import read_json, write_json
from mithridate.experiments.labels import model_of, setting

if TYPE_CHECKING:
    from mithridate.experiments.entries import Entry
    from mithridate.experiments.exports import Findings

MARK = "mithridate.json"
"""A folder with this file in it was made here and may be made again."""
_OUTCOMES = {"poison": ("success", "accuracy", "margin", "correct"), "leak": ("psnr", "ssim", "rank")}


def write_scalars(found: Findings, out: Path) -> Path:
    """Writes event files: `trials/<row>/seed <n>` and `fits/<model>, <id>`.

    Outcomes are scalars with the number of the victim as their step (of a leak, of the image), training curves with the
    epoch. The settings of a trial are text, and with its mean outcomes in the table of hyperparameters.

    Args:
        found: A study.
        out: A folder; made new, or in place of what was written there before.

    Raises:
        ValueError: The folder holds other things.
        MissingExtra: TensorBoard is not installed.
    """
    board = extra("torch.utils.tensorboard", "track", "TensorBoard")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / MARK).exists():
        raise ValueError(f"{out} holds other things; give a new or empty folder for TensorBoard (--out)")
    for part in ("trials", "fits"):
        shutil.rmtree(out / part, ignore_errors=True)
    write_json(out / MARK, {"study": found.folder.as_posix(), "command": found.command})
    for entry in found.rows:
        for seed, pair in entry.trials.items():
            _trial(board, out / "trials" / _folder(entry.name) / f"seed {seed}", entry, pair)
    for path in sorted((found.folder / "fits").glob("*/fit.json")):
        _fit(board, out / "fits", path)
    return out


def _trial(board: Any, place: Path, entry: Entry, pair: Pair) -> None:
    """The run of one trial."""
    trial, result = pair
    with board.SummaryWriter(str(place)) as writer:
        means = {}
        for name in _OUTCOMES[entry.kind]:
            values = list(_by_step(result["outcome"].get(name) or ()))
            for step, value in values:
                writer.add_scalar(f"outcome/{name}", value, step)
            if values:
                means[f"outcome/{name}"] = fmean(value for _, value in values)
        for victim, accuracies in enumerate(result["outcome"].get("epochs") or ()):
            for epoch, accuracy in enumerate(accuracies, start=1):
                writer.add_scalar(f"epochs/accuracy of victim {victim}", accuracy, epoch)
        writer.add_text("settings", f"```json\n{json.dumps(trial, indent=1)}\n```")
        writer.add_text("row", f"{entry.name}: {entry.verdict}")
        if fits := result.get("models"):
            writer.add_text("models", f"curves of the victims: fits/ ending in {', '.join(fits)}")
        settings = {"attack": entry.label, "defense": entry.defense, "seed": int(trial.get("seed", 0))}
        settings |= {"adaptive": bool(trial.get("adaptive")), "row": entry.name}
        if threat := trial.get("threat"):
            settings |= {"budget": float(threat.get("budget") or 0.0), "ball": setting(threat.get("ball"))}
        for summary in board.summary.hparams(settings, means):
            writer.file_writer.add_summary(summary)


def _fit(board: Any, out: Path, path: Path) -> None:
    """The run of one stored model; what cannot be read is left out."""
    try:
        notes = read_json(path)
        name = f"{model_of(notes['recipe'])}, {path.parent.name}"
        curves: dict[str, Sequence[float]] = dict(notes.get("history") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    with board.SummaryWriter(str(out / _folder(name))) as writer:
        for curve, values in curves.items():
            for epoch, value in enumerate(values, start=1):
                if is_number(value):
                    writer.add_scalar(f"training/{curve}", value, epoch)
        writer.add_text("recipe", f"```json\n{json.dumps(notes['recipe'], indent=1)}\n```")


def _by_step(values: Sequence[Any]) -> Iterator[tuple[int, float]]:
    """(step, mean): of lists by victim the mean of each, of plain lists each value. What is null is left out."""
    for step, value in enumerate(values):
        numbers = [one for one in (value if isinstance(value, list) else [value]) if is_number(one)]
        if numbers:
            yield step, fmean(numbers)


def _folder(name: str) -> str:
    """A name that every file system takes."""
    mark = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    told = f"{name[:100]} {mark}" if len(name) > 110 else name
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", told).strip(" .") or "_"
