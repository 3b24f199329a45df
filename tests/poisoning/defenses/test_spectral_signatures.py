"""Spectral signatures against numpy's SVD, and against a backdoor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures, largest_eigenvector, spectral_scores
from tests.poisoning.cases import marked_by, quick, three_classes

TRAIN, _ = three_classes()


@pytest.mark.parametrize(("rows", "columns"), [(40, 7), (6, 30), (200, 64), (600, 200), (150, 400)])
def test_scores_equal_numpys_singular_vectors(rows: int, columns: int) -> None:
    features = np.random.default_rng(rows).normal(size=(rows, columns)) * np.geomspace(3, 0.1, columns) + 5
    centred = features - features.mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    assert np.allclose(spectral_scores(torch.from_numpy(features)).numpy(), (centred @ direction) ** 2, rtol=1e-8)


@pytest.mark.parametrize("rank", [0, 1, 5, 150])
def test_the_largest_eigenvector_is_lapacks_whatever_the_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    rows = rng.normal(size=(rank, 300)) * np.geomspace(5, 1, rank)[:, None]
    value, vector = largest_eigenvector(torch.from_numpy(rows.T @ rows))
    expected = np.linalg.norm(rows, 2) ** 2 if rank else 0.0
    assert float(value) == pytest.approx(expected)
    assert rank == 0 or np.linalg.norm(rows @ vector.numpy()) ** 2 == pytest.approx(expected)


def test_it_does_not_stop_at_a_direction_that_one_feature_has_for_itself() -> None:
    """The feature of the largest variance is an eigenvector, but not the largest."""
    matrix = torch.block_diag(10 * torch.eye(1), torch.ones(199, 199)).double()
    value, vector = largest_eigenvector(matrix)
    assert float(value) == pytest.approx(199)
    assert abs(float(vector[0])) < 1e-10


def test_eigenvalues_that_nearly_agree_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too close for the steps of the search: all eigenvectors are computed, of the full matrix."""
    sizes, eigh = [], torch.linalg.eigh
    basis = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    values = torch.linspace(1, 1 + 1e-3, 200, dtype=torch.float64)

    def spy(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", spy)
    _, vector = largest_eigenvector(basis @ torch.diag(values) @ basis.T)
    assert sizes == [64, 200]
    assert abs(float(vector @ basis[:, -1])) == pytest.approx(1, abs=1e-8)


def test_a_small_far_cluster_scores_highest() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 16))
    features[:10] += 8 * rng.normal(size=16)
    worst = spectral_scores(torch.from_numpy(features)).argsort(descending=True)[:10]
    assert sorted(worst.tolist()) == list(range(10))


def test_every_class_loses_as_many_rows_as_could_be_poison_but_never_all() -> None:
    labels = torch.tensor([0] * 50 + [1] * 45 + [2] * 5)
    features = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    marked = marked_by(SpectralSignatures(contamination=0.05, multiplier=1.5), features, labels)
    assert [int(marked[labels == c].sum()) for c in range(3)] == [8, 8, 4]  # ceil(1.5 * 0.05 * 100) = 8
    for c in (0, 1):
        members = (labels == c).nonzero()[:, 0]
        highest = members[np.argsort(-spectral_scores(features[members]).numpy())[:8]]
        assert sorted(highest.tolist()) == (marked & (labels == c)).nonzero()[:, 0].tolist()


def test_equal_features_and_single_rows_do_no_harm() -> None:
    for columns in (4, 300):
        marked = marked_by(SpectralSignatures(), torch.ones(5, columns), torch.tensor([0, 0, 0, 0, 1]))
        assert int(marked.sum()) == 1
        assert not bool(marked[4])


def test_a_fit_says_which_rows_it_kept() -> None:
    fitted = SpectralSignatures(contamination=0.05)(quick()).fit([TRAIN], [0])
    assert fitted.kept[0] is not None
    assert len(fitted.kept[0]) == 60 - 3 * 5  # ceil(1.5 * 0.05 * 60) = 5 per class
    assert torch.bincount(TRAIN.labels_of(fitted.kept[0])).tolist() == [15, 15, 15]


@pytest.mark.parametrize("contamination", [0, 1, 5, -0.1])
def test_a_contamination_that_is_no_fraction_is_explained(contamination: float) -> None:
    with pytest.raises(ValueError, match=r"contamination is .*use for example 0\.01 for 1 %"):
        SpectralSignatures(contamination=contamination)
    with pytest.raises(ValueError, match="multiplier is 0"):
        SpectralSignatures(multiplier=0)


@pytest.mark.effect
def test_marked_rows_are_dropped_more_often_than_clean_rows_of_their_class() -> None:
    """On digits the signature is there but weak: clean rows of the same class are the control."""
    train, test = Digits().load()
    recipe = Recipe(epochs=30, batch_size=64, transforms=(), precision="fp32")
    gaps = []
    for seed in range(6):
        task = BadNets.threat.draw(train, test, seed)
        poison = BadNets().craft(task, recipe, seed)
        data = poison.apply(train)
        models = recipe.fit([data], [seed]).models  # a filter's first fit
        with torch.no_grad():
            (found,) = models.features(data.floats(data.ids))
        dropped = marked_by(SpectralSignatures(contamination=0.05), found, data.labels_of(data.ids))
        poisoned = torch.isin(data.ids, poison.rows)
        clean = (data.labels_of(data.ids) == task.intended[0]) & ~poisoned
        gaps.append(float(dropped[poisoned].float().mean() - dropped[clean].float().mean()))
    assert np.mean(gaps) > 0.1
    assert sum(gap > 0 for gap in gaps) >= 5
