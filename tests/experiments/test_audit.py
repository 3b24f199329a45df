"""Audit: which cells it consists of, what a rehearsal finds, a tiny one from end to end, loaders of kept models."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mithridate.core.balls import AnyImage, Linf, Patch
from mithridate.core.sources import Arrays, Digits
from mithridate.core.training import Recipe
from mithridate.experiments import study
from mithridate.experiments.audit import audit, craft, panels_of, run_audit
from mithridate.experiments.loader import write_loader
from mithridate.experiments.panels import dosed, plan_audit
from mithridate.experiments.rehearsal import rehearse
from mithridate.experiments.study import StudyErrors
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import ThreatModelViolation
from mithridate.poisoning.triggers import PatchTrigger

DATA = Digits(train=100)
RECIPE = Recipe(model="convnet:width=4", epochs=1, batch_size=25, transforms=())


def kinds(trials) -> Counter:
    return Counter((type(trial.attack), trial.scenario, trial.threat.goal, trial.defenses) for trial in trials)


# --- what belongs to an audit ----------------------------------------------------------------------------------------


def test_every_attack_has_its_controls_and_every_defence_its_clean_cell() -> None:
    mixup, vote = Mixup(), PartitionVote(parts=3)
    panels = panels_of(RECIPE, attacks=[WitchesBrew()], defenses=[mixup, [mixup, vote]], trials=3)
    found = kinds(plan_audit(panels, DATA))
    place = ("from scratch", WitchesBrew.threat.goal)
    assert found == {
        (WitchesBrew, *place, ()): 3,
        (WitchesBrew, *place, (mixup,)): 3,
        (WitchesBrew, *place, (mixup, vote)): 3,
        (RandomNoise, *place, ()): 3,
        (NoAttack, *place, ()): 3,
        (NoAttack, *place, (mixup,)): 3,
        (NoAttack, *place, (mixup, vote)): 3,
    }


def test_controls_share_data_threat_model_and_seeds_with_their_attack() -> None:
    trials = plan_audit(panels_of(RECIPE, attacks=[WitchesBrew()], defenses=(), trials=3), DATA, seed=5)
    brew, noise, clean = (
        [t for t in trials if isinstance(t.attack, kind)] for kind in (WitchesBrew, RandomNoise, NoAttack)
    )
    assert [t.seed for t in brew] == [t.seed for t in noise] == [t.seed for t in clean] == [5, 6, 7]
    assert [replace(t, attack=RandomNoise()) for t in brew] == noise
    assert {t.surrogate_seed for t in trials} == {5}
    assert {t.victims for t in clean} == {8}


def test_no_attack_is_shared_by_all_doses_of_one_aim() -> None:
    panels = dosed(panels_of(RECIPE, attacks=[WitchesBrew()], defenses=(), trials=2), eps=[8 / 255, 16 / 255])
    trials = plan_audit(panels, DATA)
    assert Counter(type(t.attack) for t in trials) == {WitchesBrew: 4, RandomNoise: 4, NoAttack: 2}


def test_attacks_of_one_dose_share_their_random_noise() -> None:
    trials = plan_audit(
        dosed(
            panels_of(RECIPE, attacks=[WitchesBrew(), PoisonFrogs()], defenses=(), scenarios=["transfer"], trials=2),
            eps=16 / 255,
            budget=0.02,
        ),
        DATA,
    )
    assert Counter(type(t.attack) for t in trials) == {WitchesBrew: 2, PoisonFrogs: 2, RandomNoise: 2, NoAttack: 2}


def test_controls_of_a_backdoor_carry_its_trigger() -> None:
    trigger = PatchTrigger(corner="top-left")
    trials = plan_audit(panels_of(RECIPE, attacks=[BadNets(trigger=trigger)], defenses=(), trials=1), DATA)
    assert {t.attack.trigger for t in trials} == {trigger}


def test_the_larger_number_of_clean_victims_and_cases_counts() -> None:
    few, many = panels_of(RECIPE, attacks=[WitchesBrew(), WitchesBrew(steps=2)], defenses=(), trials=2)
    panels = [replace(few, clean_victims=3), replace(many, clean_victims=2, trials=4)]
    clean = [t for t in plan_audit(panels, DATA) if isinstance(t.attack, NoAttack)]
    assert [(t.seed, t.victims) for t in clean] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_doses_replace_the_pixels_bound_but_never_a_trigger() -> None:
    panels = panels_of(RECIPE, attacks=[PoisonFrogs(), BadNets()], defenses=())
    balls = [panel.threat.ball for panel in dosed(panels, eps=0.1)]
    assert balls == [Linf(eps=0.1), BadNets.threat.ball]
    assert [panel.threat.ball for panel in dosed(panels)] == [AnyImage(), Patch(area=0.1)]
    assert {panel.threat.budget for panel in dosed(panels, budget=[0.1, 0.2])} == {0.1, 0.2}


# --- the rehearsal ---------------------------------------------------------------------------------------------------


def first(attack, defenses=(), recipe=RECIPE, data=DATA, **dose):
    return plan_audit(dosed(panels_of(recipe, attacks=[attack], defenses=defenses, trials=2), **dose), data)


def headless(classes: int) -> torch.nn.Module:
    """A network whose last layer is no Linear."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, classes, 8), torch.nn.Flatten())


@pytest.mark.parametrize(
    ("trials", "error", "message"),
    [
        (lambda: first(WitchesBrew(), budget=1e-10), ValueError, "is 0 rows; use at least"),
        (lambda: first(WitchesBrew(), budget=0.5), ValueError, "may be changed; use a budget of at most"),
        (lambda: first(WitchesBrew(), [[PartitionVote(), Mixup()]]), TypeError, "put mixup first"),
        (lambda: first(PoisonFrogs(), recipe=replace(RECIPE, model=headless)), ValueError, "no final Linear"),
        (
            lambda: first(BadNets(), [SpectralSignatures()], replace(RECIPE, model=headless)),
            ValueError,
            "no final Linear",
        ),
        (
            lambda: first(WitchesBrew(), recipe=replace(RECIPE, model=lambda classes: torch.nn.Flatten())),
            ValueError,
            "10",
        ),
        (
            lambda: [replace(t, threat=BadNets.threat) for t in first(WitchesBrew())],
            TypeError,
            "goal",
        ),
        (
            lambda: [replace(t, threat=BadNets.threat) for t in first(BadNets(trigger=PatchTrigger(share=0.5)))[:1]],
            ThreatModelViolation,
            "outside the ball.* allowed: one rectangle",
        ),
    ],
)
def test_a_rehearsal_finds_what_no_trial_could_run_with(trials, error, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        run_audit(trials(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_without_test_images_is_found_before_training() -> None:
    train, test = DATA.load()
    gone = test.select(test.ids[test.labels_of(test.ids) != 3])
    with pytest.raises(ValueError, match="no test image of class '3'"):
        rehearse(first(WitchesBrew(), data=Arrays(train, gone)))


def test_a_good_study_passes() -> None:
    rehearse(first(WitchesBrew(), [Mixup(), SpectralSignatures()]))


# --- from end to end -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A tiny audit of a backdoor, with its models kept."""
    return audit(
        RECIPE,
        *DATA.load(),
        attacks=[BadNets()],
        defenses=[Mixup()],
        trials=3,
        clean_victims=2,
        out=tmp_path_factory.mktemp("audits") / "tiny",
        keep_models=True,
        command="mithridate audit --tiny",
    )


def test_an_audit_has_a_row_per_cell_and_a_report(finished) -> None:
    cells = {(row.attack, row.defense, row.trials) for row in finished.table.rows}
    assert cells == {
        ("badnets", "none", 3),
        ("badnets", "mixup", 3),
        ("random-noise", "none", 3),
        ("no-attack", "none", 3),
        ("no-attack", "mixup", 3),
    }
    attacked = next(row for row in finished.table.rows if row.attack == "badnets" and row.defense == "none")
    assert attacked.against is not None
    assert attacked.against.name == "random-noise"
    assert attacked.against.paired.pairs == 3
    assert "mithridate audit --tiny" in finished.report.read_text()
    assert str(finished).endswith(f"report: {finished.report}")


def test_the_same_audit_resumes(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "run", lambda *_, **__: pytest.fail("a finished trial ran again"))
    again = audit(RECIPE, DATA, attacks=[BadNets()], defenses=[Mixup()], trials=3, clean_victims=2, out=finished.folder)
    assert str(again.table) == str(finished.table)


def test_a_kept_model_is_the_one_that_was_judged(finished) -> None:
    loader = runpy.run_path(str(finished.folder / "load_model.py"))
    test = DATA.load()[1]
    checked = 0
    for path in (finished.folder / "trials").glob("*/result.json"):
        result = json.loads(path.read_text())
        for fit, accuracy in zip(result["models"], result["outcome"]["accuracy"], strict=True):
            with torch.no_grad():
                right = loader["load"](fit)(test.floats(test.ids)).argmax(1) == test.labels
            assert right.float().mean().item() == pytest.approx(accuracy, abs=1e-6)
            checked += 1
    assert checked == 3 * 3 + 2 * 3 * 2
    assert sum(map(len, loader["VICTIMS"].values())) == checked


@pytest.mark.parametrize("normalize", ["data", "none"])
def test_the_loader_brings_the_normalisation(normalize: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, normalize=normalize)
    pairs = study.run_study(first(BadNets(), recipe=recipe)[:1], tmp_path, keep_models=True, progress=False)
    path = write_loader(tmp_path, pairs)
    assert path is not None
    load, test = runpy.run_path(str(path))["load"], DATA.load()[1]
    with torch.no_grad():
        right = load(pairs[0][1]["models"][0])(test.floats(test.ids)).argmax(1) == test.labels
    assert right.float().mean().item() == pytest.approx(pairs[0][1]["outcome"]["accuracy"][0], abs=1e-6)


def test_there_is_no_loader_without_stored_victims(tmp_path: Path) -> None:
    assert write_loader(tmp_path, [({"attack": {"type": "badnets"}, "threat": {}}, {"models": []})]) is None
    assert not list(tmp_path.iterdir())


def test_failed_trials_do_not_cost_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trial.run

    def sometimes(trial, *args, **settings):
        if trial.seed == 1:
            raise RuntimeError("the disk is full")
        return real(trial, *args, **settings)

    monkeypatch.setattr(Trial, "run", sometimes)
    with pytest.raises(StudyErrors, match="the disk is full"):
        run_audit(first(BadNets()), tmp_path / "out")
    assert "the disk is full" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DATA.load()[0],), "test images are missing"),
        ((DATA, DATA.load()[1]), "brings its own test images"),
    ],
)
def test_data_are_images_twice_or_one_source(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit(RECIPE, *arguments)


def test_craft_leaves_a_poison_that_the_audit_finds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = first(WitchesBrew(steps=2, surrogates=1))[0]
    folder, task, poison = craft(trial, tmp_path)
    stored = Poison.load(folder)
    assert torch.equal(stored.images, poison.images)
    assert len(poison) == task.limit == 1
    monkeypatch.setattr(WitchesBrew, "craft", lambda *_: pytest.fail("crafted again"))
    ((_, result),) = study.run_study([trial], tmp_path, progress=False)
    assert result["poison"]["id"] == folder.name


def test_general_attacks_are_used_where_none_are_named() -> None:
    assert {type(panel.attack) for panel in panels_of(RECIPE)} == {BadNets, PoisonFrogs, WitchesBrew}
    assert all(panel.scenario.pretrain == RECIPE for panel in panels_of(RECIPE, attacks=[PoisonFrogs()]))


def test_the_goal_of_a_backdoor_panel_is_a_backdoor() -> None:
    (panel,) = panels_of(RECIPE, attacks=[BadNets()])
    assert isinstance(panel.threat.goal, Backdoor)


def test_only_attacks_that_train_surrogates_adapt() -> None:
    panels = panels_of(RECIPE, attacks=[BadNets(), WitchesBrew()], defenses=[Mixup()], trials=2, adaptive=True)
    adapting = Counter(type(t.attack) for t in plan_audit(panels, DATA) if t.adaptive)
    assert adapting == {WitchesBrew: 2}
