"""The benchmark of filters runs in small form, and what it compares mithridate with marks the same rows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import filters
from benchmarks.measure import Row, Setup
from benchmarks.reference import filtering
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.seeds import stream
from mithridate.core.training import predictor_of
from mithridate.poisoning.defenses.deep_knn import DeepKNN
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.defenses.strip import Strip
from tests.poisoning.cases import marked_by, small_net, three_classes

SMALL = Setup(small=True)


def test_every_filter_runs_small_beside_a_form_that_agrees_with_it() -> None:
    report = filters.run(SMALL)
    cases: dict[str, list[Row]] = {}
    for row in report.rows:
        cases.setdefault(row.case, []).append(row)
    *raced, fresh = cases.values()
    assert [rows[0].case.split()[0].strip(",") for rows in raced] == ["spectral-signatures", "deep-knn", "strip"]
    assert [row.unit for row in fresh] == ["cpu seconds", "MB at the peak"]
    for rows in raced:
        assert [row.role for row in rows[:3]] == ["mithridate", "straightforward", "variant"]
        assert rows[-1].arm.startswith("product of large")
        for row in rows[:-1]:
            assert row.note.endswith(" 0 differently") or row.role == "control"
            assert row.value is not None
            assert row.value > 0
            assert row.ceiling_share is not None
    assert len(report.claims) == 7
    assert report.claims[-1].claim.endswith("MB at the peak")
    assert report.claims[-1].holds


def test_features_have_as_many_wrong_labels_of_each_class() -> None:
    features, labels = filters.features_of(2_000, 8, "cpu")
    assert torch.bincount(labels).tolist() == [200] * 10
    assert int((labels != torch.arange(2_000) % 10).sum()) == 20
    assert features.dtype == torch.float32


@pytest.mark.parametrize("k", [1, 20, 60])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_every_way_to_vote_marks_the_same_rows(k: int, scale: float) -> None:
    features, labels = filters.features_of(1_000, 12, "cpu")
    features += (scale - 1) * torch.stack([features[labels == label].mean(0) for label in range(10)])[labels]
    expected = filtering.knn_plain(features, labels, k)
    assert torch.equal(marked_by(DeepKNN(neighbours=k), features, labels), expected)
    assert torch.equal(filtering.knn_whole(features, labels, k), expected)
    assert torch.equal(filtering.knn_blocks(features, labels, k, block=64), expected)
    assert torch.equal(filtering.knn_tiles(features, labels, k, block=64, width=90), expected)
    assert int(expected.sum()) >= 5


def test_every_way_to_score_marks_the_same_rows() -> None:
    features, labels = filters.features_of(1_000, 24, "cpu")
    expected = marked_by(SpectralSignatures(contamination=0.01), features, labels)
    assert int(expected.sum()) == 150
    assert torch.equal(filtering.spectral_plain(features, labels, 15), expected)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(filtering.spectral_by_covariance(features, labels, 15, dtype), expected)


def test_every_way_to_blend_refuses_the_same_images() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(small_net(3), nn.Linear(3, 3)).eval()
    _, data = three_classes(test=150)
    clean: ImageData = data.select(data.ids[:90])
    images = data.floats(data.ids[90:])
    guard = Strip(overlays=20, calibration=70, false_alarms=0.3)
    with torch.no_grad():
        expected = guard.calibrated(predictor_of(Ensemble([network])), clean, 5)(images)[0]
    order = clean.ids[torch.randperm(90, generator=stream(5, "strip"))]
    blended, held = clean.floats(order[:20]), clean.floats(order[20:])
    for entropies in (filtering.entropies_plain, partial(filtering.entropies_in_chunks, blends=50)):
        refused = filtering.refused(entropies(network, images, blended), entropies(network, held, blended), 0.3)
        assert torch.equal(refused, expected)
    assert 5 <= int(expected.sum()) <= 40


@pytest.mark.skipif(not filters.STATUS.exists(), reason="only Linux says what a process took at its peak")
def test_the_peak_counts_what_is_freed_again() -> None:
    block = torch.ones(2**24)
    during = filters.peak("cpu")
    del block
    assert filters.peak("cpu") >= during - 8  # the kernel adds up its counters now and then
    assert during >= 64
