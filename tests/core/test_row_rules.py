"""Row rules: the greedy choice against computing everything, planted outliers, and rounds at the right time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mithridate.core import row_rules
from mithridate.core.data import ImageData
from mithridate.core.row_rules import IsolatedGradients, facilities, isolated
from mithridate.core.seeds import stream


def slowly(points: Tensor, count: int) -> list[int]:
    """Computes every gain at every step."""
    distances = (points[:, None] - points).norm(dim=2)
    chosen = [int(distances.sum(1).argmin())]
    nearest = distances[chosen[0]]
    while len(chosen) < count:
        gains = (nearest - distances).clamp_min(0).sum(1).round(decimals=10)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [2**22, 90])
def test_the_lazy_choice_is_the_greedy_one(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_rules, "BLOCK", block)  # in one piece and row by row
    points = torch.randn(60, 5, generator=stream(seed, "points"), dtype=torch.float64).softmax(1)
    assert facilities(points, 25).tolist() == slowly(points, 25)
    assert facilities(points, 100).tolist() == slowly(points, 60)


def test_planted_outliers_are_alone_and_the_farthest_comes_first() -> None:
    crowd = 0.01 * torch.randn(50, 3, generator=stream(1, "crowd"), dtype=torch.float64)
    far = torch.tensor([[5.0, 0, 0], [0, 9.0, 0], [0, 0, 7.0]], dtype=torch.float64)
    found = isolated(torch.cat([crowd[:20], far, crowd[20:]]), medoids=4)
    assert found.tolist() == [21, 22, 20]


def test_points_with_company_are_kept_however_far() -> None:
    pairs = torch.tensor([[0.0], [0.1], [50.0], [50.1], [99.0], [99.1]], dtype=torch.float64)
    assert isolated(pairs, medoids=3).tolist() == []
    equal = torch.zeros(6, 2, dtype=torch.float64)
    assert len(isolated(equal, medoids=3)) < 6


def test_as_many_medoids_as_points_isolate_nobody() -> None:
    assert isolated(torch.eye(4, dtype=torch.float64), medoids=4).tolist() == []


class Says(nn.Module):
    """Logits that are written into the first pixels of each image."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * images[:, 0, 0, :3]


def told(logits: Tensor, labels: Tensor) -> ImageData:
    images = torch.zeros(len(labels), 1, 4, 4)
    images[:, 0, 0, :3] = logits
    return ImageData((images * 255).to(torch.uint8), labels, ("a", "b", "c"))


def crowd_and_strays() -> tuple[ImageData, list[int]]:
    """60 rows that the model gets right with slightly different certainty; rows 7 and 32 it calls another class."""
    labels = torch.arange(60) % 3
    logits = 0.5 * torch.eye(3)[labels] + 0.02 * torch.rand(60, 3, generator=stream(2, "logits"))
    for row in (7, 32):
        logits[row] = torch.eye(3)[(labels[row] + 1) % 3]
    return told(logits, labels), [7, 32]


def test_rows_that_the_model_sees_otherwise_are_dropped() -> None:
    data, strays = crowd_and_strays()
    rule = IsolatedGradients(epochs=10, medoids=0.1, start=0.1, stop=1, every=0.1)
    kept = rule(0.5, Says(), data, stream(0))
    assert set(strays) & set(kept.tolist()) == set()
    assert len(kept) >= 54
    part = data.drop([0, 7])  # ids stay those of the whole set
    again = rule(0.5, Says(), part, stream(0))
    assert 32 not in again.tolist()
    assert set(again.tolist()) <= set(part.ids.tolist())


def test_a_class_loses_no_more_than_it_may_and_never_all() -> None:
    labels = torch.tensor([0] * 20 + [1] * 2)
    logits = torch.rand(22, 3, generator=stream(3, "logits"))
    data = told(logits, labels)
    for most in (0.05, 0.4):
        rule = IsolatedGradients(epochs=1, medoids=0.9, start=0, stop=1, every=1, most=most)
        kept = labels[rule(1.0, Says(), data, stream(0))]
        assert int((kept == 1).sum()) >= 1
        assert 20 - int((kept == 0).sum()) <= max(1, -(-int(most * 22 * 100) // 100))


def test_rounds_come_at_the_right_epochs() -> None:
    data, _ = crowd_and_strays()
    rule = IsolatedGradients(epochs=20, medoids=0.1, start=0.25, stop=0.5, every=0.1)
    assert [epoch for epoch in range(1, 21) if rule.due(epoch / 20)] == [5, 7, 9]
    for epoch in range(1, 21):
        assert (len(rule(epoch / 20, Says(), data, stream(0))) < 60) == (epoch in (5, 7, 9))
    often = IsolatedGradients(epochs=12)
    assert [epoch for epoch in range(1, 13) if often.due(epoch / 12)] == list(range(3, 11))


def test_it_asks_in_eval_mode_and_leaves_the_model_alone() -> None:
    data, _ = crowd_and_strays()
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rule = IsolatedGradients(epochs=1, start=0, stop=1, every=1)
    first, again = (rule(1.0, model, data, stream(seed)) for seed in (0, 1))
    assert torch.equal(first, again)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"medoids": 1.5}, "medoids is 1.5; it is a share"),
        ({"most": 0}, "most is 0; it is a share"),
        ({"start": 0.9, "stop": 0.5}, "start is 0.9 and stop 0.5"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IsolatedGradients(**({"epochs": 10} | settings))
