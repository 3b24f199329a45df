"""How much poison it takes: the dose that moves half, on digits, with and without defences."""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit, stepped
from mithridate.experiments.presets import digits_audit

CASES = 12
LARGEST = 0.04
"""Of the backdoor: 40 of 1,000 images; what the default audit uses is half of it."""
DEFENSES: tuple[mi.Defense, ...] = (
    mi.Mixup(),
    mi.SpectralSignatures(contamination=LARGEST),
    mi.GradientShaping(),
    mi.Strip(),
)


def digits() -> list[mi.Trial]:
    """Returns a patch backdoor by budget and gradient matching by eps, 12 cases at each of five doses; 30 minutes."""
    backdoor, _, brew = digits_audit()
    stacks = tuple((defense,) for defense in DEFENSES)
    marked = replace(backdoor, threat=replace(backdoor.threat, budget=LARGEST), defenses=stacks, trials=CASES)
    matched = replace(brew, defenses=(), trials=CASES)
    panels: list[Panel] = [*stepped(marked, "budget"), *stepped(matched, "eps")]
    return plan_audit(panels, mi.Digits())
