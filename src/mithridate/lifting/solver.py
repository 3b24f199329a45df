"""Solve: the convex relaxation of a labelling problem on a graph, to a duality gap."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.progress import track
from mithridate.core.schema import name_of
from mithridate.lifting.differences import differences
from mithridate.lifting.energy import Potts, Regulariser, TotalVariation, TruncatedVariation, check_values, energy
from mithridate.lifting.graph import Graph
from mithridate.lifting.relaxations import (
    OrderedRelaxation,
    PottsRelaxation,
    Relaxation,
    TruncatedRelaxation,
)
from mithridate.lifting.sublabels import SublabelRelaxation


@dataclass(frozen=True, eq=False)
class Solution:
    """What a relaxation gives."""

    labels: Tensor
    """[K] int64: the rounded solution of lowest energy that was seen."""
    relaxed: Tensor
    """[K, L] shares of labels; for total variation [K, L - 1], how much the label is above each but the last (with
    sublabels: how much of each interval is below it)."""
    primal: float
    """Lowest energy of a feasible point: not below the optimum of the relaxation. The rounded ones count."""
    dual: float
    """Not above the optimum of the relaxation, and so not above the energy of any labelling."""
    gap: float
    """(primal - dual) / |primal|."""
    iterations: int
    seconds: float
    history: tuple[tuple[int, float, float], ...]
    """(iteration, primal, dual) at every check."""


def solve(
    graph: Graph,
    costs: Tensor,
    regulariser: Regulariser,
    *,
    values: Tensor | None = None,
    sublabels: int = 1,
    tolerance: float = 1e-3,
    iterations: int = 1500,
    check: int = 25,
    ratio: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Solution:
    """Solves the relaxation of the energy of `energy.energy`, and rounds.

    Args:
        graph: K cells.
        costs: [K, L] mean data costs of the pixels of a cell.
        regulariser: Cost of boundaries.
        values: [L] what labels stand for, increasing; 0, 1, ... unless given.
        sublabels: Labels per interval of the relaxation, for total variation: it gets as many times smaller, and its
            bound lower the less convex the costs are within an interval.
        tolerance: Relative duality gap at which the solver stops.
        iterations: At most.
        check: Iterations between two looks at the gap.
        ratio: Of dual to primal steps; by default by the size of the weight.
        dtype: Of the solver; energies are added up in float64.
        device: Where it runs.

    Raises:
        ValueError: Shapes that do not fit, costs that are not finite, no iterations, or sublabels of labels that are
            not ordered or fewer.

    >>> from mithridate.lifting.graph import pixel_grid
    >>> found = solve(pixel_grid(1, 2), torch.tensor([[0.0, 1.0], [0.3, 0.0]]), Potts(weight=0.5))
    >>> found.labels.tolist(), round(found.primal, 3)
    ([0, 0], 0.3)
    """
    _check(graph, costs, tolerance, iterations, check)
    start = time.perf_counter()
    place = check_values(values, costs.shape[1])
    _check_sublabels(sublabels, regulariser, costs.shape[1])
    sums = graph.areas.to(device)[:, None] * costs.detach().to(device=device, dtype=torch.float64)
    state = _state(graph, sums.to(dtype), regulariser, place, sublabels, ratio, device)
    primal, dual, best = float("inf"), -float("inf"), None
    history: list[tuple[int, float, float]] = []
    done = 0
    for chunk in track(range(-(-iterations // check)), "solve"):
        count = min(check, iterations - chunk * check)
        for _ in range(count):
            state.step()
        done += count
        bounds, labels = state.bounds(), state.labels().cpu()
        rounded = energy(graph, costs, labels, regulariser, values)
        if best is None or rounded < best[0]:
            best = (rounded, labels)
        primal, dual = min(primal, bounds.primal, rounded), max(dual, bounds.dual)
        history.append((done, primal, dual))
        if primal - dual <= tolerance * max(abs(primal), 1e-12):
            break
    assert best is not None
    return Solution(
        labels=best[1],
        relaxed=state.relaxed(),
        primal=primal,
        dual=dual,
        gap=(primal - dual) / max(abs(primal), 1e-12),
        iterations=done,
        seconds=time.perf_counter() - start,
        history=tuple(history),
    )


def _check(graph: Graph, costs: Tensor, tolerance: float, iterations: int, check: int) -> None:
    if costs.ndim != 2 or len(costs) != len(graph) or costs.shape[1] < 2:
        raise ValueError(f"the costs are {list(costs.shape)}; expected [{len(graph)}, 2 or more]: one row per cell")
    if not bool(torch.isfinite(costs).all()):
        raise ValueError("some costs are not finite; give a forbidden label a large cost instead")
    if iterations < 1 or check < 1:
        raise ValueError(f"{iterations} iterations with a look every {check}; both are 1 or more")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance:g}; it is a relative gap, 0 or more")


def _check_sublabels(sublabels: int, regulariser: Regulariser, labels: int) -> None:
    if not 1 <= sublabels <= labels - 1:
        raise ValueError(f"{sublabels} sublabels per interval for {labels} labels; give 1 to {labels - 1}")
    if sublabels > 1 and not isinstance(regulariser, TotalVariation):
        raise ValueError(f"sublabels lie between ordered labels under total-variation; {name_of(regulariser)} has none")


def _state(
    graph: Graph,
    sums: Tensor,
    regulariser: Regulariser,
    values: Tensor,
    sublabels: int,
    ratio: float | None,
    device: torch.device | str,
) -> Relaxation:
    """The solver of a regulariser; `sums` [K, L] are the costs added up over cells."""
    along = differences(graph, sums.dtype, device)
    match regulariser:
        case Potts():
            return PottsRelaxation(along, sums, regulariser.weight, ratio or _ratio(regulariser.weight))
        case TotalVariation():
            step = sublabels * regulariser.weight * float(values.diff().mean())
            if sublabels > 1:
                places = values.to(sums.device)
                return SublabelRelaxation(along, sums, regulariser.weight, places, sublabels, ratio or _ratio(step))
            return OrderedRelaxation(along, sums, regulariser.weight, values.to(sums.device), ratio or _ratio(step))
        case TruncatedVariation():
            return TruncatedRelaxation(
                along,
                sums,
                regulariser.weight,
                regulariser.limit,
                values.to(sums.device),
                ratio or _ratio(regulariser.limit / 2),
            )
    raise TypeError(
        f"no relaxation of {name_of(regulariser)} is known; potts, total-variation, truncated-variation are"
    )


def _ratio(scale: float) -> float:
    """Dual steps as long as dual variables are large.

    Of factors 0.25 to 16, these need 25 (photo, 8 colours, 256 x 256), 75 (Teddy at a quarter, 16 disparities) and 100
    iterations (the same, truncated) to a gap of 1e-3; half or twice of it at most 125, ten times of it up to 325.
    """
    return 2 * scale if scale > 0 else 1.0
