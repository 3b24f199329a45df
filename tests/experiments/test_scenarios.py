"""Scenarios: how victims come to their weights, and what the attacker has of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mithridate.core.classifier import save_weights
from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed, learner
from mithridate.core.sources import Digits
from mithridate.core.training import Learner, Recipe
from mithridate.experiments.scenarios import SCENARIOS, at_home, fine_tuning, home_scenario, scenario, transfer
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, pretrained, run, surrogate_of
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import ThreatModel

DATA = Digits(train=200)
RECIPE = Recipe(model="convnet:width=4", epochs=1, batch_size=50, transforms=())
WIDE = Recipe(model="convnet-wide:width=4", epochs=1, batch_size=50, transforms=())


def trial(name: str, recipe: Learner = RECIPE, surrogate: Learner | None = None, **settings) -> Trial:
    usual = {"data": DATA, "threat": ThreatModel(budget=0.02), "attack": WitchesBrew(steps=2, surrogates=1)}
    return Trial(**usual | scenario(name, recipe, surrogate)._asdict() | settings)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights that a user trained before."""
    path = tmp_path / "user.safetensors"
    save_weights(RECIPE.fit([DATA.load()[0]], [99]).models[0], path)
    return path


def first_layer(model: torch.nn.Module) -> torch.Tensor:
    return next(model.parameters())


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_the_one_that_a_trial_says_it_is(name: str) -> None:
    made = trial(name)
    training = next(base for base in ("from-scratch", "fine-tuning", "transfer") if name.startswith(base))
    own = "grey box" if training == "from-scratch" else "white box"
    assert made.scenario == training.replace("-", " ").replace("fine ", "fine-")
    assert made.access == next((box for box in ("grey box", "black box") if name.endswith(box.replace(" ", "-"))), own)


def test_transfer_solves_its_head_and_fine_tuning_moves_all_weights_gently() -> None:
    pretrain, head = transfer(RECIPE)
    assert pretrain == RECIPE
    assert head.transforms == ()
    assert 0 < head.weight_decay < RECIPE.weight_decay
    pretrain, tuned = fine_tuning(replace(RECIPE, epochs=8))
    assert (pretrain.epochs, tuned.epochs) == (8, 4)
    assert math.isclose(tuned.learning_rate, RECIPE.learning_rate / 10)


def test_an_attack_is_at_home_where_its_paper_is(checkpoint: Path) -> None:
    given = replace(RECIPE, start_from=checkpoint)
    own = learner(lambda dataset, seed: torch.nn.Identity())
    assert home_scenario(PoisonFrogs(), RECIPE) == "transfer"
    assert home_scenario(PoisonFrogs(), own) == "from-scratch"
    assert home_scenario(WitchesBrew(), given) == "fine-tuning"
    assert home_scenario(WitchesBrew(), replace(given, trainable="head")) == "transfer"
    assert at_home(WitchesBrew(), own).learner is own


@pytest.mark.parametrize("name", ["transfer", "fine-tuning"])
def test_code_of_the_users_own_starts_from_scratch(name: str) -> None:
    with pytest.raises(TypeError, match="only a Recipe"):
        scenario(name, learner(lambda dataset, seed: torch.nn.Identity()))


def test_a_black_box_is_another_architecture_whatever_the_victims() -> None:
    assert scenario("from-scratch-black-box", WIDE).surrogate == replace(WIDE, model="convnet")
    mixed = Mixed((RECIPE, WIDE))
    assert scenario("from-scratch-black-box", mixed).surrogate.model == "convnet"
    with pytest.raises(TypeError, match="give surrogate="):
        scenario("from-scratch-black-box", learner(lambda dataset, seed: torch.nn.Identity()))


# --- what the attacker and the victims start from --------------------------------------------------------------------


def weights(name: str, store: Store, surrogate: Learner | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """First layers of a victim and of a surrogate."""
    made = trial(name, surrogate=surrogate)
    setting = pretrained(made, store.data(DATA).train, store)
    victim = setting.learner.fit([setting.train], [1]).models[0]
    attacker = surrogate_of(made, setting.surrogate, store).fit([setting.train], [0]).models[0]
    return first_layer(victim), first_layer(attacker)


def test_a_white_box_attacker_has_the_victims_features_and_a_grey_one_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    victim, white = weights("transfer", store)
    again, grey = weights("transfer-grey-box", store)
    _, black = weights("transfer-black-box", store, surrogate=WIDE)
    assert torch.equal(victim, white)
    assert torch.equal(victim, again)
    assert victim.shape == grey.shape
    assert not torch.equal(victim, grey)
    assert not torch.equal(victim, black)


def test_several_substitutes_of_one_architecture_have_different_features(tmp_path: Path) -> None:
    made = trial("transfer-grey-box", surrogate=None)
    made = replace(made, surrogate=Mixed((made.learner, made.learner)))
    store = Store(tmp_path)
    setting = pretrained(made, store.data(DATA).train, store)
    first, second = surrogate_of(made, setting.surrogate, store).fit([setting.train] * 2, [0, 1]).models
    assert not torch.equal(first_layer(first), first_layer(second))


def test_fine_tuning_begins_with_the_features_and_moves_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = trial("fine-tuning")
    setting = pretrained(made, store.data(DATA).train, store)
    begun = setting.learner.recipe.module(setting.train, seed=5)
    tuned = setting.learner.fit([setting.train], [5]).models[0]
    frozen, _ = weights("transfer", store)
    assert torch.equal(first_layer(begun), frozen)
    assert not torch.equal(first_layer(tuned), frozen)


@pytest.mark.parametrize("name", ["transfer", "fine-tuning"])
def test_a_users_checkpoint_is_started_from_with_all_rows(name: str, checkpoint: Path, tmp_path: Path) -> None:
    made = trial(name, replace(RECIPE, start_from=checkpoint), victims=1)
    assert (made.pretrain, made.access) == (None, "white box")
    result = run(made, Store(tmp_path / "runs"))
    assert result.data["train"] == 200
    assert result.poison["count"] == 4


def test_from_scratch_contradicts_a_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="nothing is from scratch"):
        scenario("from-scratch", replace(RECIPE, start_from=checkpoint))


def test_a_grey_box_attacker_of_a_checkpoint_needs_weights_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    given = replace(RECIPE, start_from=checkpoint)
    with pytest.raises(ValueError, match="surrogate="):
        scenario("transfer-grey-box", given)
    other = tmp_path / "attacker.safetensors"
    save_weights(RECIPE.fit([DATA.load()[0]], [98]).models[0], other)
    assert trial("transfer-grey-box", given, replace(RECIPE, start_from=other)).access == "grey box"


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "from-scratch"])
def test_every_scenario_runs_and_shares_its_clean_victims(name: str, tmp_path: Path) -> None:
    store, place = Store(tmp_path), scenario(name, RECIPE)
    attacked = run(trial(name), store)
    clean = run(trial(name, attack=NoAttack(), **place.public()._asdict()), store)
    assert attacked.poison["count"] == math.ceil(0.02 * attacked.data["train"])
    assert attacked.data["train"] == (200 if name.startswith("from") else 100)
    assert len(clean.outcome["accuracy"]) == 1


def test_only_a_recipe_gets_pretrained_features(tmp_path: Path) -> None:
    made = replace(trial("transfer"), learner=learner(lambda dataset, seed: torch.nn.Identity()))
    with pytest.raises(TypeError, match="leave pretrain out"):
        pretrained(
            made, ImageData(*(getattr(DATA.load()[0], n) for n in ("images", "labels", "classes"))), Store(tmp_path)
        )


def test_a_mixture_may_be_the_surrogate_in_every_scenario() -> None:
    mixed = Mixed((RECIPE, replace(RECIPE, model="convnet:width=6")))
    for name in ("from-scratch", "fine-tuning", "transfer"):
        found = scenario(name + "-black-box", WIDE, mixed).surrogate
        assert isinstance(found, Mixed)
        assert found.recipes == tuple(scenario(name, recipe).learner for recipe in mixed.recipes)


def test_a_mixture_crafts_with_features_of_each_architecture(tmp_path: Path) -> None:
    mixed = Mixed((RECIPE, replace(RECIPE, model="convnet:width=6")))
    found = trial("transfer-black-box", WIDE, mixed)
    store = Store(tmp_path)
    setting = pretrained(found, DATA.load()[0], store)
    models = surrogate_of(found, setting.surrogate, store).fit([setting.train] * 2, [0, 1]).models
    assert [model.network.linear.in_features for model in models] == [16, 24]
