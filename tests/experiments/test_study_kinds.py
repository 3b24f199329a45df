"""Studies of either kind of trial: one kind in one folder, read back as what it was, run in a good order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mithridate.core.schema import to_json
from mithridate.experiments.definitions import definition
from mithridate.experiments.files import read_json, write_json
from mithridate.experiments.leaks import IMAGES
from mithridate.experiments.store import Store
from mithridate.experiments.study import identify, kind_of, load_errors, ordered, read_trial, run_study
from tests.experiments.fakes import trial
from tests.experiments.leak_spy import RECIPE, Spy, leak_trial


def test_leaks_are_run_and_read_back_in_the_order_given(tmp_path: Path) -> None:
    trials = [leak_trial(seed=2), leak_trial(seed=1), leak_trial(seed=2)]
    found = run_study(trials, tmp_path, progress=False)
    assert [read_trial(settings) for settings, _ in found] == trials[:2]
    assert {result["kind"] for _, result in found} == {"leak"}
    assert all((tmp_path / "trials" / result["trial"] / IMAGES).is_file() for _, result in found)
    assert read_json(tmp_path / "study.json")["kind"] == "leak"
    assert not list(tmp_path.rglob("*partial*"))


def test_a_failed_leak_leaves_its_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="1 of 2 trials failed"):
        run_study([leak_trial(attack=Spy(fails="no luck")), leak_trial()], tmp_path, progress=False)
    (error,) = load_errors(tmp_path)
    assert error["message"] == "no luck"
    assert error["label"].endswith("batch 1, seed 0")


def test_a_study_holds_one_kind() -> None:
    assert [kind_of([one]) for one in (trial(), leak_trial())] == ["poison", "leak"]
    with pytest.raises(ValueError, match="one kind of trials, but here are inversions of leaks and poisoning trials"):
        kind_of([trial(), leak_trial()])


@pytest.mark.parametrize(("first", "second"), [(trial(), leak_trial()), (leak_trial(), trial())])
def test_a_folder_of_the_other_kind_is_left_alone(first, second, tmp_path: Path) -> None:
    run_study([first], tmp_path, progress=False)
    before = (tmp_path / "study.json").read_text()
    with pytest.raises(ValueError, match=r"and these are .*give another folder"):
        run_study([second], tmp_path, progress=False)
    assert (tmp_path / "study.json").read_text() == before
    assert len(list((tmp_path / "trials").iterdir())) == 1


def test_a_folder_from_before_there_were_kinds_holds_poisoning_trials(tmp_path: Path) -> None:
    run_study([trial()], tmp_path, progress=False)
    old = read_json(tmp_path / "study.json")
    write_json(tmp_path / "study.json", {name: value for name, value in old.items() if name != "kind"})
    assert len(run_study([trial(), trial(seed=1)], tmp_path, progress=False)) == 2
    with pytest.raises(ValueError, match="holds poisoning trials, and these are inversions of leaks"):
        run_study([leak_trial()], tmp_path, progress=False)


def test_a_trial_file_is_read_as_what_it_is() -> None:
    for one in (trial(), leak_trial(4)):
        assert read_trial(to_json(one)) == one


def test_the_first_trial_of_each_model_comes_before_those_that_find_it_trained(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trained, other = replace(RECIPE, epochs=1), replace(RECIPE, epochs=2)
    trials = [leak_trial(recipe=trained, seed=0), leak_trial(recipe=trained, seed=1), leak_trial(recipe=other)]
    items = ordered(identify([*trials, leak_trial()], store), store)
    assert [one for _, one in items] == [leak_trial(), trials[0], trials[2], trials[1]]


def leaks() -> list:
    return [leak_trial(), leak_trial(seed=1)]


def test_a_definition_may_return_leaks() -> None:
    assert definition(f"{__name__}:leaks") == leaks()
