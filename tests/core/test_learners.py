"""Several architectures in turn, and training code of the user's own: same bits, same seeds, clear errors."""

from __future__ import annotations

import functools
import importlib
import linecache
import pickle
import random
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mithridate.core.classifier import save_weights
from mithridate.core.learners import Mixed, TrainFunction, TrainingImages, learner
from mithridate.core.schema import choices, from_json, identity, resumable, to_json
from mithridate.core.training import Learner, Recipe
from mithridate.core.transforms import Flip
from mithridate.core.workers import processes
from tests.core.training_cases import data, digest, digests, quick

SMALL, RESIDUAL, LINEAR = quick(), quick(model="resnet18:width=2", epochs=1), quick(model="convnet:width=2", epochs=3)


# --- several architectures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_member_has_the_bits_of_its_recipe_alone(count: int) -> None:
    recipes = (SMALL, RESIDUAL, LINEAR)
    sets, seeds = [data(i) for i in range(count)], [7 * i for i in range(count)]
    mixed = Mixed(recipes).fit(sets, seeds)
    alone = [recipes[i % 3].fit([sets[i]], [seeds[i]]) for i in range(count)]
    assert [digest(model) for model in mixed.models] == [digest(fitted.models[0]) for fitted in alone]
    assert mixed.history.get("loss", []) == [fitted.history["loss"][0] for fitted in alone]
    assert mixed.kept == [None] * count
    assert not any(model.training for model in mixed.models)
    if count:
        images = data(9).floats(data(9).ids)
        expected = torch.cat([fitted.predictor(images).scores for fitted in alone])
        assert torch.equal(mixed.predictor(images).scores, expected)


def test_who_watches_is_told_the_member_of_the_whole_fit() -> None:
    seen = []
    mixed = Mixed((SMALL, replace(RESIDUAL, epochs=2)))
    mixed.fit([data()] * 3, [0, 1, 2], watch=lambda member, epoch, predictor: seen.append((member, epoch)))
    assert sorted(seen) == [(member, epoch) for member in range(3) for epoch in range(2)]


def test_a_mixture_survives_json_and_pickle() -> None:
    mixed = Mixed((SMALL, RESIDUAL))
    back = from_json(to_json(mixed), Learner)
    assert back == mixed == pickle.loads(pickle.dumps(mixed))
    assert hash(back) == hash(mixed)
    assert identity(back) == identity(mixed) != identity(Mixed((RESIDUAL, SMALL)))
    assert mixed.recipe == SMALL


def test_learners_are_found_by_name() -> None:
    assert {"mixed", "recipe", "train-function"} <= set(choices(Learner))


def test_settings_change_in_every_recipe() -> None:
    changed = Mixed((SMALL, RESIDUAL)).changed(epochs=9, transforms=(Flip(),))
    assert [(r.model, r.epochs, r.transforms) for r in changed.recipes] == [
        (SMALL.model, 9, (Flip(),)),
        (RESIDUAL.model, 9, (Flip(),)),
    ]


def test_recipes_must_agree_in_what_belongs_to_all_members(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipes\[1\] has transforms \(\), recipes\[0\] has \(Flip.*the same"):
        Mixed((SMALL, replace(RESIDUAL, transforms=())))
    save_weights(SMALL.module(data(), 0), tmp_path / "body.safetensors")
    begun = replace(SMALL, start_from=tmp_path / "body.safetensors")
    with pytest.raises(ValueError, match=r"recipes\[1\] has start_from \(given or not\) True, recipes\[0\] has False"):
        Mixed((SMALL, begun))
    with pytest.raises(ValueError, match="has trainable head, recipes"):
        Mixed((begun, replace(begun, trainable="head")))
    with pytest.raises(ValueError, match="give at least one"):
        Mixed(())
    with pytest.raises(TypeError, match=r"recipes\[1\] is a Mixed; only recipes"):
        Mixed((SMALL, Mixed((SMALL,))))  # type: ignore[arg-type]


# --- the data set that the user's code gets --------------------------------------------------------------------------


def test_the_dataset_holds_the_visible_rows_with_poison_in_place() -> None:
    poisoned = data().replace([3, 5], torch.full((2, 1, 8, 8), 51, dtype=torch.uint8), torch.tensor([2, 0]))
    shown = poisoned.select([5, 1, 3])
    dataset = TrainingImages(shown)
    assert (len(dataset), dataset.classes, dataset.shape) == (3, ("ant", "bee", "cat"), (1, 8, 8))
    assert [label for _, label in dataset] == [0, 1, 2]
    assert all(isinstance(label, int) for _, label in dataset)
    torch.testing.assert_close(dataset[0][0], torch.full((1, 8, 8), 0.2))
    assert torch.equal(dataset[1][0], poisoned.images[1] / 255)
    assert torch.equal(dataset[-1][0], dataset[2][0])
    with pytest.raises(IndexError):
        dataset[3]


def test_an_ordinary_loader_reads_the_dataset_and_a_worker_process_can_have_it() -> None:
    dataset = pickle.loads(pickle.dumps(TrainingImages(data())))
    batches = list(DataLoader(dataset, batch_size=16))
    assert [images.shape for images, _ in batches] == [(16, 1, 8, 8)] * 3 + [(12, 1, 8, 8)]
    assert torch.equal(torch.cat([images for images, _ in batches]), data().images / 255)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data().labels)
    with_copies = torch.stack([dataset[i][0] for i in range(60)])
    assert torch.equal(with_copies, data().images / 255)


# --- code of the user's own ------------------------------------------------------------------------------------------


def net(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes))


def train(dataset: TrainingImages, seed: int) -> nn.Module:
    """A plain loop that draws from all three global generators."""
    module = net(len(dataset.classes))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2 * (1 + 0.01 * random.random() + 0.01 * np.random.rand()))  # noqa: NPY002
    for _ in range(5):
        for images, labels in DataLoader(dataset, batch_size=20, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
    return module


def test_equal_seeds_give_equal_models_and_the_global_generators_are_put_back() -> None:
    how = learner(train)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = how.fit([data(), data(), data(1)], [4, 5, 4])
    torch.rand(3)
    random.random()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    again = how.fit([data()], [4])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
    assert digest(first.models[0]) == digest(again.models[0])
    assert len({digest(model) for model in first.models}) == 3
    assert (first.history, first.kept, how.recipe) == ({}, [None] * 3, None)
    assert not any(model.training for model in first.models)
    images = data().floats(data().ids)
    assert first.predictor(images).scores.shape == (3, 60, 3)
    assert (first.predictor(images).scores[0].argmax(1) == data().labels).float().mean() > 0.8  # it has learnt


@pytest.mark.parametrize(("given", "expected"), [(4, 4), (2**62 + 5, 5), (2**31, 0)])
def test_the_seed_is_small_enough_for_every_framework(given: int, expected: int) -> None:
    seen = []

    def note(dataset: TrainingImages, seed: int) -> nn.Module:
        seen.append(seed)
        return net(3)

    learner(note).fit([data()], [given])
    assert seen == [expected]


def test_training_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        off = learner(train).fit([data()], [0])
    assert digest(off.models[0]) == digest(learner(train).fit([data()], [0]).models[0])


def test_who_watches_sees_each_model_once() -> None:
    seen = []

    def watch(member: int, epoch: int, predictor) -> None:
        seen.append((member, epoch, predictor(data().floats(data().ids[:4])).scores.shape))

    learner(train).fit([data()] * 2, [0, 1], watch=watch)
    assert seen == [(0, 0, (1, 4, 3)), (1, 0, (1, 4, 3))]


def test_a_function_by_name_is_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_training")
    module.__dict__["train"] = train
    monkeypatch.setitem(sys.modules, "somebodys_training", module)
    assert learner("somebodys_training:train") == learner(train)
    with pytest.raises(ValueError, match="no 'trian'; did you mean train"):
        learner("somebodys_training:trian")
    with pytest.raises(TypeError, match="train is a int; give a function"):
        learner(3)  # type: ignore[arg-type]


def test_json_names_the_function_and_its_source() -> None:
    how = learner(train, model=net)
    written = to_json(how)
    assert written["type"] == "train-function"
    assert written["train"]["function"].endswith("test_learners:train")
    assert len(written["train"]["source"]) == 16
    assert from_json(written, Learner) == how == pickle.loads(pickle.dumps(how))
    assert resumable(how)
    assert not resumable(learner(lambda dataset, seed: net(3)))
    assert not resumable(learner(functools.partial(train)))


def returns_text(dataset: TrainingImages, seed: int) -> str:
    return "a module"


def too_many_classes(dataset: TrainingImages, seed: int) -> nn.Module:
    return net(len(dataset.classes) + 1)


def wants_flat_images(dataset: TrainingImages, seed: int) -> nn.Module:
    return nn.Linear(64, 3)


class Output(nn.Module):
    """Returns an object with logits, as some libraries do."""

    def forward(self, images: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=torch.zeros(len(images), 3))


def returns_objects(dataset: TrainingImages, seed: int) -> nn.Module:
    return Output()


def ends_everything(dataset: TrainingImages, seed: int) -> nn.Module:
    sys.exit(3)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (ends_everything, ValueError, ["ends_everything asked the process to end (exit code 3)", "parse_args([])"]),
        (returns_text, TypeError, ["returns_text returned str"]),
        (too_many_classes, ValueError, ["too_many_classes", "[2, 4]", "[2, 3]"]),
        (wants_flat_images, ValueError, ["wants_flat_images", "fails on images of shape [2, 1, 8, 8]"]),
        (returns_objects, ValueError, ["returns_objects", "to SimpleNamespace", "an object with logits"]),
    ],
)
def test_errors_name_the_function_and_say_what_it_must_return(function, error: type, words: list[str]) -> None:
    with pytest.raises(error) as caught:
        learner(function).fit([data()], [0])
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("function", [lambda: None, lambda dataset: None, lambda dataset, seed, lr: None])
def test_a_function_of_other_arguments_is_found_at_once(function) -> None:
    with pytest.raises(TypeError, match=r"cannot be called with a data set and a seed \(.*write a function train"):
        learner(function)
    learner(lambda *both: None)
    learner(lambda dataset, seed, lr=0.1: None)


def test_what_a_function_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def tells(dataset: TrainingImages, seed: int) -> nn.Module:
        sys.stdout.write("epoch 1\n")
        return net(3)

    learner(tells).fit([data()], [0])
    assert capsys.readouterr() == ("", "epoch 1\n")


def test_a_change_in_the_file_of_a_function_makes_other_work_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "def helper():\n    return {}\n\ndef train(dataset, seed):\n    return helper()\n"
    seen = []
    for number, content in enumerate((1, 1, 2)):
        (tmp_path / "changing.py").write_text(source.format(content))
        seen.append(identity(learner("changing:train")))
        assert from_json(to_json(learner("changing:train")), Learner) == learner("changing:train")
        if number == 1:
            monkeypatch.delitem(sys.modules, "changing")
            importlib.invalidate_caches()
            linecache.clearcache()
    assert seen[0] == seen[1] != seen[2]
    monkeypatch.delitem(sys.modules, "changing")


def reads_with_a_process(dataset: TrainingImages, seed: int) -> nn.Module:
    assert len(list(DataLoader(dataset, batch_size=60, num_workers=1))) == 1
    return net(3)


def test_loaders_may_have_processes_in_a_worker_process() -> None:
    (fitted,) = processes(1)(_fitted, [learner(reads_with_a_process)])
    assert len(fitted.models) == 1


def _fitted(how: TrainFunction) -> object:
    return how.fit([data()], [0])._replace(predictor=None)  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_are_a_warning() -> None:
    def diverge(dataset: TrainingImages, seed: int) -> nn.Module:
        module = net(3)
        nn.init.constant_(module[1].bias, float("nan"))
        return module

    with pytest.warns(UserWarning, match=r"diverge returned weights that are not finite \(1.bias"):
        learner(diverge).fit([data()], [0])


def wider(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, classes))


def unlike(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, classes))


def test_a_model_that_rebuilds_another_module_is_an_error() -> None:
    assert len(learner(train, model=net).fit([data()], [0]).models) == 1
    with pytest.raises(ValueError, match=r"model builds another module than train returned: 1.bias is \[9\].*\[8\]"):
        learner(train, model=wider).fit([data()], [0])
    with pytest.raises(ValueError, match="answers otherwise than the one that train returned"):
        learner(train, model=unlike).fit([data()], [0])
    with pytest.raises(ValueError, match=r"how to build the module of train; give model="):
        learner(train).module(data(), 0)


def test_the_same_network_by_recipe_and_by_hand_learns_the_same() -> None:
    """The function gets the very images that a recipe trains on: one full-batch step of both agrees."""
    recipe = Recipe(
        model="convnet:width=2", normalize="none", epochs=1, batch_size=60, learning_rate=0.5, momentum=0.0,
        weight_decay=0.0, transforms=(), precision="fp32",
    )  # fmt: skip

    def one_step(dataset: TrainingImages, seed: int) -> nn.Module:
        module = recipe.module(data(), 8)
        images, labels = (torch.stack([i for i, _ in dataset]), torch.tensor([label for _, label in dataset]))
        nn.functional.cross_entropy(module(images), labels).backward()
        torch.optim.SGD(module.parameters(), lr=0.5).step()
        return module

    by_hand = learner(one_step).fit([data()], [0]).models[0]
    trained = recipe.fit([data()], [8]).models[0]
    torch.testing.assert_close(by_hand.state_dict(), trained.state_dict(), rtol=1e-4, atol=1e-5)
    assert digests(recipe, seeds=(8,)) == [digest(trained)]
    assert isinstance(learner(one_step), TrainFunction)
