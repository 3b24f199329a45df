"""ThreatModel: what it allows, what it draws, what it refuses."""

from __future__ import annotations

import pytest
import torch

from mithridate.core.balls import Linf, Patch
from mithridate.core.data import ImageData
from mithridate.core.schema import from_json, identity, to_json
from mithridate.poisoning.threat import Backdoor, FixedCase, Misclassify, ThreatModel
from tests.poisoning.cases import CLASSES, three_classes

TRAIN, TEST = three_classes()


@pytest.mark.parametrize(
    ("budget", "hint"),
    [
        (1.5, r"budget is 1\.5; it is a fraction of the training set, so use 0\.015 for 1\.5 %"),
        (0, r"budget is 0; .* so use 0\.01 for 1 %"),
        (-1, "budget is -1"),
        (float("nan"), "budget is nan"),
    ],
)
def test_a_budget_that_is_no_fraction_is_explained(budget: float, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        ThreatModel(budget=budget)


def test_other_settings_are_checked_too() -> None:
    with pytest.raises(ValueError, match="targets is 0"):
        ThreatModel(targets=0)
    with pytest.raises(ValueError, match=r"poison_class is 'base'; expected one of: intended, target, third, any"):
        ThreatModel(poison_class="base")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target_rows is empty"):
        FixedCase(target_rows=(), intended="cat")


@pytest.mark.parametrize(("budget", "limit"), [(0.1, 6), (0.11, 7), (0.0001, 1), (0.05, 3), (1 / 3, 20)])
def test_the_budget_is_rounded_up_to_whole_rows(budget: float, limit: int) -> None:
    assert ThreatModel(budget=budget).draw(TRAIN, TEST, 0).limit == limit


def test_rounding_is_not_led_astray_by_floats() -> None:
    hundred = TRAIN.select(TRAIN.ids[:50])
    assert (
        ThreatModel(budget=0.14, poison_class="any").draw(hundred, TEST, 0).limit == 7
    )  # 0.14 * 50 is 7.000000000000001


def test_zero_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"budget 1e-09 of 60 training images is 0 rows; use at least 0\.017"):
        ThreatModel(budget=1e-9).draw(TRAIN, TEST, 0)


def test_more_poisons_than_candidates_are_an_error_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"is 30 poisons, but only 20 images \(class: \w+\).*at most 0\.333333"):
        ThreatModel(budget=0.5).draw(TRAIN, TEST, 0)
    assert ThreatModel(budget=0.333333).draw(TRAIN, TEST, 0).limit == 20


@pytest.mark.parametrize("seed", range(8))
def test_candidates_are_of_the_class_that_the_threat_model_says(seed: int) -> None:
    drawn = {
        name: ThreatModel(budget=0.1, poison_class=name).draw(TRAIN, TEST, seed)  # type: ignore[arg-type]
        for name in ("intended", "target", "third", "any")
    }
    labels = {name: set(TRAIN.labels_of(task.candidates).tolist()) for name, task in drawn.items()}
    true, intended = int(drawn["any"].true_labels[0]), int(drawn["any"].intended[0])
    assert labels == {"intended": {intended}, "target": {true}, "third": {3 - true - intended}, "any": {0, 1, 2}}
    assert drawn["third"].case()["poison_class"] == CLASSES[3 - true - intended]
    assert drawn["any"].case()["poison_class"] == "any"
    assert all(torch.equal(task.target_rows, drawn["any"].target_rows) for task in drawn.values())


def test_candidates_are_visible_rows_only() -> None:
    half = TRAIN.drop(torch.arange(30))
    task = ThreatModel(budget=0.1, poison_class="any").draw(half, TEST, 0)
    assert task.candidates.tolist() == list(range(30, 60))
    assert task.limit == 3


def test_a_third_class_needs_a_third_class() -> None:
    with pytest.raises(ValueError, match="poison_class is 'third', but every class"):
        ThreatModel(goal=Backdoor(), poison_class="third").draw(TRAIN, TEST, 0)


def test_a_backdoor_draws_one_intended_class_for_all_triggered_images() -> None:
    task = ThreatModel(budget=0.1, goal=Backdoor(), ball=Patch(area=0.1)).draw(TRAIN, TEST, 1)
    assert task.intended.unique().numel() == 1
    assert len(task.target_rows) == 20
    assert torch.equal(task.targets, TEST.floats(task.target_rows))
    assert set(TRAIN.labels_of(task.candidates).tolist()) == {int(task.intended[0])}


def test_a_fixed_case_replaces_the_draw() -> None:
    case = FixedCase(target_rows=(4, 5), intended="ant", poison_rows=(9, 0, 3))
    for seed in range(3):
        task = ThreatModel(budget=0.1, case=case).draw(TRAIN, TEST, seed)
        assert task.target_rows.tolist() == [4, 5]
        assert task.intended.tolist() == [0, 0]
        assert task.candidates.tolist() == [0, 3, 9]
        assert task.limit == 3
        assert task.choose(seed).tolist() == [0, 3, 9]


def test_a_fixed_case_without_poison_rows_leaves_the_choice_of_rows() -> None:
    case = FixedCase(target_rows=(4,), intended="2")
    task = ThreatModel(budget=0.1, poison_class="target", case=case).draw(TRAIN, TEST, 0)
    assert task.case() == {
        "goal": "misclassify",
        "target_rows": [4],
        "target_classes": ["bee"],
        "intended": ["cat"],
        "poison_class": "bee",
    }
    assert set(TRAIN.labels_of(task.candidates).tolist()) == {1}


@pytest.mark.parametrize(
    ("case", "hint"),
    [
        (FixedCase(target_rows=(4,), intended="bee"), "target row 4 truly is of the intended class 'bee'"),
        (FixedCase(target_rows=(30,), intended="ant"), "target_rows: row 30 is not in the test set of 30 images"),
        (FixedCase(target_rows=(4,), intended="dog"), "no class 'dog'"),
        (
            FixedCase(target_rows=(4,), intended="ant", poison_rows=(99,)),
            "poison_rows: row 99 is not in the training set",
        ),
        (
            FixedCase(target_rows=(4,), intended="ant", poison_rows=tuple(range(7))),
            r"poison_rows names 7 rows, but budget 0\.1 of 60 training images is 6; use a budget of at least 0\.116667",
        ),
    ],
)
def test_a_fixed_case_that_does_not_fit_is_refused(case: FixedCase, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        ThreatModel(budget=0.1, case=case).draw(TRAIN, TEST, 0)


def test_sets_that_do_not_fit_together_are_refused() -> None:
    renamed = ImageData(TEST.images, TEST.labels, ("a", "b", "c"))
    with pytest.raises(ValueError, match="classes"):
        ThreatModel().draw(TRAIN, renamed, 0)
    with pytest.raises(ValueError, match=r"training images are \(3, 8, 8\) and test images \(3, 4, 4\)"):
        ThreatModel().draw(TRAIN, ImageData(TEST.images[:, :, :4, :4], TEST.labels, CLASSES), 0)
    with pytest.raises(ValueError, match="the training set holds 1 class"):
        ThreatModel().draw(TRAIN.select(TRAIN.ids[TRAIN.labels == 0]), TEST, 0)
    few = TEST.select(torch.arange(1))
    with pytest.raises(ValueError, match="all 1 test images are targets"):
        ThreatModel(case=FixedCase(target_rows=(0,), intended="cat")).draw(TRAIN, few, 0)


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(),
        ThreatModel(budget=0.05, ball=Patch(area=0.1), goal=Backdoor(intended="3"), relabel=True, poison_class="any"),
        ThreatModel(goal=Misclassify(), case=FixedCase(target_rows=(1, 2), intended="cat", poison_rows=(3,))),
        ThreatModel(case=FixedCase(target_rows=(1,), intended=0)),  # type: ignore[arg-type]
    ],
)
def test_a_threat_model_survives_json(threat: ThreatModel) -> None:
    back = from_json(to_json(threat), ThreatModel)
    assert back == threat
    assert identity(back) == identity(threat)


def test_the_description_names_what_matters() -> None:
    text = ThreatModel(budget=0.02, ball=Linf(eps=8 / 255), relabel=True, poison_class="third", targets=3).describe()
    for part in ("2 %", "8/255", "neither", "may change too", "3 test images"):
        assert part in text
    assert "trigger (at most 0.1 of its pixels)" in ThreatModel(goal=Backdoor()).describe()
    fixed = ThreatModel(case=FixedCase(target_rows=(1, 2), intended="cat", poison_rows=(3,))).describe()
    assert "the rows that the case names" in fixed
    assert "2 test images" in fixed
