"""ThreatModel: what it allows, what it draws, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.core.balls import Linf, Patch
from mithridate.core.data import ImageData
from mithridate.core.schema import from_json, identity, to_json
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Backdoor, FixedCase, Misclassify, ThreatModel
from tests.poisoning.cases import CLASSES, scripted, three_classes

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


def test_several_targets_are_of_one_class_and_share_an_intended_one() -> None:
    for seed in range(5):
        task = ThreatModel(budget=0.1, targets=3).draw(TRAIN, TEST, seed)
        assert len(task.targets) == len(task.target_rows.unique()) == 3
        assert task.true_labels.unique().numel() == task.intended.unique().numel() == 1
        assert int(task.true_labels[0]) != int(task.intended[0])


def test_classes_that_the_training_set_lacks_are_not_drawn_and_are_named() -> None:
    four = ("ant", "bee", "cat", "dog")
    train, test = (ImageData(data.images, data.labels, four) for data in (TRAIN, TEST))
    case = FixedCase(target_rows=(0,), intended="bee")
    for seed in range(8):
        third = ThreatModel(budget=0.1, poison_class="third", case=case).draw(train, test, seed)
        assert third.poison_class == "cat"
    with pytest.raises(
        ValueError, match="poison_class is 'intended', but the training set has no image of class 'dog'"
    ):
        ThreatModel(case=FixedCase(target_rows=(0,), intended="dog")).draw(train, test, 0)


def test_a_backdoor_with_several_source_classes_has_its_words_and_candidates() -> None:
    threat = ThreatModel(budget=0.1, goal=Backdoor(intended="bee"), poison_class="target")
    task = threat.draw(TRAIN, TEST, 0)
    assert set(TRAIN.labels_of(task.candidates).tolist()) == {0, 2}
    assert task.poison_class == "any but bee"
    assert "class: any but bee" in task.describe()
    one = ThreatModel(budget=0.1, goal=Backdoor(intended="bee", sources="ant"), poison_class="third")
    assert one.draw(TRAIN, TEST, 0).poison_class == "cat"


# --- a user's own images ---------------------------------------------------------------------------------------------


def save(file: Path, *, side: int = 8, grey: bool = False) -> Path:
    drawn = torch.randint(256, (side, side) if grey else (side, side, 3), generator=torch.Generator().manual_seed(side))
    Image.fromarray(drawn.to(torch.uint8).numpy()).save(file)
    return file


def test_images_of_ones_own_join_the_test_set_as_targets_only(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    files = (save(tmp_path / "dog.png"), folder)
    inside = [save(folder / "a.png", side=20), save(folder / "b.png", grey=True)]
    threat = ThreatModel(
        budget=0.1, poison_class="target", case=FixedCase(target_files=files, true="bee", intended="cat")
    )
    for test in (TEST, TEST.drop(torch.arange(10))):
        task = threat.draw(TRAIN, test, 0)
        assert task.target_rows.tolist() == [30, 31, 32]
        assert task.true_labels.tolist() == [1, 1, 1]
        assert task.intended.tolist() == [2, 2, 2]
        assert task.target_files == tuple(map(str, (files[0], *inside)))
        assert task.case()["target_files"] == list(task.target_files)
        assert task.case()["target_classes"] == ["bee"] * 3
        expected = np.asarray(Image.open(files[0])).transpose(2, 0, 1)
        np.testing.assert_array_equal(task.test.pixels(task.target_rows)[0].numpy(), expected)
        assert torch.equal(task.test.ids[: len(test)], test.ids)
        assert torch.equal(task.test.pixels(test.ids), test.pixels(test.ids))
        assert set(TRAIN.labels_of(task.candidates).tolist()) == {1}
    assert "3 given images of class bee are classified as cat" in task.describe()


def test_accuracy_does_not_know_of_images_of_ones_own(tmp_path: Path) -> None:
    case = FixedCase(target_files=(save(tmp_path / "dog.png"),), true="bee", intended="cat")
    task = ThreatModel(budget=0.1, case=case).draw(TRAIN, TEST.replace([0], TEST.images[1:2]), 0)
    own = task.targets

    def answer(images: torch.Tensor) -> torch.Tensor:  # "cat" for the user's image, "ant" for all others
        mine = (images == own).flatten(1).all(1).float()
        return torch.stack([1 - mine, torch.zeros_like(mine), mine], 1)[None]

    outcome = task.outcome(scripted(answer), Poison.empty(task))
    assert outcome["success"].tolist() == [[True]]
    assert outcome["correct"].tolist() == [[False]]
    assert float(outcome["accuracy"]) == pytest.approx(10 / 30)


def test_a_set_stored_channels_last_stays_that_way(tmp_path: Path) -> None:
    images = TEST.images.contiguous(memory_format=torch.channels_last)
    case = FixedCase(target_files=(save(tmp_path / "dog.png"),), true="bee", intended="cat")
    task = ThreatModel(case=case).draw(TRAIN, ImageData(images, TEST.labels, CLASSES), 0)
    assert task.test.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(task.test.images[:30], TEST.images)


@pytest.mark.parametrize(
    ("settings", "error", "hint"),
    [
        ({"target_files": ("no.png",), "true": "bee"}, FileNotFoundError, r"is called .*no\.png"),
        ({"target_files": ("empty",), "true": "bee"}, ValueError, "holds no image files"),
        ({"target_files": ("bad.png",), "true": "bee"}, ValueError, r"bad\.png: not an image"),
        ({"target_files": ("dog.png",), "true": "2"}, ValueError, r"dog\.png truly is of the intended class 'cat'"),
        ({"target_files": ("dog.png",), "true": "dog"}, ValueError, "no class 'dog'; expected"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    settings: dict, error: type[Exception], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("dog.png"))
    Path("bad.png").write_bytes(b"no picture")
    Path("empty").mkdir()
    with pytest.raises(error, match=hint):
        ThreatModel(case=FixedCase(intended="cat", **settings)).draw(TRAIN, TEST, 0)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"target_rows": (1,), "target_files": ("a.png",)}, "both given"),
        ({"target_files": ("a.png",)}, r"true is not given; say which class a\.png truly shows"),
        ({"target_rows": (1,), "true": "bee"}, "true is 'bee', but rows of the test set have their label"),
        ({"target_rows": (1, 2, 1)}, "target_rows names row 1 more than once"),
        ({"target_rows": (1,), "poison_rows": (4, 4)}, "poison_rows names row 4 more than once"),
        ({"target_rows": (1,), "poison_rows": ()}, "poison_rows is empty"),
    ],
)
def test_a_case_that_contradicts_itself_is_refused(settings: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        FixedCase(intended="cat", **settings)


def test_a_case_as_people_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FixedCase.of("17", "cat") == FixedCase(target_rows=(17,), intended="cat")
    assert FixedCase.of("17, 18", "cat") == FixedCase(target_rows=(17, 18), intended="cat")
    assert FixedCase.of("a.png,photos", "cat", "dog").target_files == (Path("a.png"), Path("photos"))
    assert FixedCase.of("./17", "cat", "dog").target_files == (Path("17"),)
    save(Path("one,two.png"))
    assert FixedCase.of("one,two.png", "cat", "dog").target_files == (Path("one,two.png"),)
    assert FixedCase(target_files="a.png", true=3, intended=0) == FixedCase.of("a.png", "0", "3")  # type: ignore[arg-type]
    for nothing in ("", " , "):
        with pytest.raises(ValueError, match="name at least one row"):
            FixedCase.of(nothing, "cat")


def test_a_case_with_files_is_written_with_its_paths_and_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("dog.png"))
    threat = ThreatModel(case=FixedCase.of("dog.png", "cat", "bee"))
    written = json.loads(json.dumps(to_json(threat)))
    assert written["case"]["target_files"] == ["dog.png"]
    assert from_json(written, ThreatModel) == threat
    Path("copy.png").write_bytes(Path("dog.png").read_bytes())
    before = identity(threat)
    assert identity(ThreatModel(case=FixedCase.of("copy.png", "cat", "bee"))) == before
    save(Path("dog.png"), side=9)
    assert identity(threat) != before


@pytest.mark.parametrize(
    "threat",
    [
        ThreatModel(),
        ThreatModel(budget=0.05, ball=Patch(area=0.1), goal=Backdoor(intended="3"), relabel=True, poison_class="any"),
        ThreatModel(goal=Misclassify(), case=FixedCase(target_rows=(1, 2), intended="cat", poison_rows=(3,))),
        ThreatModel(case=FixedCase(target_rows=(1,), intended=0)),  # type: ignore[arg-type]
        ThreatModel(ball=Linf(eps=8 / 255) + Patch(area=0.1)),
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
    assert "2 test images that the case names to be classified as 'cat'" in fixed
    own = ThreatModel(case=FixedCase.of("a.png,b.png", "cat", "dog"), poison_class="target").describe()
    assert "images of the class that the targets truly have" in own
    assert "wants the images in a.png, b.png (truly 'dog') to be classified as 'cat'." in own
    triggered = ThreatModel(goal=Backdoor(), case=FixedCase(target_rows=(1,), intended="cat")).describe()
    assert "carries the trigger" in triggered
