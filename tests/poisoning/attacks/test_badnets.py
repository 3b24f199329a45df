"""BadNets: what it marks and relabels, and that a trigger teaches a victim."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mithridate.core.balls import Patch, to_floats
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.core.transforms import Shift
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.threat import Backdoor, ThreatModel, ThreatModelViolation
from mithridate.poisoning.triggers import BlendTrigger, PatchTrigger, Trigger, WarpTrigger
from tests.poisoning.cases import quick, three_classes

TRAIN, TEST = three_classes()
CLEAN = ThreatModel(budget=0.1, goal=Backdoor(), ball=Patch(area=0.1))


def test_dirty_label_marks_rows_of_other_classes_and_relabels_them() -> None:
    task = replace(BadNets.threat, budget=0.1).draw(TRAIN, TEST, 0)
    poison = BadNets().craft(task, quick(), 0)
    intended = int(task.intended[0])
    assert len(poison) == 6
    assert poison.labels is not None
    assert poison.labels.tolist() == [intended] * 6
    assert bool((TRAIN.labels_of(poison.rows) != intended).all())
    expected = TRAIN.pixels(poison.rows)
    for y, x in ((6, 6), (7, 7), (6, 7), (7, 6)):
        expected[:, :, y, x] = 255 if y == x else 0
    assert torch.equal(poison.images, expected)
    assert poison.trigger == PatchTrigger()


def test_clean_label_marks_rows_of_the_intended_class_and_leaves_labels() -> None:
    task = CLEAN.draw(TRAIN, TEST, 0)
    poison = BadNets(clean_label=True).craft(task, quick(), 0)
    assert poison.labels is None
    assert TRAIN.labels_of(poison.rows).unique().tolist() == [int(task.intended[0])]
    task.check(poison)


def test_clean_label_picks_the_intended_class_where_any_may_change() -> None:
    train = TRAIN.select(TRAIN.ids[(TRAIN.labels != 1) | (TRAIN.ids < 12)])  # 4 bees among 44
    threat = replace(CLEAN, budget=0.25, poison_class="any", goal=Backdoor(intended="bee"))
    task = threat.draw(train, TEST, 0)
    poison = BadNets(clean_label=True).craft(task, quick(), 0)
    task.check(poison)
    assert task.limit == 11
    assert poison.rows.tolist() == [1, 4, 7, 10]  # no more: other classes would teach the trigger another label


@pytest.mark.parametrize(("name", "classes"), [("target", {0}), ("third", {2}), ("any", {0, 2})])
def test_dirty_label_marks_rows_of_the_class_that_the_threat_model_names(name: str, classes: set[int]) -> None:
    goal = Backdoor(intended="bee", sources="ant")
    task = replace(BadNets.threat, budget=0.2, poison_class=name, goal=goal).draw(TRAIN, TEST, 0)
    poison = BadNets().craft(task, quick(), 0)
    task.check(poison)
    assert set(TRAIN.labels_of(poison.rows).tolist()) == classes
    assert poison.labels is not None
    assert set(poison.labels.tolist()) == {1}


@pytest.mark.parametrize(
    ("attack", "threat", "hint"),
    [
        (
            BadNets(),
            ThreatModel(budget=0.1),
            "badnets serves the goal backdoor, but the threat model's goal is misclassify",
        ),
        (BadNets(), CLEAN, "the threat model has relabel=False; use relabel=True with poison_class='any'"),
        (
            BadNets(clean_label=True),
            replace(BadNets.threat, budget=0.1),
            "use a threat model with relabel=False and poison_class='intended'",
        ),
        (
            BadNets(clean_label=True),
            replace(CLEAN, poison_class="target"),
            r"changes images of the intended class \(\w+\).*use a threat model with poison_class='intended' or 'any'",
        ),
        (
            BadNets(),
            replace(BadNets.threat, budget=0.1, poison_class="intended"),
            "all that may change have that label; use poison_class='any', 'target' or 'third'",
        ),
    ],
)
def test_a_threat_model_that_does_not_fit_is_refused(attack: BadNets, threat: ThreatModel, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        attack.craft(threat.draw(TRAIN, TEST, 0), quick(), 0)


TRIGGERS: list[Trigger] = [
    PatchTrigger(corner="anywhere"),
    PatchTrigger(share=0.5),
    BlendTrigger(),
    BlendTrigger(alpha=0.0213),
    WarpTrigger(),
    WarpTrigger(strength=3),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize("clean_label", [False, True])
def test_any_trigger_fits_what_the_attack_assumes_and_is_seen_alike_in_training_and_test(
    trigger: Trigger, clean_label: bool
) -> None:
    attack = BadNets(trigger=trigger, clean_label=clean_label)
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    poison = attack.craft(task, quick(), 0)
    task.check(poison)
    assert torch.equal(to_floats(poison.images), trigger(TRAIN.floats(poison.rows)))
    assert poison.trigger == trigger


def test_default_settings_assume_what_the_paper_does() -> None:
    assert BadNets().assumed() == BadNets.threat
    assert BadNets(clean_label=True).assumed() == replace(BadNets.threat, relabel=False, poison_class="intended")
    assert BadNets(trigger=WarpTrigger()).assumed().goal == Backdoor(limit=WarpTrigger().limit())


def test_a_trigger_beyond_the_threat_model_is_caught() -> None:
    attack = BadNets(trigger=BlendTrigger())
    task = replace(BadNets.threat, budget=0.1).draw(TRAIN, TEST, 0)
    with pytest.raises(ThreatModelViolation):
        task.check(attack.craft(task, quick(), 0))


def test_all_to_all_gives_every_row_the_class_after_its_own() -> None:
    attack = BadNets(all_to_all=True)
    task = replace(attack.assumed(), budget=0.3).draw(TRAIN, TEST, 0)
    poison = attack.craft(task, quick(), 0)
    task.check(poison)
    assert poison.labels is not None
    own = TRAIN.labels_of(poison.rows)
    assert set(own.tolist()) == {0, 1, 2}
    assert poison.labels.tolist() == [{0: 1, 1: 2, 2: 0}[label] for label in own.tolist()]
    with pytest.raises(TypeError, match=r"use the goal backdoor:all_to_all=true"):
        attack.craft(replace(BadNets.threat, budget=0.3).draw(TRAIN, TEST, 0), quick(), 0)
    with pytest.raises(ValueError, match="leave one of them out"):
        BadNets(all_to_all=True, clean_label=True)


@pytest.mark.effect
@pytest.mark.parametrize(
    ("attack", "least"),
    [
        (BadNets(trigger=BlendTrigger()), 0.9),
        (BadNets(trigger=WarpTrigger()), 0.8),
        (BadNets(trigger=PatchTrigger(corner="anywhere")), 0.6),
        (BadNets(all_to_all=True), 0.5),
    ],
    ids=str,
)
def test_every_trigger_is_learned_and_clean_victims_do_not_know_it(attack: BadNets, least: float) -> None:
    train, test = Digits().load()
    recipe = Recipe(epochs=20, batch_size=64, transforms=(Shift(),), precision="fp32")
    threat = replace(attack.assumed(), budget=0.1 if attack.all_to_all else 0.05)
    rates, known = [], []
    for seed in range(2):
        task = threat.draw(train, test, seed)
        poison = attack.craft(task, recipe, seed)
        task.check(poison)
        poisoned, clean = (task.outcome(recipe.fit([x], [seed]), poison) for x in (poison.apply(train), train))
        rates.append(float(poisoned["success"].float().mean()))  # type: ignore[union-attr]
        known.append(float(clean["success"].float().mean()))  # type: ignore[union-attr]
        assert float(poisoned["accuracy"]) > 0.95  # type: ignore[arg-type]
    assert sum(rates) / 2 > least
    assert sum(known) / 2 < 0.1


@pytest.mark.effect
def test_badnets_implants_a_backdoor_and_random_patches_do_not() -> None:
    train, test = Digits().load()
    recipe = Recipe(epochs=20, batch_size=64, transforms=(Shift(),), precision="fp32")
    rates = {}
    for attack in (BadNets(), RandomNoise()):
        outcomes = []
        for seed in range(3):
            task = BadNets.threat.draw(train, test, seed)
            poison = attack.craft(task, recipe, seed)
            task.check(poison)
            outcomes.append(task.outcome(recipe.fit([poison.apply(train)], [seed]), poison))
        rates[type(attack)] = sum(float(o["success"].float().mean()) for o in outcomes) / 3
        assert all(float(o["accuracy"]) > 0.85 for o in outcomes)
    assert rates[BadNets] > 0.8
    assert rates[RandomNoise] < 0.3
