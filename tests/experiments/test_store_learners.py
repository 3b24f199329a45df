"""What a results folder does with mixed recipes and with training code of the user's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest
import torch
from torch import nn

from mithridate.core.learners import Mixed, TrainingImages, learner
from mithridate.experiments.files import read_json
from mithridate.experiments.store import Store, Stored, load_model
from mithridate.experiments.trial import run
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.defenses.dp_sgd import DPSGD
from tests.experiments.fakes import digits, linear, recipe, trial

CALLS: list[int] = []


def train(dataset: TrainingImages, seed: int) -> nn.Module:
    """Random weights and the number of images, in no time; writes down that it was called."""
    CALLS.append(seed)
    module = linear(len(dataset.classes))
    nn.init.constant_(module.last.bias, len(dataset))
    return module


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def fits(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "fits").glob("*") if path.is_dir())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_stored_fit_keeps_its_guarantees_when_it_is_read_back(tmp_path: Path) -> None:
    data, private = digits(), DPSGD()(recipe(model="mlp:width=4", epochs=1))
    expected = private.fit([data], [0]).guarantees
    assert len(expected) == 1
    for store in (Store(tmp_path), Store(tmp_path)):  # trained, then read
        fitted = Stored(private, store).fit([data, data], [0, 1])
        assert fitted.guarantees == expected
    assert len(fits(tmp_path)) == 2
    assert load_model(fits(tmp_path)[0])(data.floats(data.ids)).shape == (len(data), 10)
    assert Stored(Mixed((private, private)), Store(tmp_path)).fit([data], [0]).guarantees == ()


def test_a_mixture_shares_its_fits_with_the_plain_recipes(tmp_path: Path) -> None:
    data, store = digits(), Store(tmp_path)
    recipes = (recipe(), recipe(model="convnet:width=2", epochs=1))
    ids = [store.fit_of[Stored(recipes[i % 2], store).fit([data], [i]).models[0]] for i in range(3)]
    stamps = [path.stat().st_mtime_ns for path in tmp_path.glob("fits/*/*")]
    mixed = Stored(Mixed(recipes), store).fit([data] * 3, [0, 1, 2])
    assert [store.fit_of[model] for model in mixed.models] == ids
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("fits/*/*")] == stamps
    plain = Mixed(recipes).fit([data] * 3, [0, 1, 2])
    images = data.floats(data.ids)
    assert all(same(a, b) for a, b in zip(plain.models, mixed.models, strict=True))
    assert torch.equal(mixed.predictor(images).scores, plain.predictor(images).scores)
    assert (mixed.history, mixed.kept) == (plain.history, plain.kept)
    assert len(fits(tmp_path)) == 3


def test_models_of_a_function_are_shared_inside_one_process(tmp_path: Path) -> None:
    data, store = digits(), Store(tmp_path)
    first = Stored(learner(train), store).fit([data, data], [1, 2])
    again = Stored(learner(train), store).fit([data, data, data.drop([0])], [2, 1, 1])
    assert CALLS == [1, 2, 1]  # the last: other data
    assert fits(tmp_path) == []
    assert [same(first.models[i], again.models[1 - i]) for i in range(2)] == [True, True]
    assert not same(first.models[0], again.models[2])
    assert list(store.fit_of) == []  # nothing in the folder to point at
    images = data.floats(data.ids)
    assert torch.equal(first.predictor(images).scores, again.predictor(images).scores[[1, 0]])
    Stored(learner(train), Store(tmp_path)).fit([data], [1])
    assert CALLS == [1, 2, 1, 1]


def test_a_shared_model_that_someone_changes_is_not_changed_for_others(tmp_path: Path) -> None:
    data, how = digits(), Stored(learner(train), Store(tmp_path))
    changed, kept = how.fit([data], [1]).models[0], how.fit([data], [1]).models[0]
    before = copy.deepcopy(kept)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert same(kept, before)
    assert same(how.fit([data], [1]).models[0], before)
    assert CALLS == [1]


def test_two_local_functions_are_not_taken_for_each_other(tmp_path: Path) -> None:
    data, store = digits(), Store(tmp_path)

    def made(value: float):
        def constant(dataset: TrainingImages, seed: int) -> nn.Module:
            CALLS.append(seed)
            module = linear(10)
            nn.init.constant_(module.last.bias, value)
            return module

        return constant

    one, two = learner(made(1)), learner(made(2))
    found = [Stored(how, store).fit([data], [0]).models[0].last.bias[0].item() for how in (one, two, one)]
    assert found == [1, 2, 1]
    assert CALLS == [0, 0]


class Uncopyable(nn.Linear):
    """Holds something that cannot be copied, as a module with its trainer may."""

    made: ClassVar[int] = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1))

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("holds a lock")


def test_a_module_that_cannot_be_copied_is_trained_again_with_a_warning(tmp_path: Path) -> None:
    def uncopyable(dataset: TrainingImages, seed: int) -> nn.Module:
        CALLS.append(seed)
        return Uncopyable(64, 10)

    store = Store(tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"Uncopyable cannot be copied \(holds a lock\).*without its trainer"):
            Stored(learner(uncopyable), store).fit([digits()], [0])
    assert CALLS == [0, 0]


def test_with_a_model_the_fits_of_a_function_are_stored(tmp_path: Path) -> None:
    data, how = digits(), learner(train, model=linear)
    first = Stored(how, Store(tmp_path)).fit([data, data], [1, 2])
    store = Store(tmp_path)
    again = Stored(how, store).fit([data, data], [1, 2])
    assert CALLS == [1, 2]
    assert all(same(a, b) for a, b in zip(first.models, again.models, strict=True))
    assert not any(model.training for model in again.models)
    folder = store.fit_folder(store.fit_of[again.models[0]])
    assert folder in fits(tmp_path)
    assert read_json(folder / "fit.json")["recipe"]["type"] == "train-function"
    loaded = load_model(folder)
    images = data.floats(data.ids)
    assert torch.equal(loaded(images), again.models[0](images))
    assert not loaded.training


def test_clean_victims_of_a_function_are_trained_once_for_all_trials(tmp_path: Path) -> None:
    store = Store(tmp_path)
    results = [run(trial(attack=NoAttack(), learner=learner(train), victims=2, seed=seed), store) for seed in range(3)]
    assert len(CALLS) == 2
    assert [result.models for result in results] == [[], [], []]
    run(trial(learner=learner(train), seed=0), store)
    assert len(CALLS) == 2 + 1 + 1  # one surrogate, one poisoned victim
