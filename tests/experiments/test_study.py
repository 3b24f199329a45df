"""Studies: resume, failures, interruption, folders of other things, workers, definitions."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mithridate.core.schema import from_json
from mithridate.core.sources import Digits
from mithridate.core.workers import processes
from mithridate.experiments import study as module
from mithridate.experiments.definitions import definition
from mithridate.experiments.files import locked, read_json, write_json
from mithridate.experiments.store import Store, load_model
from mithridate.experiments.study import (
    StudyErrors,
    identify,
    load_errors,
    load_results,
    ordered,
    run_study,
)
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.defenses.mixup import Mixup
from tests.experiments.fakes import Brighten, noise_trial, recipe, trial

RAW = ("trial", "outcome", "case", "data", "poison", "defense")


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    Brighten.log.clear()


def raw(pairs: list[module.Pair]) -> list[tuple]:
    return [(settings, {name: result[name] for name in RAW}) for settings, result in pairs]


def stopping(after: int) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """A map that is interrupted after so many items."""

    def stopping_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == after:
                raise KeyboardInterrupt
            yield function(item)

    return stopping_map


# --- running ---------------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_given_and_are_on_disk(tmp_path: Path) -> None:
    trials = [trial(seed=2), trial(seed=1), trial(seed=2), trial(attack=NoAttack())]
    found = run_study(trials, tmp_path, command="mithridate study x:y", progress=False)
    assert [from_json(settings, Trial) for settings, _ in found] == [trials[0], trials[1], trials[3]]
    assert sorted(map(json.dumps, load_results(tmp_path))) == sorted(map(json.dumps, found))
    written = read_json(tmp_path / "study.json")
    assert written["command"] == "mithridate study x:y"
    assert written["fingerprints"] == [found[0][1]["data"]["fingerprint"]]
    assert {"torch", "mithridate"} <= written["versions"].keys()
    assert not list(tmp_path.rglob("*.lock"))
    assert not list(tmp_path.rglob("*partial*"))


def test_finished_trials_are_skipped(tmp_path: Path) -> None:
    first = run_study([trial(seed=0), trial(seed=1)], tmp_path, command="first", progress=False)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*/*")}
    again = run_study([trial(seed=0), trial(seed=1), trial(seed=2)], tmp_path, progress=False)
    assert again[:2] == first
    assert [entry["seed"] for entry in Brighten.log] == [0, 1, 2]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert read_json(tmp_path / "study.json")["command"] == "first"


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_study_resumes_with_exactly_what_is_missing(tmp_path: Path, after: int) -> None:
    trials = [trial(seed=seed) for seed in range(4)]
    with pytest.raises(KeyboardInterrupt, match=f"{after} of 4 trials are finished in .* run the same again"):
        run_study(trials, tmp_path / "a", map=stopping(after), progress=False)
    assert len(load_results(tmp_path / "a")) == after
    crafted = len(Brighten.log)
    resumed = run_study(trials, tmp_path / "a", progress=False)
    assert len(Brighten.log) - crafted == 4 - after
    assert raw(resumed) == raw(run_study(trials, tmp_path / "b", progress=False))


def test_an_interruption_in_the_middle_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, seed: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Brighten, "craft", interrupted)
        with pytest.raises(KeyboardInterrupt, match="0 of 1"):
            run_study([trial()], tmp_path, progress=False)
    assert not list(tmp_path.rglob("*partial*"))
    assert len(run_study([trial()], tmp_path, progress=False)) == 1


def test_one_failing_trial_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [trial(attack=Brighten(fails="no luck"), seed=seed) for seed in range(2)]
    with pytest.raises(StudyErrors, match="2 of 4 trials failed; 2 are finished") as caught:
        run_study([bad[0], trial(), bad[1], trial(seed=1)], tmp_path)
    assert "seed 0 (and 1 more): RuntimeError: no luck" in str(caught.value)
    assert len(load_results(tmp_path)) == 2
    stored = load_errors(tmp_path)
    assert [error["message"] for error in stored] == ["no luck", "no luck"]
    assert all("in craft" in error["traceback"] for error in stored)
    assert sorted(map(str, caught.value.errors)) == sorted(map(str, stored))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert sum("failed: RuntimeError: no luck" in line for line in lines) == 2
    assert lines[-1].startswith("[4/4] ")


def test_a_failed_trial_is_tried_again_and_its_error_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Brighten, "craft", lambda *_, seed: seed / 0)
        with pytest.raises(StudyErrors):
            run_study([trial()], tmp_path, progress=False)
    assert load_errors(tmp_path)[0]["type"] == "ZeroDivisionError"
    run_study([trial()], tmp_path, progress=False)
    assert load_errors(tmp_path) == []


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    (settings, result), *_ = run_study([trial()], tmp_path, progress=False)
    path = tmp_path / "trials" / result["trial"] / "result.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        load_results(tmp_path)
    assert raw(run_study([trial()], tmp_path, progress=False)) == raw([(settings, result)])


def test_models_are_kept_on_request(tmp_path: Path) -> None:
    ((_, result),) = run_study([trial(victims=2)], tmp_path, keep_models=True, progress=False)
    assert len(result["models"]) == 2
    for fit in result["models"]:
        assert load_model(tmp_path / "fits" / fit)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_nothing_to_run(tmp_path: Path) -> None:
    assert run_study([], tmp_path) == []


# --- order, sharing --------------------------------------------------------------------------------------------------


def test_controls_first_then_new_poisons_then_shared_ones(tmp_path: Path) -> None:
    cells = [trial(seed=s, defenses=d) for s in (0, 1) for d in ((), (Mixup(),))] + [trial(attack=NoAttack(), seed=9)]
    store = Store(tmp_path)
    found = [made for _, made in ordered(identify(cells, store), store)]
    assert found == [cells[4], cells[0], cells[2], cells[1], cells[3]]


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """A trial that another process is at is left for last, and its result is read when that one is done."""
    trials = [trial(seed=0), trial(seed=1)]
    elsewhere = run_study([trials[0]], tmp_path / "b", progress=False)
    Brighten.log.clear()
    names = list(identify(trials, Store(tmp_path / "a")))
    found: list = []
    with locked(tmp_path / "a" / "trials" / f"{names[0]}.lock", wait=True):
        thread = threading.Thread(target=lambda: found.extend(run_study(trials, tmp_path / "a", progress=False)))
        thread.start()
        while not Store(tmp_path / "a").finished(names[1]):
            pass
        shutil.copytree(tmp_path / "b" / "trials" / names[0], tmp_path / "a" / "trials" / names[0])
    thread.join()
    assert found[0] == elsewhere[0]
    assert [entry["seed"] for entry in Brighten.log] == [1]


def test_worker_processes_give_the_same_results(tmp_path: Path) -> None:
    """One worker dies; its trial is reported, the others are as if run here."""
    trials = [noise_trial(0), trial(attack=NoAttack(), victims=2), trial(attack=Brighten(dies=True)), noise_trial(1)]
    with pytest.raises(StudyErrors, match="1 of 4 trials failed") as caught:
        run_study(trials, tmp_path / "a", map=processes(2, retries=0), progress=False)
    assert caught.value.errors[0]["type"] == "WorkerDied"
    assert "SIGKILL" in caught.value.errors[0]["message"]
    assert len(load_errors(tmp_path / "a")) == 1
    here = run_study([trials[0], trials[1], trials[3]], tmp_path / "b", progress=False)
    there = {result["trial"]: (settings, result) for settings, result in load_results(tmp_path / "a")}
    assert raw([there[result["trial"]] for _, result in here]) == raw(here)


def test_a_lambda_runs_here_but_not_in_workers(tmp_path: Path) -> None:
    model = lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))  # noqa: E731
    trials = [trial(learner=recipe(model=model), attack=RandomNoise())]
    with pytest.raises(ValueError, match=r"item 0 cannot be sent to a worker .* or use one worker"):
        run_study(trials, tmp_path, map=processes(1), progress=False)
    ((_, result),) = run_study(trials, tmp_path, progress=False)
    assert "not resumable" in result["warnings"][0]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_other_data_are_refused_and_both_named(tmp_path: Path) -> None:
    run_study([trial()], tmp_path, progress=False)
    names = [Store(tmp_path).data(Digits(train=count)).fingerprint for count in (100, 90)]
    with pytest.raises(ValueError, match=rf"{names[0]}, but the data now are {names[1]}; give another folder"):
        run_study([trial(data=Digits(train=90))], tmp_path, progress=False)
    both = [trial(), trial(data=Digits(train=90))]
    assert len(run_study(both, tmp_path, progress=False)) == 2
    assert read_json(tmp_path / "study.json")["fingerprints"] == sorted(names)


def test_another_schema_is_refused_and_both_named(tmp_path: Path) -> None:
    run_study([trial()], tmp_path, progress=False)
    write_json(tmp_path / "study.json", read_json(tmp_path / "study.json") | {"schema": 7})
    with pytest.raises(ValueError, match="schema 7, this version writes schema 1; give another folder"):
        run_study([trial()], tmp_path, progress=False)
    path = next((tmp_path / "trials").glob("*/result.json"))
    write_json(path, read_json(path) | {"schema": 7})
    with pytest.raises(ValueError, match=r"results of schema 7, written by .*, reads schema 1: update mithridate"):
        load_results(tmp_path)
    write_json(path, read_json(path) | {"schema": 0, "environment": {"mithridate": "0.0.9"}})
    with pytest.raises(
        ValueError, match=r"schema 0, written by mithridate 0\.0\.9; .*: read them with mithridate 0\.0"
    ):
        load_results(tmp_path)
    write_json(path, [])
    with pytest.raises(ValueError, match="read them with the version that wrote them, or run the study again"):
        load_results(tmp_path)


def test_another_version_is_a_warning(tmp_path: Path) -> None:
    run_study([trial()], tmp_path, progress=False)
    old = read_json(tmp_path / "study.json")
    write_json(tmp_path / "study.json", old | {"versions": old["versions"] | {"torch": "1.0"}})
    with pytest.warns(UserWarning, match=r"torch 1\.0 \(now "):
        run_study([trial()], tmp_path, progress=False)
    run_study([trial()], tmp_path, progress=False)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("thesis.txt", "precious", r"holds other things \(thesis.txt\)"),
        ("study.json", "{", r"study\.json is damaged"),
        ("study.json", "[]", "was not written by mithridate"),
        ("study.json", '{"name": "other tool"}', "was not written by mithridate"),
    ],
)
def test_folders_of_other_things_are_left_alone(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        run_study([trial()], tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run_study([trial()], tmp_path / "out", progress=False)


def test_results_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no results folder"):
        load_results(tmp_path)


# --- definitions -----------------------------------------------------------------------------------------------------


def test_a_study_by_name() -> None:
    assert definition("tests.experiments.fakes:definition") == [noise_trial(0), noise_trial(1)]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("tests.experiments.fakes:defintion", ValueError, "did you mean definition"),
        ("no_such_module:study", ValueError, "no_such_module"),
        ("tests.experiments.fakes:no_definition", TypeError, "returned int where a list of Trial was expected"),
        ("tests.experiments.fakes:recipe", TypeError, "returned Recipe where"),
        ("tests.experiments.fakes:LINEAR", TypeError, "is str; a study is a function"),
    ],
)
def test_what_is_no_study(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        definition(text)
