"""What a defence removed and what it proves, cell by cell: detection of poisons, and certified answers."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

from mithridate.experiments.cells import Cell
from mithridate.experiments.rates import rate
from mithridate.experiments.statistics import Mean, Rate, mean


@dataclass(frozen=True)
class Certificate:
    """Certified radius of the answers. A replaced row is one deletion and one insertion."""

    median: float
    """Of the answers on targets: insertions plus deletions that provably leave the answer as it is."""
    share: float
    """Share of targets certified against one replaced image at least."""
    covers: float | None
    """Share of targets certified against as many replaced images as this poison has; None without poison."""
    curve: tuple[Mean, ...]
    """Certified accuracy: share of clean test images answered rightly with a radius of at least 0, 1, 2, ..."""

    def replaced(self) -> tuple[Mean, ...]:
        """Certified accuracy where 0, 1, 2, ... rows are replaced: every second radius."""
        return self.curve[::2]


@dataclass(frozen=True)
class Detection:
    """Which training rows a defence left out, over trials and victims."""

    removed: float
    """Rows left out, per victim."""
    recall: Rate | None
    """Share of the poisons among them; None without poison."""
    precision: Rate | None
    """Share of poisons among what was left out; None without poison, or where nothing was."""
    false_alarms: Mean
    """Share of the rows that are no poison that was left out, over trials; without poison, over shared victims."""


def certificate(cell: Cell) -> Certificate | None:
    """What is certified in a cell; None where nothing is."""
    radii = cell.outcomes("radius")
    values = [value for found in radii.values() for value in found]
    if not values:
        return None
    counts = {seed: (result.get("poison") or {}).get("count") or 0 for seed, (_, result) in cell.trials.items()}
    covers = [value // 2 >= counts[seed] for seed, found in radii.items() for value in found if counts[seed]]
    share = fmean(value >= 2 for value in values)
    return Certificate(float(median(values)), share, fmean(covers) if covers else None, _curve(cell))


def _curve(cell: Cell) -> tuple[Mean, ...]:
    """Means over independent fits: over the victims of one trial where all trials share them, else over trials."""
    lists = [found for result in cell.results if (found := result["outcome"].get("certified"))]
    if not lists:
        return ()
    longest = max(len(points) for victims in lists for points in victims)
    lists = [[[*points, *[0.0] * (longest - len(points))] for points in victims] for victims in lists]
    if cell.attack == "no-attack" or len(lists) == 1:
        curves = max(lists, key=len)
    else:
        curves = [[fmean(point) for point in zip(*victims, strict=True)] for victims in lists]
    return tuple(mean(list(values)) for values in zip(*curves, strict=True))


def detection(cell: Cell) -> Detection | None:
    """What a cell's defence left out of training; None where it leaves nothing out."""
    removed: list[int] = []
    caught: list[list[int]] = []
    right: list[list[int]] = []
    alarms: list[float] = []
    for result in cell.results:
        defense, count = result.get("defense") or {}, (result.get("poison") or {}).get("count") or 0
        gone, rows = defense.get("removed") or [], (result.get("data") or {}).get("train") or 0
        hits = defense.get("removed_poisons") or [0] * len(gone)
        if not count:
            hits = [0] * len(gone)
        removed += gone
        if count:
            caught.append([value for hit in hits for value in _outcomes(hit, count)])
            right.append([value for hit, out in zip(hits, gone, strict=True) for value in _outcomes(hit, out)])
        wrong = [(out - hit) / max(1, rows - count) for hit, out in zip(hits, gone, strict=True)]
        if cell.attack == "no-attack" and gone:  # whose victims all trials share
            alarms = wrong
            break
        alarms += [fmean(wrong)] if wrong else []
    if not removed:
        return None
    poisoned = any(caught)
    return Detection(
        removed=fmean(removed),
        recall=rate(caught) if poisoned else None,
        precision=rate(right) if poisoned and any(right) else None,
        false_alarms=mean(alarms),
    )


def _outcomes(hits: int, count: int) -> list[int]:
    return [1] * hits + [0] * (count - hits)
