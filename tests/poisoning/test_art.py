"""Attacks of ART, and any attack that works on arrays, as attacks here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mithridate.core import adapters
from mithridate.core.balls import AnyImage, Linf, Patch
from mithridate.core.schema import choices, from_json, to_json
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.poisoning import art
from mithridate.poisoning.art import ArtAttack, ArtCase, FunctionTrigger
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.task import Task, ThreatModelViolation
from mithridate.poisoning.threat import ThreatModel

RECIPE = Recipe(model="mlp:width=32", epochs=6, batch_size=32, transforms=())
EPS = 32 / 255


@pytest.fixture
def no_art(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested with it needs no classifier of ART."""
    monkeypatch.setattr(art, "art_classifier", lambda *_: None)


def task(**settings: object) -> Task:
    train, test = Digits(train=200).load()
    return ThreatModel(**({"budget": 0.05, "ball": Linf(eps=EPS)} | settings)).draw(train, test, seed=0)  # type: ignore[arg-type]


def brighter(case: ArtCase) -> tuple[np.ndarray, np.ndarray]:
    return np.clip(case.x + EPS, 0, 1), case.y


def whole_set(case: ArtCase) -> tuple[np.ndarray, np.ndarray]:
    changed = case.x_train.copy()
    changed[[3, 8]] = 1 - changed[[3, 8]]
    return changed, case.y_train


def marked(images: np.ndarray) -> np.ndarray:
    images[:, :, -2:, -2:] = 1
    return images


def relabelled(case: ArtCase) -> tuple[np.ndarray, np.ndarray]:
    return marked(case.x.copy()), np.repeat(case.y_target[:1], len(case.x), 0)


@pytest.mark.usefixtures("no_art")
def test_what_it_returns_replaces_the_rows_and_is_inside_the_limit() -> None:
    case = task()
    poison = ArtAttack(craft_with=brighter).craft(case, RECIPE, seed=0)
    case.check(poison)
    assert len(poison) == 10
    assert poison.labels is None
    moved = poison.images.int() - case.train.pixels(poison.rows).int()
    assert int(moved.max()) == 32
    assert set(case.train.labels_of(poison.rows).tolist()) == {int(case.intended[0])}


@pytest.mark.usefixtures("no_art")
def test_fewer_images_are_the_first_ones() -> None:
    case = task()
    poison = ArtAttack(craft_with=lambda given: given.x[:3] * 0.95).craft(case, RECIPE, seed=0)
    assert len(poison) == 3
    whole = ArtAttack(craft_with=brighter).craft(case, RECIPE, seed=0)
    assert poison.rows.tolist() == whole.rows[:3].tolist()


@pytest.mark.usefixtures("no_art")
def test_of_a_whole_training_set_the_changed_rows_are_poison_and_an_overstep_is_found() -> None:
    case = task()
    poison = ArtAttack(craft_with=whole_set).craft(case, RECIPE, seed=0)
    assert poison.rows.tolist() == case.train.ids[[3, 8]].tolist()
    with pytest.raises(ThreatModelViolation):
        case.check(poison)
    anything = task(ball=AnyImage(), poison_class="any")
    anything.check(ArtAttack(craft_with=whole_set).craft(anything, RECIPE, seed=0))


@pytest.mark.usefixtures("no_art")
def test_a_backdoor_brings_its_trigger_and_labels() -> None:
    case = task(goal=Backdoor(), ball=Patch(area=0.1), relabel=True, poison_class="any")
    attack = ArtAttack(
        craft_with=relabelled,
        clean_label=False,
        trigger=FunctionTrigger(function=marked),
    )
    poison = attack.craft(case, RECIPE, seed=0)
    case.check(poison)
    assert poison.labels is not None
    assert set(poison.labels.tolist()) == {int(case.intended[0])}
    images = case.test.floats(case.test.ids[:5])
    assert torch.equal(poison.trigger(images)[:, :, -2:, -2:], torch.ones(5, 1, 2, 2))  # type: ignore[misc]
    assert torch.equal(poison.trigger(images)[:, :, :6], images[:, :, :6])  # type: ignore[misc]


@pytest.mark.usefixtures("no_art")
@pytest.mark.parametrize(
    ("returned", "hint"),
    [
        (lambda case: case.x[:, :, :4], "expected up to 10 of"),
        (lambda case: case.x[:0], "expected up to 10 of"),
        (lambda case: case.x * 300, r"pixels outside \[0, 1\]"),
        (lambda case: case.x * np.nan, r"pixels outside \[0, 1\]"),
        (lambda case: (case.x, case.y[:2]), "2 labels for 10 images"),
    ],
)
def test_what_is_no_poison_is_refused(returned: art.Crafting, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        ArtAttack(craft_with=returned).craft(task(), RECIPE, seed=0)


def test_a_trigger_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="returned"):
        FunctionTrigger(function=lambda images: images[:1])(torch.zeros(2, 1, 8, 8))


def test_it_survives_json_by_the_name_of_its_function() -> None:
    attack = ArtAttack(
        craft_with="tests.poisoning.test_art:brighter", trigger=FunctionTrigger(function=f"{__name__}:marked")
    )
    assert from_json(to_json(attack), Attack) == attack
    assert to_json(attack)["type"] == "mithridate.poisoning.art:ArtAttack"
    assert not {"art-attack", "mithridate.poisoning.art:ArtAttack"} & set(choices(Attack))


# --- the real library ------------------------------------------------------------------------------------------------


def collide(case: ArtCase) -> tuple[np.ndarray, np.ndarray]:
    from art.attacks.poisoning import FeatureCollisionAttack

    attack = FeatureCollisionAttack(
        case.classifier, case.x_target[:1], feature_layer=case.classifier.layer_names[-2], max_iter=3, verbose=False
    )
    return attack.poison(case.x[:1])


def pattern(case: ArtCase) -> tuple[np.ndarray, np.ndarray]:
    from art.attacks.poisoning import PoisoningAttackBackdoor

    return PoisoningAttackBackdoor(marked).poison(case.x, case.y_target[0], broadcast=True)


def test_attacks_of_the_real_library_run_in_the_harness() -> None:
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed (extra judges)")
    anything = task(budget=0.005, ball=AnyImage())
    poison = ArtAttack(craft_with=collide).craft(anything, RECIPE, seed=0)
    anything.check(poison)
    assert len(poison) == 1

    backdoor = task(goal=Backdoor(), ball=Patch(area=0.1), relabel=True, poison_class="any", budget=0.2)
    attack = ArtAttack(craft_with=pattern, clean_label=False, trigger=FunctionTrigger(function=marked))
    poison = attack.craft(backdoor, RECIPE, seed=0)
    backdoor.check(poison)
    fitted = RECIPE.fit([poison.apply(backdoor.train)], [1])
    assert float(backdoor.outcome(fitted, poison)["success"].float().mean()) > 0.5


def test_the_classifier_is_the_surrogate() -> None:
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed (extra judges)")
    seen = []

    def looking(case: ArtCase) -> np.ndarray:
        seen.append(case.classifier.predict(case.x_target[:4]))
        return case.x

    given = task()
    ArtAttack(craft_with=looking).craft(given, RECIPE, seed=0)
    model = RECIPE.fit([given.train], [0]).models[0]
    expected = adapters.art_classifier(model, given.train.shape, 10).predict(given.targets[:4].numpy())
    assert np.allclose(seen[0], expected)
