"""MetaPoison against finite differences in float64, a second unrolled loop, and its own promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import AnyImage, Linf
from mithridate.core.batch import Batch
from mithridate.core.ensemble import in_mode
from mithridate.core.learners import Mixed
from mithridate.core.seeds import stream
from mithridate.core.states import Stage, TrainingState
from mithridate.core.training import Recipe
from mithridate.core.transforms import Flip, Shift
from mithridate.poisoning.attacks.metapoison import MetaPoison
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.task import Task
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.unrolling import unrolled_loss
from tests.poisoning.cases import OwnCode, quick, three_classes

CLASSES = 3
RATE = 0.3


def network(seed: int = 0) -> nn.Module:
    """In float64 and without kinks, with BatchNorm, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 25, CLASSES)]
        return nn.Sequential(*layers).double().train()


def batches(count: int, size: int = 6) -> list[Batch]:
    made = []
    for number in range(count):
        images = torch.rand(size, 2, 5, 5, generator=stream(number, "batch"), dtype=torch.float64)
        labels = torch.randint(CLASSES, (size,), generator=stream(number, "labels"))
        made.append(Batch(images, F.one_hot(labels, CLASSES).double(), torch.arange(size), 0.0))
    return made


def targets(count: int = 2) -> Tensor:
    return torch.rand(count, 2, 5, 5, generator=stream(9, "target"), dtype=torch.float64)


def loss_of(images: Tensor, later: Sequence[Batch], module: nn.Module, kappa: float = 100.0) -> Tensor:
    first, *rest = later
    intended = torch.tensor([2, 2])
    with in_mode(module, train=True):
        return unrolled_loss(module, [first._replace(images=images), *rest], targets(), intended, RATE, kappa)


@pytest.mark.parametrize("inner_steps", [1, 2, 3])
def test_the_meta_gradient_agrees_with_finite_differences_in_float64(inner_steps: int) -> None:
    module, drawn = network(), batches(inner_steps + 1)
    leaf = drawn[0].images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf, drawn, module), leaf)
    assert float(gradient.abs().max()) > 1e-4
    for number in range(3):
        direction = torch.randn(leaf.shape, generator=stream(number, "direction"), dtype=torch.float64)
        step = 1e-5
        up, down = (loss_of(leaf.detach() + sign * step * direction, drawn, module) for sign in (1, -1))
        slope = float((up - down).detach() / (2 * step))
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_it_equals_sgd_taken_in_place_with_the_target_in_each_batch() -> None:
    drawn, module, losses = batches(4), network(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for number, batch in enumerate(drawn):
        logits = module(torch.cat([batch.images, targets()]))
        if number:
            wanted, others = logits[6:, 2], logits[6:, :2].amax(1)
            losses.append(float((others - wanted).mean().detach()))
        optimizer.zero_grad()
        F.cross_entropy(logits[:6], batch.targets).backward()
        optimizer.step()
    assert float(loss_of(drawn[0].images, drawn, network()).detach()) == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_neither_weights_nor_running_statistics_change() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    leaf = batches(1)[0].images.requires_grad_()
    torch.autograd.grad(loss_of(leaf, batches(3), module), leaf)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_no_inner_step_is_computed_and_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, honest = [], torch.autograd.grad

    def counted(outputs, inputs, *args, **kwargs):
        taken.append(bool(kwargs.get("create_graph")))
        return honest(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    loss_of(batches(1)[0].images, batches(3), network())
    assert taken == [True, True]


def test_a_wide_margin_is_enough() -> None:
    drawn = batches(3)
    leaf = drawn[0].images.clone().requires_grad_()
    loss = loss_of(leaf, drawn, network(), kappa=-1e3)
    assert float(loss.detach()) == 1e3
    assert not bool(torch.autograd.grad(loss, leaf)[0].any())


def task_of(**settings) -> Task:
    train, test = three_classes(train=90)
    return ThreatModel(**({"budget": 0.1, "ball": Linf(eps=32 / 255)} | settings)).draw(train, test, 0)


SMALL = {"steps": 2, "surrogates": 2}


@pytest.mark.parametrize("batches", ["packed", "as-drawn"])
@pytest.mark.parametrize("trajectory", ["clean", "poison"])
def test_the_meta_loss_is_below_that_of_poison_that_stays_where_it_began(batches: str, trajectory: str) -> None:
    task, recipe = task_of(budget=0.2), quick(epochs=40, transforms=(), learning_rate=0.05)
    settings = {"steps": 12, "surrogates": 1, "precision": "fp32", "batches": batches, "trajectory": trajectory}
    moved, still = (MetaPoison(lr=lr, **settings).craft(task, recipe, 0).notes["meta_loss"] for lr in (200 / 255, 1e-9))
    assert moved < still - 0.1


def test_surrogates_are_spread_over_the_epochs_and_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[list[int]] = []
    honest = Recipe.follow

    def followed(self: Recipe, datasets, seeds):
        def noted(course, seen):
            for age, stage in enumerate(course):
                seen.append((age, stage.rate))
                yield stage

        courses = honest(self, datasets, seeds)
        ages.extend([] for _ in courses)
        return [noted(course, seen) for course, seen in zip(courses, ages, strict=True)]

    monkeypatch.setattr(Recipe, "follow", followed)
    recipe = quick(epochs=8)
    MetaPoison(steps=5, surrogates=4, augment=False).craft(task_of(), recipe, 0)
    # through the first ages quickly, then one stage per step, so 5 of them
    assert [len(seen) for seen in ages] == [5, 7, 9, 11]
    assert ages[3][-1][0] == 10  # in the third epoch of its second training
    assert [rate for _, rate in ages[3]][:8] == pytest.approx([0.1 * recipe.schedule(e / 8) for e in range(8)])
    assert ages[3][8][1] == pytest.approx(0.1)


def test_a_training_that_is_through_begins_again_from_new_weights() -> None:
    train, _ = three_classes()
    recipe = quick(epochs=2)
    (course,) = recipe.follow([train], [5])
    starts = [[value.clone() for value in next(course).module.state_dict().values()] for _ in range(5)]
    assert not all(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))
    again = recipe.start(train, 5).module.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(starts[0], again, strict=True))


def test_packed_poisons_fill_at_most_half_a_batch_and_each_gets_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(module, drawn, targets, intended, rate, kappa):
        seen.append([batch.rows.tolist() for batch in drawn])
        return sum(batch.images.sum() for batch in drawn[:1]) + 0 * targets.sum()

    monkeypatch.setattr("mithridate.poisoning.unrolling.unrolled_loss", spy)
    task = task_of(budget=0.3)  # 27 of the intended class's 30 images
    poison = MetaPoison(steps=1, surrogates=1, augment=False).craft(task, quick(epochs=2, batch_size=20), 0)
    chosen = set(poison.rows.tolist())
    in_first = [sorted(chosen & set(rows[0])) for rows in seen]
    assert all(len(rows[0]) == 20 and len(found) <= 10 for rows, found in zip(seen, in_first, strict=True))
    for half in (in_first[:3], in_first[3:]):  # the step, and the last evaluation
        assert sorted(row for found in half for row in found) == sorted(chosen)
    assert not any(chosen & set(later) for rows in seen for later in rows[1:])
    assert len({row for rows in seen[:1] for later in rows for row in later}) == 60


def test_as_drawn_differentiates_what_training_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(module, drawn, targets, intended, rate, kappa):
        seen.append([batch.rows.tolist() for batch in drawn])
        return drawn[0].images.sum() + 0 * targets.sum()

    monkeypatch.setattr("mithridate.poisoning.unrolling.unrolled_loss", spy)
    task = task_of(budget=0.05)
    recipe = quick(epochs=3, batch_size=15, transforms=())
    attack = MetaPoison(steps=1, surrogates=1, batches="as-drawn", augment=False)
    poison = attack.craft(task, recipe, 0)
    (state,) = recipe.begin([task.train], [0])
    epochs = []
    for _ in range(2):  # the step, and the last evaluation
        epoch = [batch.rows.tolist() for batch in state.batches()]
        epochs += [epoch[i : i + 3] for i in range(len(epoch) - 2) if set(poison.rows.tolist()) & set(epoch[i])]
    assert seen == epochs


def test_one_surrogate_trains_as_without_being_watched() -> None:
    task, recipe = task_of(), quick(epochs=4)
    states: list[TrainingState] = []

    class Watching(Recipe):
        def begin(self, datasets, seeds):
            states.extend(super().begin(datasets, seeds))
            return states

    watching = Watching(**{name: getattr(recipe, name) for name in ("model", "epochs", "batch_size", "precision")})
    MetaPoison(steps=2, surrogates=1, batches="as-drawn").craft(task, watching, 0)
    plain = recipe.start(task.train, 0)
    for _ in range(3):
        plain.run_epoch()
    for a, b in zip(states[0].module.state_dict().values(), plain.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_on_the_poisoned_trajectory_surrogates_train_on_the_poison() -> None:
    task, recipe = task_of(), quick(epochs=4)
    made = [MetaPoison(**SMALL, trajectory=t).craft(task, recipe, 0).images for t in ("clean", "poison")]
    assert not torch.equal(*made)


def test_augmentation_is_the_victims() -> None:
    task = task_of()
    with_, without = (quick(epochs=2, transforms=t) for t in ((Flip(), Shift()), ()))
    plain = MetaPoison(**SMALL, augment=False).craft(task, without, 0)
    assert torch.equal(plain.images, MetaPoison(**SMALL).craft(task, without, 0).images)
    assert not torch.equal(plain.images, MetaPoison(**SMALL).craft(task, with_, 0).images)


def test_surrogates_may_be_of_several_architectures_and_train_a_head_alone(tmp_path) -> None:
    from mithridate.core.classifier import save_weights

    task = task_of()
    mixed = Mixed((quick(model="convnet:width=4"), quick(model="convnet:width=8")))
    task.check(MetaPoison(**SMALL).craft(task, mixed, 0))
    weights = tmp_path / "body.safetensors"
    save_weights(quick().fit([task.train], [0]).models[0], weights)
    task.check(MetaPoison(**SMALL).craft(task, quick(start_from=weights, trainable="head"), 0))


def test_a_watermark_is_where_the_search_begins() -> None:
    task = task_of(ball=AnyImage(), budget=0.05)
    attack = MetaPoison(steps=0, surrogates=1, watermark=0.3, search=Linf(eps=8 / 255))
    poison = attack.craft(task, quick(epochs=1), 0)
    blend = 0.7 * task.images(poison.rows) + 0.3 * task.targets
    assert float((poison.images / 255 - blend).abs().max()) <= 8.6 / 255
    held = task_of(budget=0.05)  # eps 32
    task.check(attack.craft(task, quick(epochs=1), 0))
    held.check(attack.craft(held, quick(epochs=1), 0))


def test_the_goal_must_be_given_targets() -> None:
    train, test = three_classes()
    task = ThreatModel(budget=0.1, goal=Backdoor()).draw(train, test, 0)
    with pytest.raises(TypeError, match="misclassify"):
        MetaPoison().craft(task, quick(), 0)


def test_training_code_of_ones_own_cannot_be_unrolled() -> None:
    with pytest.raises(TypeError, match="give a Recipe as learner or as surrogate"):
        MetaPoison(**SMALL).craft(task_of(), OwnCode(quick()), 0)
    with pytest.raises(TypeError, match="nobody can follow"):
        OwnCode(quick()).begin([], [])


@pytest.mark.parametrize("settings", [{"surrogates": 0}, {"inner_steps": 0}, {"watermark": 1.0}])
def test_settings_that_make_no_sense_are_errors(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MetaPoison(**settings)


def test_a_stage_is_a_module_and_its_rate() -> None:
    assert Stage(nn.Identity(), 0.1).rate == 0.1
