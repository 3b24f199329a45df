"""Clean-label backdoor: what moves where, the ascent against hand-made steps, and that it beats a bare patch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mithridate.core.balls import Ball, Linf, Patch, to_floats
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.poisoning.attacks import clean_label_backdoor as module
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.clean_label_backdoor import NOISE, CleanLabelBackdoor, room_beside
from mithridate.poisoning.threat import Backdoor, ThreatModel
from mithridate.poisoning.triggers import BlendTrigger, PatchTrigger, Trigger, WarpTrigger
from tests.poisoning.cases import OwnCode, quick, three_classes

TRAIN, TEST = three_classes()


@pytest.mark.parametrize("trigger", [PatchTrigger(), PatchTrigger(corner="anywhere"), BlendTrigger(alpha=0.1)])
def test_its_poisons_move_pixels_and_carry_the_trigger_at_full_strength(trigger: Trigger) -> None:
    attack = CleanLabelBackdoor(trigger=trigger, steps=5)
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    poison = attack.craft(task, quick(), 0)
    task.check(poison)
    assert poison.labels is None
    assert poison.trigger == trigger
    assert TRAIN.labels_of(poison.rows).unique().tolist() == [int(task.intended[0])]
    assert float((to_floats(poison.images) - task.images(poison.rows)).abs().flatten(1).amax(1).min()) > 0.1


def test_outside_the_patch_pixels_stay_in_the_box_and_inside_it_they_are_the_patch() -> None:
    attack = CleanLabelBackdoor(steps=8)
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    poison = attack.craft(task, quick(), 0)
    change = (poison.images.int() - TRAIN.pixels(poison.rows).int()).abs()
    assert torch.equal(
        poison.images[:, :, 6:, 6:], (PatchTrigger()(torch.zeros(6, 3, 8, 8)) * 255).byte()[:, :, 6:, 6:]
    )
    change[:, :, 6:, 6:] = 0
    assert int(change.max()) == 32


def test_a_warped_poison_lies_in_the_sum_of_both_balls() -> None:
    attack = CleanLabelBackdoor(trigger=WarpTrigger(strength=1), steps=5)
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    task.check(attack.craft(task, quick(), 0))


def test_the_ascent_is_that_of_sign_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVALUATION_BATCH", 4)  # in pieces
    attack = CleanLabelBackdoor(steps=3, precision="fp32")
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    recipe = quick()
    poison = attack.craft(task, recipe, 5)
    model = recipe.fit([TRAIN], [0]).models[0].eval()
    base, labels = task.images(poison.rows), TRAIN.labels_of(poison.rows)
    rng = stream(5, "craft")
    torch.randint(2**62, (1,), generator=rng)
    eps = 32 / 255
    found = NOISE.start(base, rng)
    for _ in range(3):
        found.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(found), labels, reduction="sum"), found)
        found = (found.detach() + 2.5 * eps / 3 * slope.sign() - base).clamp(-eps, eps).add(base).clamp(0, 1)
    change = (poison.images.float() - 255 * found).abs()
    change[:, :, 6:, 6:] = 0
    assert float(change.max()) < 1
    loss = F.cross_entropy(model(found), labels).item()
    assert poison.notes["own_loss"] == pytest.approx(loss, rel=1e-3)


def test_robust_surrogates_are_trained_adversarially_by_a_recipe_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = CleanLabelBackdoor(steps=2, robust=True)
    task = replace(attack.assumed(), budget=0.1).draw(TRAIN, TEST, 0)
    seen: list[Recipe] = []
    fit = Recipe.fit
    monkeypatch.setattr(
        Recipe, "fit", lambda self, *args, **settings: seen.append(self) or fit(self, *args, **settings)
    )
    task.check(attack.craft(task, quick(epochs=1), 0))
    assert [repr(one.transforms[-1]) for one in seen] == [
        f"Adversarial(ball=Linf(eps={8 / 255}), steps=7, step={2.5 * 8 / 255 / 7}, update=None)"
    ]
    with pytest.raises(TypeError, match="give a Recipe as learner or as surrogate"):
        attack.craft(task, OwnCode(quick(epochs=1)), 0)


@pytest.mark.parametrize(
    ("trigger", "ball", "eps"),
    [
        (PatchTrigger(), NOISE + Patch(area=0.1), 32 / 255),
        (PatchTrigger(), Patch(area=0.2) + Linf(eps=0.1) + Linf(eps=0.1), 0.2),
        (BlendTrigger(alpha=0.125), Linf(eps=0.25), 0.125),
        (WarpTrigger(), Linf(eps=0.1) + WarpTrigger().limit(), 0.1),
        (PatchTrigger(), Linf(eps=0.1), None),
        (PatchTrigger(), Patch(area=0.1), None),
        (BlendTrigger(alpha=0.125), Linf(eps=0.125), None),
    ],
)
def test_what_the_ball_leaves_beside_the_trigger(trigger: Trigger, ball: Ball, eps: float | None) -> None:
    if eps is not None:
        assert room_beside(trigger, ball).eps == pytest.approx(eps)
        return
    with pytest.raises(TypeError, match="use a sum of both, for example linf:eps=32/255 plus what the trigger needs"):
        room_beside(trigger, ball)


def test_other_goals_and_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="serves the goal backdoor"):
        CleanLabelBackdoor().craft(ThreatModel(budget=0.1).draw(TRAIN, TEST, 0), quick(), 0)
    all_to_all = replace(CleanLabelBackdoor.threat, goal=Backdoor(all_to_all=True), poison_class="any")
    with pytest.raises(TypeError, match="intends no single one"):
        CleanLabelBackdoor().craft(all_to_all.draw(TRAIN, TEST, 0), quick(), 0)
    with pytest.raises(ValueError, match="steps is 0"):
        CleanLabelBackdoor(steps=0)


@pytest.mark.effect
def test_it_teaches_the_trigger_where_a_bare_patch_does_not() -> None:
    train, test = Digits().load()
    recipe = Recipe(epochs=20, batch_size=64, transforms=(), precision="fp32")
    ball = Linf(eps=64 / 255) + Patch(area=0.1)
    rates: dict[str, list[float]] = {"moved": [], "bare": []}
    for seed in range(3):
        for name, attack in (("moved", CleanLabelBackdoor()), ("bare", BadNets(clean_label=True))):
            task = replace(attack.assumed(), ball=ball).draw(train, test, seed)
            poison = attack.craft(task, recipe, seed)
            task.check(poison)
            outcome = task.outcome(recipe.fit([poison.apply(train)], [seed + 100]), poison)
            success, accuracy = outcome["success"], outcome["accuracy"]
            assert success is not None
            assert accuracy is not None
            rates[name].append(float(success.float().mean()))
            assert float(accuracy) > 0.95
    assert sum(rates["moved"]) / 3 > 0.08
    assert sum(rates["moved"]) > 3 * sum(rates["bare"])
    assert all(moved > bare for moved, bare in zip(rates["moved"], rates["bare"], strict=True))
