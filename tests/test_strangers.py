"""Victims of other libraries: they learn, they are what their library says, and a study of them runs to its end."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mithridate as mi
from mithridate.core.data import ImageData
from mithridate.core.learners import TrainFunction
from mithridate.experiments.study import run_study
from studies import foreign_victims, strangers

OURS = [victim for victim in strangers.VICTIMS if not victim.__name__.startswith("trainer_")]
THEIRS = [victim for victim in strangers.VICTIMS if victim.__name__.startswith("trainer_")]
LEARNT = 0.3
"""Accuracy that nobody reaches by guessing among ten classes: a transformer has learnt little of 300 digits."""
PLATT = "ignore:The `probability` parameter was deprecated:FutureWarning"

needs_probability = pytest.mark.filterwarnings(PLATT)


@functools.cache
def fitted(victim: Any) -> tuple[Any, ImageData]:
    """One victim, trained once for all tests, and the digits to ask it about."""
    return trained(victim, 0)


def trained(victim: Any, seed: int) -> tuple[Any, ImageData]:
    """One victim of 300 digits, and the digits to ask it about."""
    if victim in THEIRS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for package in ("transformers", "accelerate"):
                pytest.importorskip(package, reason=f"needs {package}: pip install 'mithridate[transformers]'")
    train, test = mi.Digits(train=300).load()
    return mi.learner(victim).fit([train], [seed]).models[0], test


def answers(model: torch.nn.Module, data: ImageData) -> torch.Tensor:
    with torch.no_grad():
        return model(data.floats(data.ids))


@needs_probability
@pytest.mark.parametrize("victim", strangers.VICTIMS, ids=lambda victim: victim.__name__)
def test_a_victim_learns_and_repeats_itself(victim) -> None:
    model, test = fitted(victim)
    again, _ = trained(victim, 0)
    found = answers(model, test)
    assert found.shape == (len(test), 10)
    assert (found.argmax(1) == test.labels).float().mean() > LEARNT
    assert torch.equal(found, answers(again, test))


@pytest.mark.parametrize("victim", THEIRS, ids=lambda victim: victim.__name__)
def test_another_seed_trains_another_network(victim) -> None:
    model, test = fitted(victim)
    other, _ = trained(victim, 1)
    assert not torch.equal(answers(model, test), answers(other, test))


@needs_probability
@pytest.mark.parametrize("victim", OURS, ids=lambda victim: victim.__name__)
def test_a_classifier_answers_as_its_library_predicts(victim) -> None:
    """Nearly: probabilities of a support vector machine are fitted beside its decisions."""
    model, test = fitted(victim)
    predicted = torch.as_tensor(model.classifier.predict(test.floats(test.ids).flatten(1).numpy()))
    assert (answers(model, test).argmax(1) == predicted).float().mean() > 0.97


@needs_probability
@pytest.mark.parametrize("victim", OURS, ids=lambda victim: victim.__name__)
def test_a_class_that_was_never_seen_is_never_answered(victim) -> None:
    train, test = mi.Digits(train=300).load()
    seen = train.select(train.ids[train.labels != 3])
    found = answers(mi.learner(victim).fit([seen], [0]).models[0], test)
    assert 3 not in found.argmax(1).tolist()
    assert bool(found.isfinite().all())


def test_the_study_sets_every_attack_beside_its_controls_in_a_black_box() -> None:
    trials: list[Any] = foreign_victims.digits()
    attacks = [trial for trial in trials if not isinstance(trial.attack, (mi.NoAttack, mi.RandomNoise))]
    assert {trial.access for trial in attacks} == {"black box"}
    assert all(trial.surrogate is not None and trial.surrogate.recipe is not None for trial in attacks)
    names = {trial.learner.name for trial in trials if isinstance(trial.learner, TrainFunction)}
    assert names == {victim.__name__ for victim in strangers.VICTIMS}
    noisy = {(t.learner, t.threat, t.seed) for t in trials if isinstance(t.attack, mi.RandomNoise)}
    clean = {(t.learner, t.threat.goal, t.seed) for t in trials if isinstance(t.attack, mi.NoAttack)}
    assert {(t.learner, t.threat, t.seed) for t in attacks} == noisy
    assert {(t.learner, t.threat.goal, t.seed) for t in attacks} == clean


def test_one_case_of_each_attack_runs_against_logistic_regression(tmp_path: Path) -> None:
    trials: list[Any] = foreign_victims.digits()
    small = [
        replace(trial, data=mi.Digits(train=200), surrogate=trial.surrogate and replace(trial.surrogate, epochs=1))
        for trial in trials
        if trial.seed == 0 and trial.learner.name == "logistic_regression"
    ]
    quick = [
        replace(trial, attack=replace(trial.attack, steps=1)) if hasattr(trial.attack, "steps") else trial
        for trial in small
    ]
    done = run_study(quick, tmp_path / "strangers", progress=False)
    assert len(done) == len(small)
    assert {name for trial, _ in done for name in [trial["attack"]["type"]]} >= {"badnets", "no-attack", "random-noise"}
    assert all(result["outcome"]["accuracy"][0] > LEARNT for _, result in done if not result["poison"]["count"])
