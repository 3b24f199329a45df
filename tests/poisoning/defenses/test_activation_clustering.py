"""Activation clustering against planted clusters, scikit-learn by hand, and a backdoor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples
from torch import Tensor

from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.experiments.presets import digits_recipe
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defense import Evidence
from mithridate.poisoning.defenses.activation_clustering import ActivationClustering, split
from tests.poisoning.cases import marked_by


def crowd(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=stream(seed, "crowd"))


def planted(distance: float, count: int = 6) -> tuple[Tensor, Tensor, list[int]]:
    """Three classes of 100 rows; `count` rows of class 1 are moved by so many deviations in one direction."""
    labels = torch.arange(300) % 3
    features = crowd(300, 20, 0) + 4 * torch.eye(20)[labels]
    rows = (torch.arange(count) * 9 + 1).tolist()
    features[rows] += distance * torch.eye(20)[7]
    return features, labels, rows


def test_a_planted_cluster_is_dropped_and_nothing_else() -> None:
    features, labels, rows = planted(25.0)
    assert marked_by(ActivationClustering(), features, labels).nonzero()[:, 0].tolist() == rows


def test_the_part_may_be_no_larger_than_what_is_expected() -> None:
    features, labels, rows = planted(25.0, count=12)
    assert int(marked_by(ActivationClustering(contamination=0.02), features, labels).sum()) == 0  # 9 rows at most
    assert marked_by(ActivationClustering(contamination=0.03), features, labels).nonzero()[:, 0].tolist() == rows


def test_one_cloud_is_no_two_clusters() -> None:
    """A Gaussian class splits with a low silhouette, which alone keeps its smaller half."""
    labels = torch.zeros(200, dtype=torch.int64)
    features = crowd(200, 30, 5)
    _, apart = split(features)
    assert apart < 0.15
    assert int(marked_by(ActivationClustering(contamination=0.4), features, labels).sum()) == 0
    assert 0 < int(marked_by(ActivationClustering(contamination=0.4, silhouette=0.0), features, labels).sum()) <= 100


def test_silhouette_and_sides_are_those_of_scikit_learn() -> None:
    features, _, _ = planted(6.0, count=30)
    rows = features[1::3].double().numpy()
    leaning, apart = split(torch.from_numpy(rows), dimensions=20)  # all directions: PCA only turns them
    sides = KMeans(2, random_state=3).fit_predict(rows)
    smaller = sides == np.bincount(sides).argmin()
    assert apart == pytest.approx(np.asarray(silhouette_samples(rows, sides)).mean(), abs=1e-6)
    assert np.array_equal((leaning > 0).numpy(), smaller)
    assert float(leaning.abs().max()) <= 1 + 1e-9


def test_scores_put_the_planted_rows_first() -> None:
    features, labels, rows = planted(12.0)
    found = ActivationClustering().judge(Evidence(features, features[:, :3], labels))
    assert sorted(found.scores.argsort(descending=True)[: len(rows)].tolist()) == rows
    assert bool(found.scores.isfinite().all())


def test_small_and_equal_classes_are_left_alone() -> None:
    labels = torch.tensor([0] * 5 + [1] * 20 + [2])
    features = torch.ones(26, 4)
    features[0] = 100.0
    found = ActivationClustering(contamination=0.3).judge(Evidence(features, features, labels))
    assert not bool(found.marked.any())
    assert not bool(found.scores.any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contamination": 0}, "contamination is 0"),
        ({"multiplier": 0}, "multiplier is 0"),
        ({"silhouette": 3}, "silhouette is 3"),
        ({"dimensions": 0}, "dimensions is 0"),
    ],
)
def test_wrong_settings_are_refused_before_any_training(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationClustering(**settings)


@pytest.mark.effect
def test_it_finds_a_backdoor_that_is_half_of_its_class() -> None:
    """Nine of ten poisons of three victims in four, and up to a tenth of the clean rows, when this was written."""
    train, _ = Digits().load()
    recipe, threat, defense = (
        digits_recipe(),
        replace(BadNets.threat, budget=0.05),
        ActivationClustering(contamination=0.05),
    )
    recalls, false_alarms = [], []
    for seed in range(4):
        task = threat.draw(train, train, seed)
        poison = BadNets().craft(task, recipe, seed)
        data = poison.apply(train)
        (evidence,) = defense.evidence(recipe, [data], [seed], trusted=None)
        marked, poisoned = defense.judge(evidence).marked, torch.isin(data.ids, poison.rows)
        recalls.append(float(marked[poisoned].float().mean()))
        false_alarms.append(float(marked[~poisoned].float().mean()))
    assert sorted(recalls)[1] > 0.6
    assert np.mean(false_alarms) < 0.08
