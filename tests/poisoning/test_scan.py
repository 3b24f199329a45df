"""Scan: rows of known innocence and of known guilt, on evidence written by hand and on a small training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Evidence, Filter, Judgement
from mithridate.poisoning.defenses.deep_knn import DeepKNN
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.scan import made_up, scan
from tests.poisoning.cases import quick, three_classes

TRAIN, _ = three_classes()
COUNT = 300


@dataclass(frozen=True, kw_only=True)
class Far(Filter):
    """Squared distance from the mean of the class; drops the farthest `drop`. Sees evidence given beforehand."""

    reason: ClassVar[str] = "is far from its class"
    seen: ClassVar[list[Evidence]] = []

    contamination: float = 0.02
    drop: int = 10

    def evidence(
        self, learner: Learner, datasets: Sequence[ImageData], seeds: Sequence[int], *, trusted: ImageData | None
    ) -> list[Evidence]:
        assert trusted is None
        return [self.seen[i % len(self.seen)] for i in range(len(datasets))]

    def judge(self, evidence: Evidence) -> Judgement:
        scores = torch.zeros(len(evidence.labels), dtype=torch.float64)
        for label in evidence.labels.unique():
            members = evidence.labels == label
            rows = evidence.features[members].double()
            scores[members] = (rows - rows.mean(0)).square().sum(1)
        marked = torch.zeros(len(scores), dtype=torch.bool)
        marked[scores.argsort(descending=True)[: self.drop]] = True
        return Judgement(scores, marked)


def cloud(seed: int, planted: int = 0) -> Evidence:
    """Three Gaussian classes in six dimensions; the first rows of class 0 are moved far away."""
    rng = stream(seed, "cloud")
    labels = torch.arange(COUNT) % 3
    features = torch.randn(COUNT, 6, generator=rng) @ torch.randn(6, 6, generator=stream(1, "shape"))
    features = features + 10 * labels[:, None]
    features[torch.arange(planted) * 3] += 40 * torch.randn(planted, 6, generator=rng).sign()
    return Evidence(features, features[:, :3].clone(), labels)


def rows() -> ImageData:
    return ImageData(torch.zeros(COUNT, 1, 8, 8, dtype=torch.uint8), torch.arange(COUNT) % 3, ("a", "b", "c"))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> type[Far]:
    monkeypatch.setattr(Far, "seen", [])
    return Far


def scanned(far: type[Far], *seen: Evidence, **settings: int):
    far.seen[:] = seen
    return scan(rows(), quick(), [far()], **settings)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    centred = features.double() - features.double().mean(0)
    return features.double().mean(0), centred.T @ centred / len(features)


@pytest.mark.parametrize("count", [4, 2000])
def test_made_up_rows_have_the_moments_of_their_class(count: int) -> None:
    """Fewer rows than dimensions, where they go through the rows, and more, where they go through the covariance."""
    rng = stream(3, "rows")
    features = torch.randn(2 * count, 5, generator=rng) * torch.tensor([3.0, 1.0, 0.1, 2.0, 0.0]) + 7
    real = Evidence(features, features[:, :2] - 1, torch.arange(2 * count) % 2)
    draws = [made_up(real, rng) for _ in range(400 if count == 4 else 4)]
    for label in (0, 1):
        mean, spread = moments(real.features[real.labels == label])
        rows = torch.cat([each.features[each.labels == label] for each in draws]).double()
        assert torch.allclose(rows.mean(0), mean, atol=0.15)
        centred = rows - mean
        assert torch.allclose(centred.T @ centred / len(rows), spread, atol=0.6)
        logits = torch.cat([each.logits[each.labels == label] for each in draws]).double()
        assert torch.allclose(logits, rows[:, :2] - 1, atol=1e-3)  # what depends on each other still does


def test_of_innocent_rows_as_many_stand_out_as_are_said_to(far: type[Far]) -> None:
    """Fifty sets from one cloud per class: the number of rows below each expectation is that expectation."""
    found = [scanned(far, cloud(seed)).expected for seed in range(50)]
    for allowed in (1.0, 5.0, 20.0):
        counts = [int((expected <= allowed).sum()) for expected in found]
        assert 0.6 * allowed < fmean(counts) < 1.3 * allowed
    chance = scanned(far, cloud(99)).findings[0].chance
    assert chance == 10  # it drops ten rows, whatever they are like


def test_planted_rows_come_first_and_nothing_else_is_dropped(far: type[Far]) -> None:
    found = scanned(far, cloud(5, planted=6))
    suspects = found.suspects(1.0)
    assert sorted(suspects.tolist()[:6]) == [0, 3, 6, 9, 12, 15]
    assert len(suspects) <= 8
    assert found.suspects(0.0).tolist() == []
    scores = found.findings[0].scores
    assert found.order().tolist()[:6] == scores.argsort(descending=True)[:6].tolist()


def test_every_row_is_on_the_list_once(far: type[Far]) -> None:
    found = scanned(far, cloud(5, planted=6))
    assert sorted(found.order().tolist()) == list(range(COUNT))
    in_order = found.expected[found.order()]
    assert bool((in_order[1:] >= in_order[:-1]).all())


def test_several_filters_are_several_chances(far: type[Far]) -> None:
    far.seen[:] = [cloud(5, planted=6)]
    one, two = (scan(rows(), quick(), [far()] * number) for number in (1, 2))
    assert torch.allclose(two.expected, 2 * one.expected)


def test_models_are_put_together_by_the_median(far: type[Far]) -> None:
    """One of three models was fooled: what two see counts."""
    seen = [cloud(5, planted=6), cloud(5), cloud(5, planted=6)]
    found = scanned(far, *seen, models=3)
    assert sorted(found.suspects(1.0).tolist()[:6]) == [0, 3, 6, 9, 12, 15]
    other = scanned(far, *[seen[i] for i in (1, 0, 1)], models=3)
    assert not {0, 3, 6} <= set(other.suspects(1.0).tolist())


def test_the_same_seed_says_the_same_of_a_real_training() -> None:
    filters = [SpectralSignatures(), DeepKNN()]
    first, again = (scan(TRAIN, quick(epochs=1), filters, seed=3) for _ in range(2))
    assert torch.equal(first.expected, again.expected)
    assert torch.equal(first.by, again.by)
    assert [finding.name for finding in first.findings] == ["spectral-signatures", "deep-knn"]
    assert all(len(finding.scores) == len(TRAIN) for finding in first.findings)
    assert not torch.equal(first.expected, scan(TRAIN, quick(epochs=1), filters, seed=4).expected)


def test_rows_are_named_by_their_ids() -> None:
    """Of a part of a set, the rows on the list are those of the whole."""
    part = TRAIN.drop(torch.arange(20))
    found = scan(part, quick(epochs=1), [SpectralSignatures()])
    assert set(found.suspects(1e9).tolist()) == set(part.ids.tolist())


def test_without_filters_or_models_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="no filter to scan with; name some"):
        scan(TRAIN, quick(), [])
    with pytest.raises(ValueError, match="models is 0"):
        scan(TRAIN, quick(), [SpectralSignatures()], models=0)
