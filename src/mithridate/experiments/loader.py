"""A few lines of Python, written beside stored models, that say whose victims they are and load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mithridate.experiments.study import Pair

FILE = "load_model.py"

_SNIPPET = """\
from pathlib import Path

from mithridate.experiments.store import load_model

HERE = Path(__file__).parent
VICTIMS = {victims}


def load(fit):
    \"\"\"Returns a module in eval mode: images [B, C, H, W] in [0, 1] -> logits [B, K].\"\"\"
    return load_model(HERE / "fits" / fit)
"""


def write_loader(folder: Path, pairs: Sequence[Pair]) -> Path | None:
    """Writes `load_model.py` into a results folder: which fits are the victims of which trial, and how to load one.

    Returns:
        Where it is; None if no victim was stored.
    """
    victims = {_label(trial): result["models"] for trial, result in pairs if result.get("models")}
    if not victims:
        return None
    lines = "".join(f"    {json.dumps(label)}: {json.dumps(fits)},\n" for label, fits in victims.items())
    path = folder / FILE
    path.write_text(_SNIPPET.format(victims=f"{{\n{lines}}}"), encoding="utf-8")
    return path


def _label(trial: dict[str, Any]) -> str:
    """Tells a trial from the others in a few words."""
    defenses = " + ".join(defense["type"] for defense in trial.get("defenses") or ())
    against = f" against {defenses}" if defenses else ""
    scenario = " (transfer)" if trial.get("pretrain") else ""
    budget = trial["threat"].get("budget")
    return f"{trial['attack']['type']} {budget:g}{against}{scenario}, seed {trial.get('seed', 0)}"
