"""What it costs that neighbours have different labels, and the energy of a labelling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.schema import Choice, name_of
from mithridate.lifting.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Regulariser(Choice, ABC):
    """Cost of a boundary, per pixel of its length."""

    weight: float
    """How much a boundary costs beside the data."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"{name_of(self)} weight is {self.weight:g}; it is a cost per length, 0 or more")

    @abstractmethod
    def between(self, apart: Tensor) -> Tensor:
        """Returns the cost per length of labels whose values are so far apart (0: the same label)."""


@dataclass(frozen=True, kw_only=True)
class Potts(Regulariser):
    """Any two labels: the same cost. Half of it for each of the two regions that a boundary bounds.

    Reference: Potts. "Some generalized order-disorder transformations". Math. Proc. Camb. Phil. Soc. 48, 1952; minimal
    partitions: Mumford, Shah. Comm. Pure Appl. Math. 42, 1989.

    >>> Potts(weight=0.5).between(torch.tensor([0.0, 1.0, 9.0]))
    tensor([0.0000, 0.5000, 0.5000])
    """

    def between(self, apart: Tensor) -> Tensor:
        return self.weight * (apart != 0).to(apart)


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Regulariser):
    """Ordered labels: the cost grows with the distance of their values.

    Reference: Rudin, Osher, Fatemi. "Nonlinear total variation based noise removal algorithms". Physica D 60, 1992.

    >>> TotalVariation(weight=0.5).between(torch.tensor([0.0, 1.0, 9.0]))
    tensor([0.0000, 0.5000, 4.5000])
    """

    def between(self, apart: Tensor) -> Tensor:
        return self.weight * apart.abs()


@dataclass(frozen=True, kw_only=True)
class TruncatedVariation(Regulariser):
    """Ordered labels, with a largest cost: a jump is a jump.

    >>> TruncatedVariation(weight=0.5, limit=2.0).between(torch.tensor([0.0, 1.0, 9.0]))
    tensor([0.0000, 0.5000, 2.0000])
    """

    limit: float
    """Largest cost per length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"limit is {self.limit:g}; it is the largest cost of a jump, more than 0")

    def between(self, apart: Tensor) -> Tensor:
        return (self.weight * apart.abs()).clamp_max(self.limit)


def check_values(values: Tensor | None, labels: int) -> Tensor:
    """Returns what labels stand for [L], in float64; 0, 1, ... unless given.

    Raises:
        ValueError: Not one per label, or not increasing.

    >>> check_values(None, 3).tolist()
    [0.0, 1.0, 2.0]
    """
    if values is None:
        return torch.arange(labels, dtype=torch.float64)
    values = values.detach().cpu().double()
    if values.shape != (labels,) or not bool((values.diff() > 0).all()):
        raise ValueError(f"the values of {labels} labels are {list(values.shape)}: expected [{labels}], increasing")
    return values


def energy(
    graph: Graph, costs: Tensor, labels: Tensor, regulariser: Regulariser, values: Tensor | None = None
) -> float:
    """Returns the energy of a labelling, in float64.

    Args:
        graph: K cells.
        costs: [K, L] mean data costs of pixels.
        labels: [K] int64.
        regulariser: Cost of boundaries.
        values: [L] what labels stand for, increasing; 0, 1, ... unless given.

    Raises:
        ValueError: Shapes that do not fit.

    >>> from mithridate.lifting.graph import pixel_grid
    >>> costs = torch.tensor([[0.0, 1.0], [0.25, 0.0]])
    >>> energy(pixel_grid(1, 2), costs, torch.tensor([0, 1]), Potts(weight=0.1))
    0.1
    """
    if costs.ndim != 2 or len(costs) != len(graph) or labels.shape != (len(graph),):
        raise ValueError(
            f"the costs are {list(costs.shape)} and the labels {list(labels.shape)}; expected [{len(graph)}, L] and "
            f"[{len(graph)}]"
        )
    labels = labels.cpu()
    chosen = costs.detach().cpu().gather(1, labels[:, None])[:, 0].double()
    first, second = check_values(values, costs.shape[1])[labels][graph.edges.cpu()]
    boundaries = graph.lengths.cpu() * regulariser.between(first - second)
    return float((graph.areas.cpu() * chosen).sum() + boundaries.sum())
