"""Every attack, on 8x8 images of 3 classes with two steps: what each one promises."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from mithridate.core.balls import Linf, Patch
from mithridate.core.data import ImageData
from mithridate.core.learners import Mixed
from mithridate.core.schema import choices, name_of
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import FixedCase, PoisonClass, ThreatModel
from tests.poisoning.cases import quick, three_classes, two_architectures

ATTACKS = choices(Attack)
SMALL = {"steps": 2, "restarts": 1, "surrogates": 1}
UNROLLED = {"error-minimizing", "metapoison"}
"""Attacks that take part in training step by step, which code of the user's own does not allow."""
every_attack = pytest.mark.parametrize("name", ATTACKS)


def small(name: str) -> Attack:
    """The attack with its default settings, but little work."""
    attack = ATTACKS[name]()
    known = {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, **{key: value for key, value in SMALL.items() if key in known})


def task_of(attack: Attack, *, channels: int = 3, seed: int = 0, **settings) -> Task:
    """A case of the attack's own threat model, with a few rows to change."""
    train, test = three_classes(channels=channels)
    threat = dataclasses.replace(attack.threat, budget=max(attack.threat.budget, 0.05), **settings)
    return threat.draw(train, test, seed)


def craft(attack: Attack, task: Task, seed: int = 0) -> Poison:
    return attack.craft(task, quick(epochs=1), seed)


def same(a: Poison, b: Poison) -> bool:
    labels = (a.labels is None and b.labels is None) or (
        a.labels is not None and b.labels is not None and torch.equal(a.labels, b.labels)
    )
    return torch.equal(a.rows, b.rows) and torch.equal(a.images, b.images) and labels and a.trigger == b.trigger


def content(data: ImageData) -> list[torch.Tensor]:
    return [data.images.clone(), data.labels.clone(), data.ids.clone()]


@every_attack
def test_it_can_be_made_without_settings(name: str) -> None:
    attack = ATTACKS[name]()
    assert name_of(attack) == name
    assert 0 < attack.threat.budget <= 1


@every_attack
@pytest.mark.parametrize("channels", [1, 3])
def test_it_stays_inside_its_threat_model_on_8_bit_pixels(name: str, channels: int) -> None:
    attack = small(name)
    task = task_of(attack, channels=channels)
    poison = craft(attack, task)
    task.check(poison)
    assert poison.images.dtype == torch.uint8
    assert len(poison) == (0 if isinstance(attack, NoAttack) else task.limit)
    assert len(poison.apply(task.train)) == len(task.train)


@every_attack
def test_it_leaves_labels_alone_unless_the_threat_model_relabels(name: str) -> None:
    attack = small(name)
    poisoned_task = task_of(attack)
    poison = craft(attack, poisoned_task)
    if not attack.threat.relabel:
        assert torch.equal(
            poison.apply(poisoned_task.train).labels_of(poison.rows), poisoned_task.train.labels_of(poison.rows)
        )
    assert (poison.trigger is not None) == poisoned_task.goal.triggered


@every_attack
def test_the_same_seed_makes_the_same_poison(name: str) -> None:
    attack = small(name)
    task = task_of(attack)
    first = craft(attack, task)
    torch.manual_seed(1234)
    torch.rand(7)
    assert same(first, craft(attack, task_of(attack)))


@every_attack
def test_another_seed_makes_another_poison_unless_declared_deterministic(name: str) -> None:
    attack = small(name)
    task = task_of(attack)
    assert same(craft(attack, task, 0), craft(attack, task, 1)) == attack.deterministic


@every_attack
def test_it_leaves_the_global_random_state_alone(name: str) -> None:
    attack = small(name)
    task = task_of(attack)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    craft(attack, task)
    assert torch.equal(torch.get_rng_state(), state)


@every_attack
def test_it_does_not_touch_its_inputs(name: str) -> None:
    attack, recipe = small(name), quick(epochs=1)
    task = task_of(attack)
    before = [
        *content(task.train),
        *content(task.test),
        task.candidates.clone(),
        task.target_rows.clone(),
        task.intended.clone(),
    ]
    attack.craft(task, recipe, 0)
    after = [*content(task.train), *content(task.test), task.candidates, task.target_rows, task.intended]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert recipe == quick(epochs=1)


@every_attack
def test_it_does_not_judge_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("an attack asked the harness")

    attack = small(name)
    task = task_of(attack)
    for method in ("check", "outcome", "curve", "case"):
        monkeypatch.setattr(Task, method, forbidden)
    craft(attack, task)


@every_attack
def test_its_poison_is_kept_and_read_back(name: str, tmp_path) -> None:
    attack = small(name)
    poison = craft(attack, task_of(attack))
    poison.save(tmp_path)
    assert same(Poison.load(tmp_path), poison)
    assert Poison.load(tmp_path).notes == poison.notes
    assert all(isinstance(value, float) for value in poison.notes.values())


POISON_CLASSES: tuple[PoisonClass, ...] = ("intended", "target", "third", "any")


def threats(attack: Attack) -> list[ThreatModel]:
    """The attack's own threat model and, where it relabels or not, the other one."""
    own = dataclasses.replace(attack.threat, budget=max(attack.threat.budget, 0.1))
    if own.goal.triggered:  # one source class: else there is no third one
        own = dataclasses.replace(own, goal=dataclasses.replace(own.goal, sources="ant", intended="bee"))
    return [own, dataclasses.replace(own, relabel=not own.relabel)]


def crafted_or_refused(attack: Attack, task: Task) -> tuple[Poison | None, str]:
    try:
        return craft(attack, task), ""
    except (TypeError, ValueError) as error:
        return None, str(error)


@every_attack
@pytest.mark.parametrize("poison_class", POISON_CLASSES)
def test_it_serves_every_poison_class_or_says_which_it_needs(name: str, poison_class: PoisonClass) -> None:
    attack = small(name)
    train, test = three_classes()
    if attack.threat.goal.wrong and poison_class != "any":
        pytest.skip("the threat model itself refuses it: the goal intends no class")
    for threat in threats(attack):
        task = dataclasses.replace(threat, poison_class=poison_class).draw(train, test, 0)
        poison, refusal = crafted_or_refused(attack, task)
        if poison is None:
            said = re.findall(r"'(intended|target|third|any)'", refusal)
            assert said, refusal
            assert poison_class not in said or f"relabel={not task.relabel}" in refusal
            continue
        task.check(poison)
        changed = poison.apply(train)
        if not task.relabel:
            assert torch.equal(changed.labels_of(train.ids), train.labels)
        assert len(poison) == (0 if isinstance(attack, NoAttack) else task.limit)


@every_attack
@pytest.mark.parametrize("targets", [2, 3])
def test_it_serves_several_targets_at_once(name: str, targets: int) -> None:
    attack = small(name)
    task = task_of(attack, targets=targets)
    poison = craft(attack, task)
    task.check(poison)
    if task.goal.aimed:
        outcome = task.outcome(quick(epochs=1).fit([poison.apply(task.train)] * 2, [1, 2]), poison)
        assert outcome["success"].shape == outcome["margin"].shape == (2, targets)


@every_attack
def test_it_serves_a_case_given_by_hand_with_targets_of_several_classes(name: str) -> None:
    attack = small(name)
    if attack.threat.goal.wrong:
        pytest.skip("the threat model itself refuses it: the goal intends no class")
    case = FixedCase(target_rows=(0, 2, 5), intended="bee")
    task = task_of(attack, case=case)
    task.check(craft(attack, task))


@every_attack
def test_it_works_in_a_sum_of_balls(name: str) -> None:
    attack = small(name)
    task = task_of(attack, ball=Linf(eps=8 / 255) + Patch(area=0.1))
    task.check(craft(attack, task))


@every_attack
def test_it_takes_surrogates_of_several_architectures(name: str) -> None:
    attack = with_two_surrogates(name)
    task = task_of(attack)
    mixed = Mixed((quick(model="convnet:width=4", epochs=1), quick(model="convnet:width=8", epochs=1)))
    task.check(attack.craft(task, mixed, 0))


@every_attack
def test_it_needs_no_recipe_or_says_that_it_does(name: str) -> None:
    attack = with_two_surrogates(name)
    task = task_of(attack)
    recipe_less = two_architectures(epochs=1)
    if name in UNROLLED:
        with pytest.raises(TypeError, match="give a Recipe as learner or as surrogate"):
            attack.craft(task, recipe_less, 0)
    else:
        task.check(attack.craft(task, recipe_less, 0))


def with_two_surrogates(name: str) -> Attack:
    attack = small(name)
    known = "surrogates" in {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, surrogates=2) if known else attack
