"""A few lines of Python, written beside stored models, that load them without this study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mithridate.experiments.store import WEIGHTS
from mithridate.experiments.study import Pair

FILE = "load_model.py"

_SNIPPET = """\
from pathlib import Path

from safetensors.torch import load_file

from mithridate.core.models import build, normalized

HERE = Path(__file__).parent
VICTIMS = {victims}


def load(fit, model={model!r}, classes={classes}, shape={shape}):
    \"\"\"Returns a module in eval mode: images [B, C, H, W] in [0, 1] -> logits [B, {classes}].\"\"\"
    module = normalized(build(model, classes, shape, seed=0), [0.0] * shape[0], [1.0] * shape[0])
    module.load_state_dict(load_file(HERE / "fits" / fit / "{weights}"), strict={strict})
    return module.eval()
"""


def write_loader(folder: Path, pairs: Sequence[Pair]) -> Path | None:
    """Writes `load_model.py` into a results folder: which fits are the victims of which trial, and how to load one.

    Returns:
        Where it is; None if no victim was stored, or the model is no name that another process can build.
    """
    kept = [(trial, result) for trial, result in pairs if result.get("models")]
    if not kept:
        return None
    trial, result = kept[0]
    recipe = _innermost(trial["learner"])
    model = recipe.get("model")
    model = model.get("function") if isinstance(model, dict) else model
    if not isinstance(model, str) or "<" in model:
        return None
    victims = {_label(trial): result["models"] for trial, result in kept}
    text = _SNIPPET.format(
        victims=json.dumps(victims, indent=4),
        model=model,
        classes=len(result["data"]["classes"]),
        shape=tuple(result["data"]["shape"]),
        weights=WEIGHTS,
        strict=recipe.get("normalize", "data") == "data",
    )
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    return path


def _innermost(learner: dict[str, Any]) -> dict[str, Any]:
    while isinstance(learner.get("learner"), dict):
        learner = learner["learner"]
    return learner


def _label(trial: dict[str, Any]) -> str:
    """Tells a trial from the others in a few words."""
    defenses = " + ".join(defense["type"] for defense in trial.get("defenses") or ())
    against = f" against {defenses}" if defenses else ""
    scenario = " (transfer)" if trial.get("pretrain") else ""
    budget = trial["threat"].get("budget")
    return f"{trial['attack']['type']} {budget:g}{against}{scenario}, seed {trial.get('seed', 0)}"
