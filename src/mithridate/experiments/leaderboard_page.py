"""The page of a leaderboard: a table that sorts and filters in the browser, opens offline and reads without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mithridate.experiments import pages
from mithridate.experiments.labels import setting
from mithridate.experiments.leaderboard import Entry, identity, place
from mithridate.experiments.statistics import Rate


def write_leaderboard(entries: Sequence[Entry], path: str | Path) -> Path:
    """Writes the page of some entries, in the order given; returns where.

    Raises:
        ValueError: No entries.
    """
    if not entries:
        raise ValueError("there are no entries; make some from a results folder first")
    script = files("mithridate.experiments").joinpath("templates/leaderboard.js").read_text(encoding="utf-8")
    rows = [_row(entry) for entry in entries]
    filters = {name: sorted({row[name] for row in rows}) for name in ("attack", "defense", "place")}
    text = (
        pages.environment()
        .get_template("leaderboard.html.j2")
        .render(
            title="Leaderboard",
            rows=rows,
            filters=filters,
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    return pages.write(text, Path(path))


def _row(entry: Entry) -> dict[str, Any]:
    success, own, control = entry["success"], entry["setting"], entry["control"]
    rate = Rate(success["share"] * success["n"], success["n"], success["n_eff"], success["low"], success["high"])
    lost = entry["cost"].get("accuracy_lost")
    return {
        "id": identity(entry),
        "place": place(entry),
        "attack": entry["attack"]["type"].rpartition(":")[2],
        "attack_settings": {key: setting(value) for key, value in entry["attack"].items() if key != "type"},
        "defense": " + ".join(one["type"].rpartition(":")[2] for one in entry["defenses"]) or "none",
        "defenses": entry["defenses"],
        "knows": "knows the defence" if entry["adaptive"] else "",
        "dose": f"{own['poisons']:,.0f} of {own['train']:,}, {own['bound']}",
        "share": own["poisons"] / max(1, own["train"]),
        "rate": rate,
        "cases": success["cases"],
        "control": control,
        "shown": bool(control and control.get("shown")),
        "accuracy": entry["accuracy"],
        "lost": None if lost is None else round(100 * lost, 1) + 0.0,  # no minus zero
        "seconds": entry["cost"].get("seconds_per_victim"),
        "command": entry["command"],
        "source": entry["source"],
        "by": entry["submitted_by"],
        "access": own["access"],
    }
