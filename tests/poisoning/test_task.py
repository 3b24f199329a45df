"""Task: choosing rows, judging poison on 8-bit pixels, measuring victims."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mithridate.core.balls import L2, Linf, Patch
from mithridate.core.states import EVALUATION_BATCH
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import predict
from mithridate.poisoning.threat import Availability, Backdoor, FixedCase, Task, ThreatModel, ThreatModelViolation
from mithridate.poisoning.triggers import PatchTrigger, Trigger
from tests.poisoning.cases import scripted, three_classes

TRAIN, TEST = three_classes()
EPS = 8 / 255


def task(**settings) -> Task:
    return ThreatModel(**({"budget": 0.1, "ball": Linf(eps=EPS)} | settings)).draw(TRAIN, TEST, 0)


def shifted(case: Task, levels: int, seed: int = 0) -> Poison:
    """Chosen rows, every pixel moved by `levels` of 255 (towards mid grey, so that nothing is clipped)."""
    rows = case.choose(seed)
    pixels = TRAIN.pixels(rows).int()
    return Poison(rows, torch.where(pixels < 128, pixels + levels, pixels - levels).to(torch.uint8))


# --- choosing --------------------------------------------------------------------------------------------------------


def test_chosen_rows_are_candidates_sorted_and_as_many_as_allowed() -> None:
    case = task()
    rows = case.choose(3)
    assert len(rows) == case.limit == 6
    assert bool((rows.diff() > 0).all())
    assert bool(torch.isin(rows, case.candidates).all())
    assert torch.equal(rows, case.choose(3))
    assert not torch.equal(rows, case.choose(4))


def test_every_candidate_is_chosen_about_equally_often() -> None:
    case = task()
    counts = torch.bincount(torch.cat([case.choose(seed) for seed in range(500)]), minlength=60)[case.candidates]
    assert int(counts.min()) > 110  # 6 of 20 rows, 500 times: 150 expected, standard deviation 10
    assert int(counts.max()) < 190


def test_scores_decide_and_the_seed_breaks_ties() -> None:
    case = task()
    scores = torch.arange(20).float()
    assert torch.equal(case.choose(0, scores), case.candidates[-6:])
    tied = torch.tensor([1.0] * 5 + [0.0] * 15)
    first, second = case.choose(0, tied), case.choose(1, tied)
    for rows in (first, second):
        assert bool(torch.isin(case.candidates[:5], rows).all())
    assert not torch.equal(first, second)


def test_scores_of_the_wrong_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one number for each of the 20 candidates"):
        task().choose(0, torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        task().choose(0, torch.full((20,), torch.nan))


def test_relabelling_prefers_rows_that_do_not_have_the_intended_label() -> None:
    case = task(poison_class="any", relabel=True, budget=0.5)
    assert bool((TRAIN.labels_of(case.choose(0)) != case.intended[0]).all())
    keeping = task(poison_class="any", budget=0.5)
    assert bool((TRAIN.labels_of(keeping.choose(0)) == keeping.intended[0]).any())


# --- judging ---------------------------------------------------------------------------------------------------------


def test_poison_inside_the_threat_model_passes() -> None:
    case = task()
    case.check(shifted(case, 8))
    case.check(Poison.empty(case))
    fewer = shifted(case, 8)
    case.check(Poison(fewer.rows[:2], fewer.images[:2]))


def test_one_level_too_far_is_a_violation_with_numbers() -> None:
    case = task()
    with pytest.raises(ThreatModelViolation, match=r"6 of 6 outside the ball.*9/255 of a pixel.*8/255 \(Linf\)"):
        case.check(shifted(case, 9))


def test_one_pixel_of_one_image_is_enough() -> None:
    case = task()
    poison = shifted(case, 8)
    images = poison.images.clone()
    images[4, 2, 7, 7] = TRAIN.pixels(poison.rows)[4, 2, 7, 7] ^ 128
    with pytest.raises(ThreatModelViolation, match=rf"1 of 6 outside the ball, for example row {int(poison.rows[4])}"):
        case.check(Poison(poison.rows, images))


def test_other_balls_are_judged_too() -> None:
    euclid = task(ball=L2(eps=1.0))
    inside = shifted(euclid, 18)  # 18/255 * sqrt(192) = 0.98
    euclid.check(inside)
    with pytest.raises(ThreatModelViolation, match=r"1\.03 in L2"):
        euclid.check(shifted(euclid, 19))
    patch = task(ball=Patch(area=0.1))
    with pytest.raises(ThreatModelViolation, match="rectangle of at most 10 %"):
        patch.check(shifted(patch, 1))


def wrong_rows(case: Task, poison: Poison) -> dict[str, tuple[Poison, str]]:
    foreign = next(row for row in range(60) if row not in case.candidates.tolist())
    return {
        "too many": (
            Poison(case.candidates[:7], TRAIN.pixels(case.candidates[:7])),
            "number of poisons: 7; allowed: at most 6",
        ),
        "foreign": (
            Poison(torch.tensor([foreign]), poison.images[:1]),
            f"1 others, for example row {foreign}; allowed: the 20 candidate rows",
        ),
        "twice": (Poison(poison.rows[[0, 0]], poison.images[[0, 0]]), "1 of 2 repeat another; allowed: each row once"),
        "unsorted": (Poison(poison.rows.flip(0), poison.images.flip(0)), "not in order"),
        "row type": (Poison(poison.rows.int(), poison.images), "torch.int32"),
        "pixel type": (replace(poison, images=poison.images.float() / 255), r"torch.float32; allowed: uint8"),
        "shape": (replace(poison, images=poison.images[:, :, :4]), r"\[6, 3, 4, 8\]; allowed: \[6, 3, 8, 8\]"),
        "count": (replace(poison, images=poison.images[:5]), r"\[5, 3, 8, 8\]; allowed: \[6, 3, 8, 8\]"),
        "label type": (replace(poison, labels=torch.zeros(6)), "labels: torch.float32"),
        "label range": (replace(poison, labels=torch.full((6,), 3)), "labels: from 3 to 3; allowed: 0 to 2"),
        "trigger": (replace(poison, trigger=PatchTrigger()), "trigger: patch-trigger; allowed: none"),
    }


@pytest.mark.parametrize("name", wrong_rows(task(), shifted(task(), 1)))
def test_what_oversteps_is_named_with_what_is_allowed(name: str) -> None:
    case = task()
    poison, hint = wrong_rows(case, shifted(case, 1))[name]
    with pytest.raises(ThreatModelViolation, match=hint):
        case.check(poison)


def test_labels_stay_unless_the_threat_model_relabels() -> None:
    case, poison = task(), shifted(task(), 1)
    case.check(replace(poison, labels=TRAIN.labels_of(poison.rows)))
    changed = replace(poison, labels=(TRAIN.labels_of(poison.rows) + torch.tensor([1, 0, 1, 0, 0, 0])) % 3)
    with pytest.raises(ThreatModelViolation, match="labels: 2 changed; allowed: none"):
        case.check(changed)
    task(relabel=True).check(changed)


class Boastful(Trigger):
    """Says that it is small, and touches more."""

    def __call__(self, images: Tensor) -> Tensor:
        return 1 - images

    def area(self, shape: tuple[int, int, int]) -> float:
        return 0.01

    def limit(self) -> Patch:
        return Patch(area=0.01)


class Glaring(Boastful):
    """Leaves the pixel range."""

    def __call__(self, images: Tensor) -> Tensor:
        marked = images.clone()
        marked[:, :, 0, 0] = 2.0
        return marked


@pytest.mark.parametrize(
    ("trigger", "hint"),
    [
        (None, "trigger: none; allowed: one"),
        (PatchTrigger(share=0.5), r"trigger: 0\.25 of the pixels; allowed: at most 0\.1"),
        (Boastful(), r"trigger: 1 of the pixels; allowed: at most 0\.1"),
        (Glaring(), r"pixels outside \[0, 1\]"),
    ],
)
def test_a_trigger_is_measured_on_test_images(trigger: Trigger | None, hint: str) -> None:
    case = task(goal=Backdoor(), ball=Patch(area=0.1))
    case.check(Poison.empty(case, PatchTrigger()))
    with pytest.raises(ThreatModelViolation, match=hint):
        case.check(Poison.empty(case, trigger))


# --- measuring -------------------------------------------------------------------------------------------------------


def scores_of(images: Tensor) -> Tensor:
    """Two "models" that disagree: scores [2, B, 3] from three pixels."""
    return torch.stack([images[:, 0, 0, :3], images[:, 1, 3, 2:5].flip(1)])


def test_outcome_equals_a_slow_loop() -> None:
    targets = (1, 2, 4, 5, 7, 8, 11, 13, 14)
    case = task(case=FixedCase(target_rows=targets, intended="ant"))
    outcome = case.outcome(scripted(scores_of, lambda images: scores_of(images)[..., 2] > 0.4), Poison.empty(case))
    for m in range(2):
        for t, row in enumerate(targets):
            scores = scores_of(TEST.floats(torch.tensor([row])))[m, 0].tolist()
            refused = scores[2] > 0.4
            guess = scores.index(max(scores))
            assert bool(outcome["abstained"][m, t]) == refused
            assert bool(outcome["success"][m, t]) == (guess == 0 and not refused)
            assert bool(outcome["correct"][m, t]) == (guess == int(TEST.labels[row]) and not refused)
            assert float(outcome["margin"][m, t]) == pytest.approx(scores[0] - max(scores[1:]))
        right = []
        for row in set(range(30)) - set(targets):
            scores = scores_of(TEST.floats(torch.tensor([row])))[m, 0].tolist()
            right.append(scores.index(max(scores)) == int(TEST.labels[row]) and not scores[2] > 0.4)
        assert float(outcome["accuracy"][m]) == pytest.approx(sum(right) / 21)
    assert outcome["radius"] is None
    would_be = scores_of(case.targets).argmax(2)
    assert bool((outcome["abstained"] & (would_be == case.true_labels)).any()), "no right answer was refused"


def test_the_margin_is_measured_against_the_best_of_all_others() -> None:
    case = task(case=FixedCase(target_rows=(0, 1), intended="cat"))
    scores = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 1.0, 5.0]]])
    outcome = case.outcome(scripted(lambda images: scores[:, :1].expand(1, len(images), 3)), Poison.empty(case))
    assert outcome["margin"].tolist() == [[-1.0, -1.0]]
    outcome = case.outcome(scripted(lambda images: scores[:, 1:].expand(1, len(images), 3)), Poison.empty(case))
    assert outcome["margin"].tolist() == [[4.0, 4.0]]


def test_equal_scores_go_to_the_smallest_class() -> None:
    case = task(case=FixedCase(target_rows=(1,), intended="ant"))
    outcome = case.outcome(scripted(lambda images: torch.zeros(1, len(images), 3)), Poison.empty(case))
    assert outcome["success"].tolist() == [[True]]


def test_a_backdoor_is_measured_with_the_trigger_and_accuracy_without() -> None:
    case = task(goal=Backdoor(intended="cat"), ball=Patch(area=0.1))
    seen: list[Tensor] = []

    def answer(images: Tensor) -> Tensor:
        seen.append(images)
        corner = (images[:, :, 6:, 6:] == 1).all((1, 2, 3)).float()
        return torch.stack([1 - corner, torch.zeros_like(corner), corner], 1)[None]

    outcome = case.outcome(scripted(answer), Poison.empty(case, PatchTrigger(pattern="white")))
    assert outcome["success"].shape == (1, 20)
    assert bool(outcome["success"].all())
    assert float(outcome["accuracy"]) == pytest.approx(10 / 30)  # "ant" for every clean image, all 30 of them
    assert torch.equal(seen[0][:, :, :6], TEST.floats(case.target_rows)[:, :, :6])
    assert bool((TEST.labels_of(case.target_rows) != 2).all())


def test_availability_counts_wrong_answers_and_watches_accuracy() -> None:
    case = task(goal=Availability(tests=9), poison_class="any", budget=1.0)
    assert case.limit == len(case.candidates) == 60
    fitted = scripted(scores_of, lambda images: scores_of(images)[..., 2] > 0.4)
    curve = case.curve()
    assert curve is not None
    for member in range(2):
        curve(member, 0, fitted.predictor)  # a real fit hands over one member at a time
    outcome = case.outcome(fitted, Poison.empty(case), curve)
    for m in range(2):
        for t, row in enumerate(case.target_rows.tolist()):
            scores, true = scores_of(TEST.floats(torch.tensor([row])))[m, 0].tolist(), int(TEST.labels[row])
            refused, guess = scores[2] > 0.4, scores.index(max(scores))
            assert bool(outcome["success"][m, t]) == (guess != true and not refused)
            assert bool(outcome["correct"][m, t]) == (guess == true and not refused)
            others = [score for c, score in enumerate(scores) if c != true]
            assert float(outcome["margin"][m, t]) == pytest.approx(max(others) - scores[true])
    right = [scores_of(TEST.floats(torch.tensor([row])))[0, 0] for row in range(30)]
    share = sum(int(s.argmax()) == int(TEST.labels[i]) and not float(s[2]) > 0.4 for i, s in enumerate(right)) / 30
    assert float(outcome["accuracy"][0]) == pytest.approx(share)  # of all test images, those counted above as well
    assert outcome["epochs"].shape == (2, 1)
    assert case.case()["intended"] == []
    assert "classified wrongly" in case.describe()


def test_a_curve_has_one_line_per_victim_or_none() -> None:
    curve = task(goal=Availability(), poison_class="any").curve()
    answers = [lambda images, c=c: torch.eye(3)[c].expand(1, len(images), 3) for c in range(2)]
    for epoch in (1, 0):
        curve(0, epoch, scripted(answers[epoch]).predictor)
    assert curve.table(1).tolist() == [[pytest.approx(1 / 3)] * 2]
    assert curve.table(2) is None  # a vote trains many members for one victim
    assert task().curve() is None


def test_a_goal_about_all_classes_takes_no_class_and_no_case() -> None:
    for goal in (Availability(), Backdoor(all_to_all=True)):
        with pytest.raises(ValueError, match="intends no single class here, but poison_class is 'intended'"):
            task(goal=goal)
        with pytest.raises(ValueError, match="a case with one is given"):
            task(goal=goal, poison_class="any", case=FixedCase(target_rows=(1,), intended="ant"))


def test_what_poisons_teach() -> None:
    rows = torch.tensor([0, 1, 2])
    assert task(goal=Backdoor(intended="cat")).taught(rows).tolist() == [2, 2, 2]
    assert task(goal=Backdoor(all_to_all=True), poison_class="any").taught(rows).tolist() == [1, 2, 0]
    assert task(goal=Availability(), poison_class="any").taught(rows).tolist() == [0, 1, 2]


def test_a_trigger_stays_within_the_limit_of_its_goal() -> None:
    poison = Poison.empty(task(), PatchTrigger())
    allowed = task(goal=Backdoor(intended="cat", limit=Patch(area=0.1)), ball=Patch(area=0.1))
    allowed.check(poison)
    faint = task(goal=Backdoor(intended="cat", limit=Linf(eps=0.2)), ball=Patch(area=0.1))
    with pytest.raises(ThreatModelViolation, match=r"trigger: 20 of 20 images outside it; .* at most 51/255"):
        faint.check(poison)


def test_the_certified_radius_is_handed_on() -> None:
    case = task(targets=2)
    certified = scripted(
        lambda images: images[None, :, 0, 0, :3], radius=lambda images: torch.arange(len(images))[None]
    )
    outcome = case.outcome(certified, Poison.empty(case))
    assert outcome["radius"].tolist() == [[0, 1]]


def test_images_are_judged_in_chunks_that_shrink_when_memory_runs_out() -> None:
    sizes = []

    def answer(images: Tensor) -> Tensor:
        if len(images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return images[None, :, 0, 0, :3]

    rows = torch.arange(60).repeat(20)
    with pytest.warns(UserWarning, match="out of memory"):
        prediction = predict(scripted(answer).predictor, TRAIN, rows)
    assert max(sizes) == EVALUATION_BATCH // 4
    assert torch.equal(prediction.scores[0], TRAIN.floats(rows)[:, 0, 0, :3])


def test_other_errors_of_a_model_are_not_swallowed() -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        predict(scripted(broken).predictor, TRAIN, TRAIN.ids)


def test_these_goals_need_no_curve() -> None:
    assert task().curve() is None


def test_the_case_in_words_and_in_json() -> None:
    case = task(case=FixedCase(target_rows=(1, 4), intended="ant"))
    assert case.describe() == (
        "Up to 6 of 60 training images (10 %; class: ant) may change so that 2 test images of class bee are classified "
        "as ant; every pixel value moves by at most 8/255 (Linf)"
    )
    assert case.case()["target_classes"] == ["bee", "bee"]
    assert task(goal=Backdoor(intended="bee")).case()["goal"] == "backdoor"
