"""Confident learning: cleanlab's scores of rows that their model has not seen, and planted wrong labels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mithridate.core.extras import MissingExtra
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.experiments.presets import digits_recipe
from mithridate.poisoning.defense import Evidence
from mithridate.poisoning.defenses.confident_learning import ConfidentLearning
from tests.poisoning.cases import quick, three_classes
from tests.poisoning.spy import Spy

pytest.importorskip("cleanlab", reason="cleanlab is an optional extra (pip install 'mithridate[cleanlab]')")
TRAIN, _ = three_classes()


def evidence(seed: int = 0) -> Evidence:
    rng = stream(seed, "evidence")
    labels = torch.arange(60) % 3
    return Evidence(torch.rand(60, 4, generator=rng), 2 * torch.randn(60, 3, generator=rng), labels)


def test_self_confidence_is_one_minus_the_share_of_the_label() -> None:
    given = evidence()
    found = ConfidentLearning(contamination=0.1, multiplier=1).judge(given)
    shares = given.logits.double().softmax(1)
    expected = 1 - shares[torch.arange(60), given.labels]
    assert torch.allclose(found.scores, expected, atol=1e-9)
    assert found.marked.nonzero()[:, 0].tolist() == sorted(expected.argsort(descending=True)[:6].tolist())
    gradient = shares - torch.eye(3, dtype=torch.float64)[given.labels]
    assert torch.allclose(found.scores, gradient.abs().sum(1) / 2, atol=1e-9)


@pytest.mark.parametrize("quality", ["normalized_margin", "confidence_weighted_entropy"])
def test_other_scores_are_cleanlabs(quality) -> None:
    from cleanlab.rank import get_label_quality_scores

    given = evidence()
    shares = given.logits.double().softmax(1).numpy()
    found = ConfidentLearning(quality=quality).judge(given)
    assert np.allclose(1 - found.scores.numpy(), get_label_quality_scores(given.labels.numpy(), shares, method=quality))


def test_each_row_is_judged_by_a_model_that_has_not_seen_it() -> None:
    asked: list = []
    data = TRAIN.drop([0, 4])
    (found,) = ConfidentLearning(folds=3).evidence(Spy(quick(), asked), [data], [7], trusted=None)
    assert [len(call[0]) for call in asked] == [1, 1, 1]
    seen, seeds = [call[0][0] for call in asked], [call[1][0] for call in asked]
    assert len(set(seeds)) == 3
    left_out = [set(data.ids.tolist()) - set(rows) for rows in seen]
    assert sorted(row for fold in left_out for row in fold) == data.ids.tolist()
    assert torch.equal(found.labels, data.labels_of(data.ids))
    models = quick().fit([data.select(torch.tensor(rows)) for rows in seen], seeds).models
    for fold, model in zip(left_out, models, strict=True):
        with torch.no_grad():
            logits = model(data.floats(data.ids))
        places = [place for place, row in enumerate(data.ids.tolist()) if row in fold]
        assert torch.allclose(found.logits[places], logits[places], atol=1e-4)


def test_no_class_is_emptied() -> None:
    labels = torch.tensor([0] * 57 + [1] * 2 + [2])
    logits = torch.zeros(60, 3)
    logits[:, 0] = 9.0
    marked = ConfidentLearning(contamination=0.5).judge(Evidence(logits, logits, labels)).marked
    assert all(int((~marked[labels == label]).sum()) >= 1 for label in range(3))


def test_without_cleanlab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(MissingExtra, match=r"confident-learning needs cleanlab.*mithridate\[cleanlab\]"):
        ConfidentLearning()(quick())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contamination": 1}, "contamination is 1"),
        ({"multiplier": 0}, "multiplier is 0"),
        ({"folds": 1}, "folds is 1; at least 2"),
        ({"quality": "mine"}, "quality is 'mine'; use one of self_confidence"),
    ],
)
def test_wrong_settings_are_refused_before_any_training(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfidentLearning(**settings)
    with pytest.raises(ValueError, match="60 rows cannot be split into 61 folds"):
        ConfidentLearning(folds=61).evidence(quick(), [TRAIN], [0], trusted=None)


@pytest.mark.effect
def test_it_finds_wrong_labels_of_digits() -> None:
    """26 to 30 of 30 among the 45 rows dropped when this was written."""
    train, _ = Digits().load()
    rows = torch.randperm(1000, generator=stream(3, "rows"))[:30]
    data = train.replace(rows, train.pixels(rows), (train.labels[rows] + 4) % 10)
    defense = ConfidentLearning(contamination=0.03)
    (found,) = defense.evidence(digits_recipe(), [data], [0], trusted=None)
    marked = defense.judge(found).marked
    assert int(marked.sum()) == 45
    assert int(marked[rows].sum()) >= 24
