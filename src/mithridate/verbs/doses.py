"""What dose does: an audit at doses that rise step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mithridate.core.schema import name_of
from mithridate.core.sources import DataSource
from mithridate.experiments.doses import FEWEST
from mithridate.experiments.panels import Panel, stepped, sufficient
from mithridate.verbs.pipelines import audit_panels, run_panels
from mithridate.verbs.terminal import say

if TYPE_CHECKING:
    from mithridate.cli.pipelines import DoseOptions

FOLDER = Path("runs/dose")


def dose(options: DoseOptions, command: str) -> int:
    """Does what `mithridate dose` says."""
    panels, data = audit_panels(options)
    if max(len(given or ()) for given in (options.eps, options.budget)) < 2:
        panels = _ladders(panels, options, data)
    elif all(len(given or ()) < FEWEST for given in (options.eps, options.budget)):
        raise ValueError(f"two doses make no curve; give {FEWEST} or more, or one, from which the others are made")
    if options.trials is None:  # each dose is one more comparison: the audit's own numbers may be too small
        panels = sufficient(panels, data)
    return run_panels(panels, data, options, options.out or FOLDER, command)


def _ladders(panels: list[Panel], options: DoseOptions, data: DataSource) -> list[Panel]:
    """Every panel at every dose; what the preset has and no ladder can be made of is left out, what was named is not.

    Raises:
        ValueError: Nothing is left, or an attack that was named has too few doses.
    """
    count = len(data.load()[0])
    found: list[Panel] = []
    for panel in panels:
        try:
            ladder = stepped(panel, options.of, options.levels, options.factor)
            if options.of == "budget":
                _enough_images(ladder, count)
        except ValueError as error:
            if options.attacks is not None:
                raise
            say(f"left out: {error}", aside=True)
            continue
        found += ladder
    if not found:
        raise ValueError("no attack has doses to compare; name one after --attacks, with a --budget or --eps")
    return found


def _enough_images(ladder: list[Panel], count: int) -> None:
    images = [math.ceil(round(panel.threat.budget * count, 6)) for panel in ladder]
    if len(set(images)) < len(images):
        raise ValueError(
            f"{name_of(ladder[0].attack)} at {', '.join(map(str, images))} of {count:,} images: these doses are not "
            "all different; give a larger --budget, or fewer --levels"
        )
