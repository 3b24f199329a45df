"""Scan: which rows of a data set look poisoned to several filters, and how many would by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.progress import track
from mithridate.core.schema import name_of
from mithridate.core.seeds import derive, stream
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Evidence, Filter

MOST_DRAWS = 20
"""Made-up sets of rows that the filters are run on."""
FEWEST_DRAWS = 4
ROWS_PER_SCAN = 200_000
"""Made-up rows in all: larger data sets get fewer draws, which hold as many rows together."""


@dataclass(frozen=True)
class Finding:
    """What one filter says of every row. N is the number of rows, in the order of the data's ids."""

    name: str
    reason: str
    """Why a row is suspicious to it, half a sentence."""
    scores: Tensor
    """[N] float64, larger = more suspicious; of the first model."""
    marked: Tensor
    """[N] bool: what the filter would drop in training, after the first model."""
    expected: Tensor
    """[N] float64: rows of an innocent set of this size that are expected to look as suspicious; median over models."""
    chance: float
    """Rows that it would drop of such a set, on average."""


@dataclass(frozen=True)
class Scan:
    """Every row of a data set with how many like it are expected by chance."""

    data: ImageData
    findings: tuple[Finding, ...]
    expected: Tensor
    """[N] float64: expected false alarms if this row and all that look as bad to any filter were dropped."""
    by: Tensor
    """[N] int64: the finding that speaks most against the row."""

    def order(self) -> Tensor:
        """Positions [N] from the most suspicious row to the least; of equals the one that filters rank higher."""
        ranks = torch.stack([found.scores.argsort(descending=True, stable=True).argsort() for found in self.findings])
        best = ranks.gather(0, self.by[None])[0]
        return torch.tensor(sorted(range(len(self.expected)), key=lambda i: (float(self.expected[i]), int(best[i]))))

    def suspects(self, allowed: float) -> Tensor:
        """Row ids to drop if `allowed` false alarms are put up with, the most suspicious first."""
        order = self.order()
        return self.data.ids[order[self.expected[order] <= allowed].to(self.data.device)]


def scan(
    data: ImageData,
    learner: Learner,
    filters: Sequence[Filter],
    *,
    models: int = 1,
    seed: int = 0,
) -> Scan:
    """Trains on a data set, runs filters on what the models make of each row, and says what chance would do.

    Chance is a null run of the same filters: on made-up rows, for each class as many draws from one Gaussian cloud that
    has the mean and the covariance of that class's features and logits. Such rows hold no poison, no wrong label and
    nothing odd; as many of them as look as suspicious as a given row are the false alarms expected there. What stands
    out is poison or an honest oddity: which of them, only a look can say. With F filters a row is F times as likely to
    stand out by chance to some of them, and is counted so.

    Reference for the null: Liu, Hayes, Nobel, Marron. "Statistical Significance of Clustering for High-Dimension,
    Low-Sample Size Data". Journal of the American Statistical Association 103, 2008 (SigClust: one Gaussian cloud).

    Args:
        data: The rows; their labels are taken as they are.
        learner: Trains the models; no other data are needed.
        filters: What looks at the rows.
        models: How many models are trained, with seeds of their own; what they say is put together by the median.
        seed: First seed.

    Raises:
        ValueError: No filter, no model, or features that are not finite.
    """
    if not filters:
        raise ValueError("no filter to scan with; name some, such as activation-clustering")
    if models < 1:
        raise ValueError(f"models is {models}; at least 1 must be trained")
    draws = max(FEWEST_DRAWS, min(MOST_DRAWS, ROWS_PER_SCAN // max(1, len(data))))
    seeds = [derive(seed, "scan", number) for number in range(models)]
    findings = []
    for one in track(filters, "filters", total=len(filters)):
        evidence = one.evidence(learner, [data] * models, seeds, trusted=None)
        findings.append(_finding(one, evidence, draws, seed))
    expected = torch.stack([found.expected for found in findings])
    value, by = expected.min(0)
    return Scan(data, tuple(findings), value * len(findings), by)


def _finding(one: Filter, evidence: Sequence[Evidence], draws: int, seed: int) -> Finding:
    expected, judged, chance = [], [one.judge(each) for each in evidence], []
    for number, (each, verdict) in enumerate(zip(evidence, judged, strict=True)):
        rng = stream(seed, "null", number)
        null = [one.judge(made_up(each, rng)) for _ in range(draws)]
        chance += [float(each.marked.sum()) for each in null]
        scores = torch.cat([each.scores for each in null]).sort().values
        above = len(scores) - torch.searchsorted(scores, verdict.scores.contiguous())
        expected.append((above + 1) / (draws + 1))
    return Finding(
        name=name_of(one),
        reason=one.reason,
        scores=judged[0].scores,
        marked=judged[0].marked,
        expected=torch.stack(expected).double().median(0).values,
        chance=sum(chance) / len(chance),
    )


def made_up(evidence: Evidence, rng: torch.Generator) -> Evidence:
    """Returns evidence of as many innocent rows of each class: one Gaussian cloud with the class's own moments.

    >>> real = Evidence(torch.rand(50, 3), torch.rand(50, 2), torch.arange(50) % 2)
    >>> made_up(real, torch.Generator()).features.shape
    torch.Size([50, 3])
    """
    joint = torch.cat([evidence.features, evidence.logits], 1).double()
    made = torch.empty_like(joint)
    for label in evidence.labels.unique():
        members = (evidence.labels == label).nonzero()[:, 0]
        rows = joint[members]
        mean = rows.mean(0)
        centred = rows - mean
        if len(rows) > rows.shape[1]:  # through the covariance: many rows need no matrix of rows by rows
            values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
            factor = (vectors * values.clamp_min(0).sqrt()).T
        else:
            factor = centred / len(rows) ** 0.5
        drawn = torch.randn(len(rows), len(factor), generator=rng, dtype=torch.float64).to(joint.device)
        made[members] = mean + drawn @ factor
    features, logits = made.to(evidence.features.dtype).split([evidence.features.shape[1], evidence.logits.shape[1]], 1)
    return Evidence(features, logits, evidence.labels)
