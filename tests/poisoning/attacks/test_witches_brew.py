"""Gradient matching against finite differences, a straightforward double backward, and its own limits."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Linf, to_floats
from mithridate.core.seeds import stream
from mithridate.core.transforms import Flip, Mixup, Shift
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.matching import Matching
from mithridate.poisoning.threat import ThreatModel
from tests.poisoning.cases import quick, three_classes, two_architectures

CLASSES = 3


def smooth_network(seed: int = 0) -> nn.Module:
    """A network in float64 without kinks, so that finite differences have a limit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES)
        ).double()


def goal_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters())))


def matching(network: nn.Module, poisons: int, *, transforms=(), **settings) -> Matching:
    target = torch.rand(1, 2, 6, 6, generator=stream(1, "target"), dtype=torch.float64)
    goal = goal_gradient(network, target, torch.tensor([2]))
    labels = F.one_hot(torch.arange(poisons) % CLASSES, CLASSES).double()
    attack = WitchesBrew(precision="fp32", **settings)
    return Matching(attack, network, goal, 1, labels, target[:0], transforms)


def images_of(poisons: int) -> Tensor:
    return torch.rand(poisons, 2, 6, 6, generator=stream(2, "poisons"), dtype=torch.float64)


def by_hand(network: nn.Module, goal: list[Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine with one long vector each, differentiated twice by autograd."""
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(network(images), labels, reduction="sum")
    found = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (found, goal))
    value = 1 - torch.cosine_similarity(a, b, dim=0)
    return value.detach(), torch.autograd.grad(value, images)[0]


def test_value_and_gradient_equal_a_straightforward_double_backward() -> None:
    network = smooth_network()
    objective = matching(network, 5)
    value, gradient = objective(images_of(5), stream(0, "x"))
    expected, slope = by_hand(network, objective.goal, images_of(5), objective.labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-12)


def test_gradient_agrees_with_finite_differences_through_the_augmentation() -> None:
    objective = matching(smooth_network(), 4, transforms=(Flip(), Shift(share=0.2)))
    images, step = images_of(4), 1e-5
    _, gradient = objective(images, stream(0, "x"))
    direction = torch.randn(images.shape, generator=stream(3, "direction"), dtype=torch.float64)
    up, down = (objective(images + sign * step * direction, stream(0, "x"))[0] for sign in (1, -1))
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_compute_the_exact_full_objective(micro_batch: int) -> None:
    whole = matching(smooth_network(), 5)(images_of(5), stream(0, "x"))
    pieces = matching(smooth_network(), 5, micro_batch=micro_batch)(images_of(5), stream(0, "x"))
    torch.testing.assert_close(pieces[0], whole[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-8, atol=1e-13)


def test_both_passes_over_the_micro_batches_see_the_same_augmentation() -> None:
    """Otherwise the gradient would not be that of the value."""
    objective = matching(smooth_network(), 5, transforms=(Flip(), Shift(share=0.2)), micro_batch=2)
    images, step = images_of(5), 1e-5
    _, gradient = objective(images, stream(0, "x"))
    direction = torch.randn(images.shape, generator=stream(3, "direction"), dtype=torch.float64)
    up, down = (objective(images + sign * step * direction, stream(0, "x"))[0] for sign in (1, -1))
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_the_target_itself_with_the_intended_label_matches_perfectly() -> None:
    network = smooth_network()
    target = torch.rand(1, 2, 6, 6, generator=stream(1, "target"), dtype=torch.float64)
    labels = F.one_hot(torch.tensor([2]), CLASSES).double()
    goal = goal_gradient(network, target, torch.tensor([2]))
    for loss in ("cosine", "squared-error"):
        objective = Matching(WitchesBrew(precision="fp32", loss=loss), network, goal, 1, labels, target[:0], ())
        assert float(objective(target, stream(0, "x"))[0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("micro_batch", [2, 128])
def test_squared_error_is_that_of_the_mean_gradients(micro_batch: int) -> None:
    network, images = smooth_network(), images_of(5)
    targets = torch.rand(3, 2, 6, 6, generator=stream(1, "target"), dtype=torch.float64)
    intended, own = torch.tensor([2, 2, 2]), torch.arange(5) % CLASSES
    summed = torch.autograd.grad(
        F.cross_entropy(network(targets), intended, reduction="sum"), list(network.parameters())
    )
    attack = WitchesBrew(precision="fp32", loss="squared-error", micro_batch=micro_batch)
    objective = Matching(attack, network, list(summed), len(targets), F.one_hot(own, CLASSES).double(), images[:0], ())
    value, gradient = objective(images, stream(0, "x"))
    leaf = images.clone().requires_grad_()
    ours = torch.autograd.grad(F.cross_entropy(network(leaf), own), list(network.parameters()), create_graph=True)
    theirs = goal_gradient(network, targets, intended)
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
    expected = (a - b).square().sum() / (2 * b.square().sum())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-7, atol=1e-12)


def test_squared_error_falls_in_a_search() -> None:
    train, test = three_classes()
    task = ThreatModel(budget=0.1, ball=Linf(eps=32 / 255)).draw(train, test, 0)
    found = [
        WitchesBrew(steps=steps, surrogates=1, loss="squared-error", augment=False).craft(task, quick(epochs=2), 0)
        for steps in (0, 40)
    ]
    assert found[1].notes["matching_loss"] < 0.9 * found[0].notes["matching_loss"]


def test_running_out_of_memory_halves_the_micro_batch_says_so_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = matching(smooth_network(), 6)
    expected = matching(smooth_network(), 6)(images_of(6), stream(0, "x"))
    honest = Matching._gradients

    def greedy(self: Matching, images: Tensor, part: Tensor, rng: torch.Generator, *, graph: bool) -> tuple:
        if len(images) > 3:
            raise torch.OutOfMemoryError("too much")
        return honest(self, images, part, rng, graph=graph)

    objective.size = 8
    monkeypatch.setattr(Matching, "_gradients", greedy)
    with pytest.warns(UserWarning, match="out of memory; going on with pieces of 4"):
        found = objective(images_of(6), stream(0, "x"))
    torch.testing.assert_close(found[1], expected[1], rtol=1e-8, atol=1e-13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the smaller size is remembered
        objective(images_of(6), stream(0, "x"))


def test_the_matching_loss_of_the_shipped_pixels_falls_with_more_steps() -> None:
    train, test = three_classes(90)
    task = ThreatModel(budget=0.2, ball=Linf(eps=32 / 255)).draw(train, test, seed=0)
    learner = quick(transforms=(Shift(),))
    losses = [WitchesBrew(steps=s, surrogates=1).craft(task, learner, 0).notes["matching_loss"] for s in (0, 40)]
    assert 0 <= losses[1] < losses[0] - 0.05
    assert losses[0] <= 2


def test_restarts_never_raise_the_matching_loss() -> None:
    train, test = three_classes(60)
    task = ThreatModel(budget=0.1).draw(train, test, seed=1)
    learner = quick(transforms=())
    one, three = (
        WitchesBrew(steps=3, restarts=r, surrogates=1).craft(task, learner, 1).notes["matching_loss"] for r in (1, 3)
    )
    assert three <= one


@pytest.mark.parametrize("name", ["intended", "target", "third", "any"])
@pytest.mark.parametrize("targets", [1, 3])
def test_the_note_is_the_matching_loss_by_hand_for_any_class_and_number_of_targets(name: str, targets: int) -> None:
    """Poisons with their own labels on one side; on the other the mean loss of the targets with the intended one."""
    train, test = three_classes(60)
    threat = ThreatModel(budget=0.1, targets=targets, poison_class=name, ball=Linf(eps=32 / 255))  # type: ignore[arg-type]
    task, learner = threat.draw(train, test, seed=0), quick(transforms=())
    poison = WitchesBrew(steps=30, surrogates=1, precision="fp32").craft(task, learner, 0)
    task.check(poison)
    assert len(poison) == task.limit
    assert poison.labels is None
    model = learner.fit([train], [0]).models[0]
    goal = goal_gradient(model, task.targets, task.intended)
    labels = F.one_hot(train.labels_of(poison.rows), CLASSES).float()
    value, _ = by_hand(model, goal, to_floats(poison.images), labels)
    assert poison.notes["matching_loss"] == pytest.approx(float(value), abs=1e-4)
    clean, _ = by_hand(model, goal, task.images(poison.rows), labels)
    assert float(value) < float(clean) - 0.02


def test_all_rows_may_be_poisoned_under_a_mixing_augmentation() -> None:
    train, test = three_classes(12)
    task = ThreatModel(budget=1.0, poison_class="any").draw(train, test, seed=0)
    task.check(WitchesBrew(steps=1, surrogates=1).craft(task, quick(transforms=(Mixup(),)), 0))


def test_surrogates_of_two_architectures_are_averaged_and_need_no_recipe() -> None:
    train, test = three_classes(60)
    task = ThreatModel(budget=0.1, ball=Linf(eps=32 / 255)).draw(train, test, seed=0)
    learner = two_architectures()
    poison = WitchesBrew(steps=3, surrogates=2, precision="fp32").craft(task, learner, 0)
    labels = F.one_hot(train.labels_of(poison.rows), CLASSES).float()
    values = [
        by_hand(model, goal_gradient(model, task.targets, task.intended), to_floats(poison.images), labels)[0]
        for model in learner.fit([train] * 2, [0, 1]).models
    ]
    assert poison.notes["matching_loss"] == pytest.approx(float(sum(values)) / 2, abs=1e-4)


def test_a_mixing_augmentation_gets_clean_partners_and_poisons_only_its_own_rows() -> None:
    train, test = three_classes(60)
    task = ThreatModel(budget=0.1).draw(train, test, seed=0)
    poison = WitchesBrew(steps=3, surrogates=1).craft(task, quick(transforms=(Mixup(),)), 0)
    task.check(poison)
    assert torch.equal(poison.rows, task.choose(0))


def test_bfloat16_stays_close_to_float32() -> None:
    train, test = three_classes(90)
    task = ThreatModel(budget=0.2, ball=Linf(eps=32 / 255)).draw(train, test, seed=0)
    losses = [
        WitchesBrew(steps=30, surrogates=1, precision=precision).craft(task, quick(), 0).notes["matching_loss"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.1)


def test_a_backdoor_is_refused_with_the_reason() -> None:
    train, test = three_classes()
    task = ThreatModel(goal=Backdoor()).draw(train, test, seed=0)
    with pytest.raises(TypeError, match="serves the goal misclassify"):
        WitchesBrew().craft(task, quick(), 0)
