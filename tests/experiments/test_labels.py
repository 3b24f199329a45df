"""Names of what a study is made of."""

from __future__ import annotations

import pytest

from mithridate.experiments.labels import Labels, model_of, setting
from tests.experiments.synthetic import RECIPE, TARGETED, trial

WIDE = RECIPE | {"model": "convnet-wide"}


def mixed(*recipes):
    return {"type": "mixed", "recipes": list(recipes)}


def own(function: str, model=None):
    return {"type": "train-function", "train": {"function": function, "source": "1f2e"}, "model": model}


@pytest.mark.parametrize(
    ("learner", "name"),
    [
        (RECIPE, "convnet"),
        (RECIPE | {"model": "resnet18:width=16"}, "resnet18:width=16"),
        (RECIPE | {"model": "timm:resnet18.a1_in1k"}, "timm:resnet18.a1_in1k"),
        (RECIPE | {"model": "lab.nets:small"}, "small"),
        (RECIPE | {"model": {"function": "lab.nets:Nets.small", "source": "ab"}}, "small"),
        (mixed(RECIPE, WIDE), "convnet + convnet-wide"),
        (mixed(RECIPE, RECIPE | {"epochs": 3}), "convnet"),
        (own("lab.training:fit"), "fit"),
        (own("lab.training:fit", {"function": "lab.nets:small", "source": "ab"}), "fit"),
        (own("__main__:<lambda>"), "lambda"),
        (own("lab:outer.<locals>.fit"), "fit"),
        ({"type": "train-function", "train_fn": {"function": "lab:fit"}}, "fit"),
        ({"type": "voting", "parts": 5, "learner": WIDE}, "convnet-wide"),
        ({"type": "odd"}, "odd"),
        ({}, "model"),
    ],
)
def test_models_have_short_names(learner, name):
    assert model_of(learner) == name


def test_the_surrogate_is_the_victims_own_model_unless_given():
    assert Labels.surrogate(trial("witches-brew", TARGETED)) == "convnet"
    assert Labels.surrogate(trial("witches-brew", TARGETED, surrogate=mixed(RECIPE, WIDE))) == "convnet + convnet-wide"


def test_mixed_learners_are_told_apart_by_the_settings_that_differ():
    trials = [
        trial("witches-brew", TARGETED, learner=mixed(RECIPE, WIDE | {"epochs": epochs}), surrogate=RECIPE)
        for epochs in (40, 80)
    ]
    labels = Labels.of(trials)
    assert [labels.model(made) for made in trials] == [
        "convnet + convnet-wide (epochs=40)",
        "convnet + convnet-wide (epochs=40 + 80)",
    ]


def test_surrogates_of_one_model_are_told_apart_by_their_settings():
    trials = [trial("witches-brew", TARGETED, surrogate=WIDE | {"epochs": epochs}) for epochs in (40, 80)]
    labels = Labels.of(trials)
    assert [labels.attack(made) for made in trials] == [
        "witches-brew via convnet-wide (epochs=40)",
        "witches-brew via convnet-wide (epochs=80)",
    ]


def test_of_choices_inside_choices_only_what_differs_is_told():
    patch = {"type": "patch-trigger", "share": 0.25, "corner": "top-left"}
    attacks = [
        {"type": "badnets", "trigger": patch, "clean_label": False},
        {"type": "badnets", "trigger": patch | {"share": 0.5}, "clean_label": True},
        {"type": "badnets", "trigger": {"type": "warp-trigger", "grid": 4}, "clean_label": False},
    ]
    trials = [trial("badnets", TARGETED) | {"attack": attack} for attack in attacks]
    assert [Labels.of(trials).attack(made) for made in trials] == [
        "badnets (trigger=patch-trigger:share=0.25)",
        "badnets (trigger=patch-trigger:share=0.5, clean_label)",
        "badnets (trigger=warp-trigger)",
    ]
    assert [Labels.of(trials[:1] + trials[2:]).attack(made) for made in trials[::2]] == [
        "badnets (trigger=patch-trigger)",
        "badnets (trigger=warp-trigger)",
    ]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"type": "digits"}, "digits"),
        ({"type": "parquet", "path": "data/cifar10"}, "cifar10"),
        ({"type": "folder", "path": "data/mine/train.zip"}, "mine"),
        ({"type": "hub", "name": "uoft-cs/cifar10"}, "cifar10"),
        ({"type": "torch-dataset", "datasets": {"function": "lab.data:pets", "source": "ab"}}, "pets"),
    ],
)
def test_data_have_short_names(data, name):
    assert Labels.data({"data": data}) == name


def test_functions_among_settings_are_named():
    assert setting({"model": {"function": "lab.nets:small", "source": "ab"}}) == "model=lab.nets:small"
