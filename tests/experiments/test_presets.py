"""Presets: values that hang together, and cases that can be drawn from the data they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mithridate.core.schema import choices
from mithridate.core.sources import Digits
from mithridate.core.transforms import Flip, Shift
from mithridate.experiments import presets, scenarios
from mithridate.experiments.audit import panels_of
from mithridate.experiments.panels import plan_audit
from mithridate.experiments.rehearsal import rehearse
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.witches_brew import WitchesBrew


def test_digits_are_not_mirrored() -> None:
    assert presets.digits_recipe().transforms == (Shift(),)


def test_small_is_the_standard_small_setting() -> None:
    recipe = presets.small_recipe()
    assert (recipe.model, recipe.batch_size, recipe.epochs, recipe.transforms) == (
        "convnet",
        125,
        40,
        (Flip(), Shift()),
    )
    (panel,) = presets.small_audit()
    assert (panel.trials, panel.victims, panel.clean_victims) == (20, 1, 8)
    assert (panel.attack.steps, panel.attack.surrogates) == (250, 2)
    assert panel.threat.budget * 5000 == 100
    assert panel.threat.ball.eps == 16 / 255


def test_small_source_keeps_500_per_class(shared_cifar) -> None:
    data = presets.small_source(shared_cifar)
    assert data.per_class == 500


@pytest.mark.parametrize(("find", "word"), [(scenarios.scenario, "transfr"), (presets.preset, "smal")])
def test_an_unknown_name_is_answered_with_the_nearest(find, word: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}'; did you mean (transfer|small)"):
        find(*([word, presets.digits_recipe()] if find is scenarios.scenario else [word]))


@pytest.mark.parametrize("name", ["trials", "victims", "clean_victims"])
def test_a_panel_needs_at_least_one_of_each(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        replace(presets.digits_audit()[0], **{name: 0})


def test_the_usual_threat_fits_the_form_of_the_attack() -> None:
    assert scenarios.usual_threat(BadNets()) == BadNets.threat
    clean = scenarios.usual_threat(BadNets(clean_label=True))
    assert (clean.relabel, clean.poison_class, clean.goal) == (False, "intended", BadNets.threat.goal)


def test_the_general_audit_has_one_attack_of_each_kind() -> None:
    assert {type(panel.attack) for panel in presets.general_audit()} == {BadNets, PoisonFrogs, WitchesBrew}


@pytest.mark.parametrize("attack", [a for n, a in choices(Attack).items() if n not in ("random-noise", "no-attack")])
def test_every_attack_can_be_audited_at_its_papers_dose(attack: type[Attack]) -> None:
    recipe = replace(presets.digits_recipe(), model="convnet:width=4")
    (panel,) = panels_of(recipe, attacks=[attack()], defenses=(), trials=1)
    rehearse(plan_audit([panel], Digits()))


@pytest.mark.parametrize("name", ["digits", "general"])
def test_an_audit_preset_passes_the_rehearsal_on_digits(name: str) -> None:
    chosen = presets.preset(name)
    recipe = replace(chosen.recipe(), model="convnet:width=4")
    panels = [replace(panel, trials=2) for panel in chosen.panels(recipe)]
    trials = plan_audit(panels, Digits())
    rehearse(trials)
    assert {trial.scenario for trial in trials} == {"from scratch", "transfer"}


def test_the_default_audit_shows_what_a_newcomer_should_see() -> None:
    trials = plan_audit(presets.digits_audit(), Digits())
    attacks = {type(trial.attack).__name__ for trial in trials}
    kinds = {defense.kind for trial in trials for defense in trial.defenses}
    assert attacks == {"BadNets", "PoisonFrogs", "WitchesBrew", "RandomNoise", "NoAttack"}
    assert kinds == {"transform", "filter", "vote"}
    assert all(panel.trials >= 6 for panel in presets.digits_audit())  # fewer can show nothing


def test_the_fast_recipe_changes_the_schedule_and_nothing_else() -> None:
    usual = presets.small_recipe()
    fast = presets.fast_recipe(usual)
    assert fast.epochs < usual.epochs / 3
    same = ("epochs", "learning_rate", "schedule")
    assert replace(fast, **{name: getattr(usual, name) for name in same}) == usual
    assert presets.RECIPES["paper"](usual) == usual
    assert presets.RECIPES["fast"](usual) == fast
