"""What convex and bullseye polytope share: note, layers, dropout, views, targets; each test runs both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mithridate.core.activations import activations
from mithridate.core.balls import AnyImage, to_floats
from mithridate.core.ensemble import features
from mithridate.core.sources import Digits
from mithridate.core.transforms import Mixup, Shift
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import scenario
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run
from mithridate.poisoning.attacks.bullseye_polytope import BullseyePolytope
from mithridate.poisoning.attacks.convex_polytope import ConvexPolytope
from mithridate.poisoning.attacks.watermark import Watermark
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.polytope import Polytope
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import OwnCode, quick
from tests.poisoning.polytope_cases import LEARNER, PIXELS, case, residual, short

BOTH = (ConvexPolytope, BullseyePolytope)
both = pytest.mark.parametrize("kind", BOTH)


@both
def test_the_note_is_what_is_left_of_the_target_on_8_bit_pixels(kind: type[Polytope]) -> None:
    task = case()
    poison = short(kind, surrogates=2, steps=5).craft(task, LEARNER, seed=0)
    models = LEARNER.fit([task.train] * 2, range(2)).models
    with torch.no_grad():
        pairs = zip(models.features(to_floats(poison.images)), models.features(task.targets), strict=True)
    expected = [residual(points, goal[0], convex=kind is ConvexPolytope) for points, goal in pairs]
    assert poison.notes["residual"] == pytest.approx(sum(expected) / 2, rel=1e-3)


def test_both_come_nearer_and_the_free_combination_is_never_farther_than_the_mean() -> None:
    task = case()
    model = LEARNER.fit([task.train], [0]).models[0]
    goal = features(model, task.targets)[0]
    for kind in BOTH:
        poison = short(kind).craft(task, LEARNER, seed=0)
        bases, found = (features(model, x) for x in (task.images(poison.rows), to_floats(poison.images)))
        assert residual(found, goal, convex=True) <= residual(found, goal, convex=False) + 1e-6
        before, after = (residual(points, goal, convex=kind is ConvexPolytope) for points in (bases, found))
        assert after < 0.9 * before


def test_convex_reaches_what_bullseye_reaches() -> None:
    """With features = pixels the problem is convex in poisons or shares; the mean is one of the combinations."""
    task = case()
    left = {kind: short(kind, steps=150).craft(task, PIXELS, seed=0).notes["residual"] for kind in BOTH}
    assert left[ConvexPolytope] <= left[BullseyePolytope] + 0.01


@both
def test_end_to_end_every_block_comes_nearer(kind: type[Polytope]) -> None:
    task = case()
    model = LEARNER.fit([task.train], [0]).models[0]
    poison = short(kind, end_to_end=True).craft(task, LEARNER, seed=0)
    with torch.no_grad():
        goals, bases, found = (
            activations(model, images, every_block=True)
            for images in (task.targets, task.images(poison.rows), to_floats(poison.images))
        )
    convex = kind is ConvexPolytope
    for goal, before, after in zip(goals, bases, found, strict=True):
        assert residual(after, goal[0], convex=convex) < residual(before, goal[0], convex=convex)


@both
def test_dropout_draws_repeat_by_seed(kind: type[Polytope]) -> None:
    plain, first, again = (
        short(kind, steps=3, dropout=rate).craft(case(), LEARNER, seed=0).images for rate in (0.0, 0.3, 0.3)
    )
    assert torch.equal(first, again)
    assert not torch.equal(plain, first)


@both
def test_several_targets_are_averaged(kind: type[Polytope]) -> None:
    task = case(targets=2)
    goals = kind()._goals(LEARNER.fit([task.train], [0]).models[0], task, (), seed=0)
    expected = features(LEARNER.fit([task.train], [0]).models[0], task.targets).mean(0)
    torch.testing.assert_close(goals[0], expected)


def test_views_go_through_the_transforms_that_do_not_mix_rows() -> None:
    task, model = case(), PIXELS.fit([case().train], [0]).models[0]
    one, three, mixing = (
        ConvexPolytope(views=views)._goals(model, task, transforms, seed=0)[0]
        for views, transforms in ((1, (Shift(),)), (3, (Shift(),)), (3, (Mixup(),)))
    )
    torch.testing.assert_close(one, task.targets.flatten())
    assert not torch.allclose(three, one)
    assert three.mean() <= one.mean() + 1e-6  # a shift brings in black
    torch.testing.assert_close(mixing, one)


@both
def test_the_search_starts_at_the_bases_and_stays_in_the_ball(kind: type[Polytope]) -> None:
    task = case()
    poison = short(kind, steps=0).craft(task, LEARNER, seed=0)
    assert torch.equal(poison.images, task.train.pixels(poison.rows))
    task.check(short(kind, steps=10).craft(task, LEARNER, seed=0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_of_the_users_own_code_in_either_precision(precision: str) -> None:
    task = case()
    learner = OwnCode(quick(epochs=1))
    poison = short(BullseyePolytope, precision=precision).craft(task, learner, seed=0)
    none = short(BullseyePolytope, steps=0).craft(task, learner, seed=0)
    assert poison.notes["residual"] < 0.9 * none.notes["residual"]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"dropout is 20.*0\.2 for 20 %"):
        ConvexPolytope(dropout=20)
    with pytest.raises(ValueError, match=r"repeats is 3.*set dropout"):
        BullseyePolytope(repeats=3)
    with pytest.raises(ValueError, match=r"views is 0.*at least 1"):
        ConvexPolytope(views=0)
    for kind in BOTH:
        with pytest.raises(TypeError, match="serves the goal misclassify"):
            kind().craft(case(goal=Backdoor()), LEARNER, seed=0)
        with pytest.raises(TypeError, match="poison_class='intended' or 'any'"):
            kind().craft(case(poison_class="target"), LEARNER, seed=0)


@pytest.mark.effect
def test_frozen_features_are_fooled_where_a_watermark_is_not(tmp_path: Path) -> None:
    """Five poisons without bound, against a head trained on features that the attacker knows."""
    attacks = [kind(steps=200, surrogates=1, precision="fp32") for kind in BOTH]
    won = {}
    for attack in (*attacks, Watermark()):
        trials = [
            Trial(
                data=Digits(),
                threat=ThreatModel(budget=0.009, ball=AnyImage()),
                attack=attack,
                **scenario("transfer", digits_recipe())._asdict(),
                seed=seed,
            )
            for seed in range(4)
        ]
        results = [run(trial, Store(tmp_path)) for trial in trials]
        won[type(attack)] = sum(result.outcome["success"][0][0] for result in results)
    assert won[ConvexPolytope] >= 3
    assert won[BullseyePolytope] >= 3
    assert won[Watermark] == 0
