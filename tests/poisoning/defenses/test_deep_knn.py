"""Deep k-NN against a slow vote written from the paper, on planted poison, and against feature collision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import scenario
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.defenses.deep_knn import DeepKNN, votes_of
from tests.poisoning.cases import marked_by, quick, three_classes

TRAIN, _ = three_classes()


def clusters(sizes: list[int], *, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [n, 12] around one mean per class, and labels."""
    rng = stream(seed, "clusters")
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    means = 3 * torch.randn(len(sizes), 12, generator=rng, dtype=torch.float64)
    return means[labels] + spread * torch.randn(len(labels), 12, generator=rng, dtype=torch.float64), labels


def slow(features: Tensor, labels: Tensor, k: int) -> Tensor:
    """The rule with replicas that are really made: row by row, each neighbour as often as its class is small.

    Sizes must divide that of the largest class.
    """
    points, given = features.double().numpy(), labels.numpy()
    counts = np.bincount(given)
    lead = np.empty(len(given))
    for row in range(len(given)):
        order = np.argsort(((points - points[row]) ** 2).sum(1), kind="stable")
        line = [given[other] for other in order if other != row for _ in range(counts.max() // counts[given[other]])]
        votes = np.bincount(line[:k], minlength=len(counts))
        lead[row] = votes[given[row]] - votes.max()
    marked = lead < 0
    for label in range(len(counts)):
        members = np.flatnonzero(given == label)
        marked[members[lead[members].argmax()]] = False
    return torch.from_numpy(marked)


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("sizes", [[60, 60, 60], [120, 60, 20], [100, 10, 5, 50]])
@pytest.mark.parametrize("k", [1, 4, 11, 50])
def test_it_marks_what_the_slow_vote_marks(spread: float, sizes: list[int], k: int) -> None:
    features, labels = clusters(sizes, spread=spread)
    order = torch.randperm(len(labels), generator=stream(1, "order"))
    marked = marked_by(DeepKNN(neighbours=k), features[order], labels[order])
    assert torch.equal(marked, slow(features[order], labels[order], k))


@pytest.mark.parametrize("sizes", [[200, 200, 200], [300, 200, 100]])
def test_mislabelled_rows_are_found_and_others_kept(sizes: list[int]) -> None:
    """The relabelled rows weigh a third of the neighbours at most: all are found."""
    features, labels = clusters(sizes)
    poison = torch.arange(12)
    given = labels.clone()
    given[poison] = 2
    marked = marked_by(DeepKNN(contamination=0.02), features, given)
    assert bool(marked[poison].all())
    assert float(marked[12:].float().mean()) < 0.005


def test_poison_that_is_half_of_the_neighbours_is_not_outvoted() -> None:
    """Twelve rows of one wrong label at one place: with 12 neighbours 11 of them agree, with 24 they are outvoted."""
    features, labels = clusters([200, 200])
    poison = torch.arange(12)
    features[poison] = features[:200].mean(0) + 0.01 * features[poison]
    given = labels.clone()
    given[poison] = 1
    assert not bool(marked_by(DeepKNN(neighbours=12), features, given)[poison].any())
    assert bool(marked_by(DeepKNN(neighbours=24), features, given)[poison].all())


@pytest.mark.parametrize("sizes", [[400, 40], [400, 10, 400]])
def test_a_small_class_keeps_its_rows(sizes: list[int]) -> None:
    """With 41 neighbours its rows would be outvoted wherever it has no 20 of them, however far away the others are."""
    features, labels = clusters(sizes, spread=0.5)
    assert int(marked_by(DeepKNN(neighbours=41), features, labels).sum()) == 0


def test_replicas_stand_where_their_row_stands() -> None:
    weights = torch.tensor([1.0, 2.5, 10.0], dtype=torch.float64)
    near_first = torch.tensor([[0, 1, 0, 2], [2, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected = [[1.0, 2.5, 0.0], [0.0, 0.0, 4.0], [0.0, 4.0, 0.0], [4.0, 0.0, 0.0]]
    expected[0][0] += 0.5  # half a place is left for the third
    assert votes_of(near_first, weights).tolist() == expected


@pytest.mark.parametrize(
    ("contamination", "rows", "asked"), [(0.02, 300, 12), (0.001, 300, 3), (0.01, 301, 7), (0.9, 20, 19)]
)
def test_neighbours_are_twice_the_poison_expected(
    contamination: float, rows: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(features: Tensor, k: int, then) -> Tensor:
        seen.append(k)
        return torch.zeros(len(features), 2, dtype=torch.float64)

    monkeypatch.setattr("mithridate.poisoning.defenses.deep_knn.nearest", spy)
    features, labels = torch.ones(rows, 2), torch.arange(rows) % 2
    marked_by(DeepKNN(contamination=contamination), features, labels)
    marked_by(DeepKNN(contamination=contamination, neighbours=5), features, labels)
    assert seen == [asked, 5]


def test_no_class_is_emptied_whatever_the_features_say() -> None:
    rng = stream(0, "noise")
    labels = torch.tensor([0] * 80 + [1] * 3 + [2])
    for features in (torch.ones(84, 4), torch.randn(84, 4, generator=rng)):
        kept = labels[~marked_by(DeepKNN(neighbours=20), features, labels)]
        assert kept.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [[], [4], [4, 4], [4, 7]])
def test_few_rows_do_no_harm(labels: list[int]) -> None:
    marked = marked_by(DeepKNN(), torch.ones(len(labels), 3), torch.tensor(labels, dtype=torch.int64))
    assert marked.tolist() == [False] * len(labels)


def test_a_fit_says_which_rows_it_kept() -> None:
    given = TRAIN.replace(torch.arange(3), TRAIN.pixels(torch.arange(3)), labels=torch.tensor([1, 2, 0]))
    fitted = DeepKNN(neighbours=9)(quick(epochs=1)).fit([given], [0])
    assert fitted.kept[0] is not None
    assert not bool(torch.isin(torch.arange(3), fitted.kept[0]).any())
    assert len(fitted.kept[0]) > 50


@pytest.mark.parametrize("contamination", [0, 1, 5, -0.1])
def test_settings_that_make_no_sense_are_explained(contamination: float) -> None:
    with pytest.raises(ValueError, match=r"contamination is .*use for example 0\.01 for 1 %"):
        DeepKNN(contamination=contamination)
    with pytest.raises(ValueError, match="neighbours is 0; at least one"):
        DeepKNN(neighbours=0)


@pytest.mark.effect
def test_a_colliding_poison_is_dropped_and_few_clean_rows_are(tmp_path: Path) -> None:
    """Feature collision on fixed features, the paper's case; how many clean rows go is the control."""
    way, store = scenario("transfer", digits_recipe()), Store(tmp_path)
    found, shares, margins = [], [], []
    for seed in range(5):
        trial = Trial(
            data=Digits(),
            threat=PoisonFrogs.threat,
            attack=PoisonFrogs(steps=200),
            defenses=(DeepKNN(contamination=0.02),),
            learner=way.learner,
            pretrain=way.pretrain,
            seed=seed,
        )
        result = run(trial, store)
        plain = run(replace(trial, defenses=()), store)
        found.append(result.defense["removed_poisons"][0])
        shares.append(result.defense["removed"][0] / result.data["train"])
        margins.append(result.outcome["margin"][0][0] - plain.outcome["margin"][0][0])
    assert sum(found) >= 4
    assert max(shares) < 0.1
    assert max(margins) < 0
