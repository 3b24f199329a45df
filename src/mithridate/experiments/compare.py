"""Cells against other cells, target by target: attacks against their controls, defences against no defence.

The p-values of a table are read together, so each is also adjusted (Holm) for the others that answer the same question.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mithridate.experiments import cells as grid
from mithridate.experiments.anytime import anytime_paired, anytime_rate
from mithridate.experiments.cells import Cell
from mithridate.experiments.rates import rate
from mithridate.experiments.statistics import (
    LEVEL,
    Mean,
    PairedMargin,
    PairedSuccess,
    Rate,
    higher,
    holm,
    mean,
    paired_exact,
    paired_margin,
)

UNDEFENDED = "undefended"


@dataclass(frozen=True)
class Versus:
    """A cell compared with another, target by target.

    The p-values of a table are adjusted in families: every attack against the strictest control it has; attacks against
    their other control; defences against no defence under attack; and the same for controls. In each family success,
    the same the other way round and margins are adjusted each for itself.
    """

    name: str
    """random-noise, no-attack, or undefended."""
    success: Rate
    """Success of the other cell, on all its targets."""
    paired: PairedSuccess
    """Controls: does this cell succeed more often? undefended: does the defence make it succeed less often?"""
    worse: PairedSuccess
    """The same question the other way round."""
    margin: PairedMargin
    """Controls: margins here minus margins there. undefended: margins there minus margins here."""
    holm: float
    """p of `paired`, adjusted."""
    worse_holm: float
    """p of `worse`, adjusted."""
    margin_holm: float
    """p of `margin`, adjusted."""
    accuracy: Mean | None = None
    """Clean test accuracy of the other cell, where the goal is to lower it; `paired` is then Welch's test of it."""
    comparisons: int = 1
    """Size of the family."""

    @property
    def exact(self) -> bool:
        """Whether success was compared case by case; otherwise accuracies of models were, which nothing pairs."""
        return self.accuracy is None

    @property
    def shown(self) -> bool:
        """Whether the success of `paired` is shown, all comparisons of its kind considered."""
        return self.holm <= LEVEL

    @property
    def worse_shown(self) -> bool:
        """Whether the opposite is shown, all comparisons of its kind considered."""
        return self.worse_holm <= LEVEL

    @property
    def margin_shown(self) -> bool:
        """Whether the difference of margins is shown, all comparisons of its kind considered."""
        return self.margin_holm <= LEVEL


Comparisons = dict[str, Versus]
"""Of one cell, by the name of the other."""


def compared(cells: Sequence[Cell]) -> list[Comparisons]:
    """Compare every cell with its controls and, if defended, with the undefended cell of the same attacker."""
    return _adjusted(cells, [_comparisons(cell, cells) for cell in cells])


def against(versus: Comparisons) -> Versus | None:
    """The comparison with the strictest control there is: random noise, else no attack."""
    return next((versus[name] for name in grid.CONTROLS if name in versus), None)


def _adjusted(cells: Sequence[Cell], found: Sequence[Comparisons]) -> list[Comparisons]:
    """The same comparisons with p-values adjusted within their families; see `Versus`."""
    families: dict[tuple[bool, ...], list[tuple[int, str]]] = {}
    for place, (cell, versus) in enumerate(zip(cells, found, strict=True)):
        strictest = against(versus)
        for name, other in versus.items():
            families.setdefault((cell.control, name == UNDEFENDED, other is strictest), []).append((place, name))
    made = [dict(versus) for versus in found]
    for members in families.values():
        tests = [found[place][name] for place, name in members]
        numbers = {
            "holm": holm([test.paired.p for test in tests]),
            "worse_holm": holm([test.worse.p for test in tests]),
            "margin_holm": holm([test.margin.p for test in tests]),
        }
        for index, (place, name) in enumerate(members):
            own = {question: values[index] for question, values in numbers.items()}
            made[place][name] = dataclasses.replace(tests[index], **own, comparisons=len(members))
    return made


def _comparisons(cell: Cell, others: Sequence[Cell]) -> Comparisons:
    found = {}
    if not cell.control:
        controls = {name: grid.control_of(cell, others, name) for name in grid.CONTROLS}
        found = {name: _versus(name, cell, other, cell, other) for name, other in controls.items() if other}
    bare = grid.undefended(cell, others)
    if bare:
        found[UNDEFENDED] = _versus(UNDEFENDED, cell, bare, bare, cell)
    return {name: versus for name, versus in found.items() if versus.paired.pairs}


def planned_of(cell: Cell, other: Cell) -> int | None:
    """Pairs of cases planned, where a comparison stops once it is decided; None where all are run."""
    return min(cell.planned, other.planned) if cell.planned and other.planned else None


def success_of(cell: Cell, eligible: dict[int, list[bool]] | None = None) -> Rate:
    """Success of a cell, on all targets or on the eligible ones alone."""
    outcomes = list(cell.outcomes("success", eligible).values())
    return anytime_rate(outcomes) if cell.planned else rate(outcomes)


def _versus(name: str, cell: Cell, other: Cell, more: Cell, less: Cell) -> Versus:
    """Compare `cell` with `other`; `more` is the one of the two that is expected to succeed more often."""
    seeds = list(grid.paired(cell, other))
    first, second = ([arm.outcomes("success")[seed] for seed in seeds] for arm in (more, less))
    high, low = more.outcomes("margin"), less.outcomes("margin")
    both = [seed for seed in seeds if high[seed] and low[seed]]
    if cell.goal == "availability":
        return _lowered(name, other, more, less)
    margin = paired_margin([fmean(high[seed]) for seed in both], [fmean(low[seed]) for seed in both])
    if planned := planned_of(cell, other):
        paired, worse = anytime_paired(first, second, planned), anytime_paired(second, first, planned)
        margin = dataclasses.replace(margin, p=math.nan, test="none: margins have no test that one may stop early")
    else:
        paired, worse = paired_exact(first, second), paired_exact(second, first)
    success = success_of(other)
    return Versus(name, success, paired, worse, margin, paired.p, worse.p, margin.p)


def _lowered(name: str, other: Cell, more: Cell, less: Cell) -> Versus:
    """Compare accuracies; `more` is the cell whose attack is expected to lower them more. Cases do not pair victims."""
    low, high = more.accuracies(), less.accuracies()
    paired, worse = higher(high, low), higher(low, high)
    success = success_of(other)
    margin = paired_margin([], [])
    return Versus(name, success, paired, worse, margin, paired.p, worse.p, margin.p, mean(other.accuracies()))
