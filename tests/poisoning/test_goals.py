"""Goals: what is drawn, from which images, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.poisoning.goals import Availability, Backdoor, Misclassify, class_index
from tests.poisoning.cases import CLASSES, three_classes

_, TEST = three_classes()


def test_targets_have_one_class_and_it_is_not_the_intended_one() -> None:
    for seed in range(30):
        case = Misclassify().draw(TEST, 4, seed)
        labels = TEST.labels_of(case.target_rows)
        assert labels.unique().tolist() == list(case.sources)
        assert case.intended not in case.sources
        assert len(case.target_rows.unique()) == 4
        assert bool((case.target_rows.diff() > 0).all())


def test_every_pair_of_classes_is_drawn_about_equally_often() -> None:
    drawn = Counter((case.sources[0], case.intended) for case in (Misclassify().draw(TEST, 1, s) for s in range(600)))
    assert len(drawn) == 6
    assert all(60 < count < 140 for count in drawn.values())  # 100 expected, standard deviation 9


def test_every_test_image_can_be_a_target() -> None:
    drawn = {int(Misclassify().draw(TEST, 1, seed).target_rows) for seed in range(400)}
    assert drawn == set(range(30))


def test_a_draw_follows_from_its_seed_alone() -> None:
    first = Misclassify().draw(TEST, 2, 5)
    torch.manual_seed(99)
    again = Misclassify().draw(TEST, 2, 5)
    assert torch.equal(first.target_rows, again.target_rows)
    assert first[1:] == again[1:]


def test_targets_are_row_ids_of_what_is_visible() -> None:
    shown = TEST.drop(torch.arange(15))
    for seed in range(10):
        assert int(Misclassify().draw(shown, 1, seed).target_rows) >= 15


def test_a_class_without_test_images_is_named() -> None:
    without = TEST.select(TEST.ids[TEST.labels != 1])
    with pytest.raises(ValueError, match=r"no test image of class 'bee'.*FixedCase"):
        Misclassify().draw(without, 1, 0)


def test_more_targets_than_images_of_the_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets is 11, but class '\w+' has 10 test images; use at most 10"):
        Misclassify().draw(TEST, 11, 0)


def test_a_backdoor_aims_at_all_images_that_are_not_of_the_intended_class() -> None:
    case = Backdoor(intended="bee").draw(TEST, 1, 0)
    assert case.intended == 1
    assert case.sources == (0, 2)
    assert case.target_rows.tolist() == [row for row in range(30) if row % 3 != 1]


def test_a_backdoor_can_have_one_source_class() -> None:
    for seed in range(20):
        case = Backdoor(sources="cat").draw(TEST, 1, seed)
        assert case.intended in (0, 1)
        assert case.target_rows.tolist() == list(range(2, 30, 3))
    with pytest.raises(ValueError, match="both 'cat'"):
        Backdoor(sources="cat", intended="cat").draw(TEST, 1, 0)


def test_a_backdoor_takes_a_random_subset_of_many_test_images() -> None:
    rows = [Backdoor(intended="ant", tests=5).draw(TEST, 1, seed).target_rows for seed in range(3)]
    assert all(len(found) == 5 and bool((TEST.labels_of(found) != 0).all()) for found in rows)
    assert not torch.equal(rows[0], rows[1])


def test_a_source_class_without_test_images_is_named() -> None:
    without = TEST.select(TEST.ids[TEST.labels != 1])
    with pytest.raises(ValueError, match="no test image of class 'bee' to put the trigger on"):
        Backdoor(intended="ant", sources="bee").draw(without, 1, 0)


def test_a_drawn_source_class_and_the_intended_one_are_every_pair() -> None:
    drawn = Counter()
    for seed in range(600):
        case = Backdoor(sources="drawn").draw(TEST, 1, seed)
        drawn[case.sources, case.intended] += 1
        assert TEST.labels_of(case.target_rows).unique().tolist() == list(case.sources)
    assert len(drawn) == 6
    assert min(drawn.values()) > 60  # 100 expected, standard deviation 9
    given = [Backdoor(sources="drawn", intended="bee").draw(TEST, 1, seed) for seed in range(20)]
    assert {(case.sources, case.intended) for case in given} == {((0,), 1), ((2,), 1)}


def test_all_to_all_makes_every_class_the_next_one() -> None:
    goal = Backdoor(all_to_all=True)
    case = goal.draw(TEST, 1, 0)
    assert case.intended is None
    assert case.target_rows.tolist() == list(range(30))
    assert goal.taught(torch.tensor([0, 1, 2]), None, 3).tolist() == [1, 2, 0]
    assert Backdoor().taught(torch.tensor([0, 1, 2]), 1, 3).tolist() == [1, 1, 1]
    for settings in ({"intended": "cat"}, {"sources": "cat"}):
        with pytest.raises(ValueError, match="all_to_all is about all classes"):
            Backdoor(all_to_all=True, **settings)


def test_availability_counts_a_random_part_of_the_test_set() -> None:
    goal = Availability(tests=12)
    case = goal.draw(TEST, 1, 0)
    assert len(case.target_rows.unique()) == 12
    assert not torch.equal(case.target_rows, goal.draw(TEST, 1, 1).target_rows)
    assert Availability().draw(TEST, 1, 0).target_rows.tolist() == list(range(30))
    assert goal.taught(torch.tensor([0, 2]), None, 3).tolist() == [0, 2]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="tests is 0"):
        Availability(tests=0)
    with pytest.raises(ValueError, match=r"area is 10; it is a fraction of the image"):
        Backdoor(area=10)
    with pytest.raises(ValueError, match="tests is 0"):
        Backdoor(tests=0)


def test_a_class_is_named_by_name_or_index() -> None:
    assert Backdoor(intended=2) == Backdoor(intended="2")  # type: ignore[arg-type]
    assert class_index("2", CLASSES) == class_index("cat", CLASSES) == 2
    assert class_index("1", ("1", "0")) == 0  # a name wins over an index
    with pytest.raises(ValueError, match=r"no class 'dog'; expected an index from 0 to 2 or one of: ant, bee, cat"):
        class_index("dog", CLASSES)


def test_one_class_is_not_enough() -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    alone = ImageData(images, labels, ("a", "b"))
    object.__setattr__(alone, "classes", ("a",))
    with pytest.raises(ValueError, match=r"1 class only \(a\)"):
        Misclassify().draw(alone, 1, 0)
