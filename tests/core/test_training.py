"""The training engine against a loop written out by hand, step by step, with its rules and its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.batch import Batch, GradientRule, RowRule
from mithridate.core.classifier import bf16_pays
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.gradient_rules import Mean
from mithridate.core.guarantees import Guarantee
from mithridate.core.learners import Mixed
from mithridate.core.schedules import Cosine, OneCycle, Schedule, StepDecay
from mithridate.core.seeds import stream
from mithridate.core.states import TrainingState
from mithridate.core.training import Recipe, predictor_of
from mithridate.core.transforms import Flip, Mixup
from tests.core.training_cases import ROWS, data, digest, digests, dropout_net, quick


def by_hand(given: ImageData, recipe: Recipe, seed: int) -> tuple[nn.Module, list[float]]:
    """SGD with Nesterov momentum in plain tensors; the order of batches and the flips are drawn as the engine does."""
    pixels = given.images.double().numpy() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    network = models.build(recipe.model, 3, given.shape, seed).train()
    order, flips = stream(seed, "batches"), stream(seed, "transforms")
    memory: dict[str, Tensor] = {}
    per_epoch = -(-len(given) // recipe.batch_size)
    epochs = []
    for epoch in range(recipe.epochs):
        losses = []
        for number, rows in enumerate(torch.randperm(len(given), generator=order).split(recipe.batch_size)):
            progress = (epoch * per_epoch + number) / (per_epoch * recipe.epochs)
            rate = recipe.learning_rate / 10 ** sum(progress >= share for share in (3 / 8, 5 / 8, 7 / 8))
            images = torch.tensor((pixels[rows] - mean[:, None, None]) / std[:, None, None], dtype=torch.float32)
            for i, mirrored in enumerate(torch.rand(len(rows), generator=flips) < 0.5):
                images[i] = images[i].flip(2) if mirrored else images[i]
            network.zero_grad()
            loss = -network(images).log_softmax(1)[range(len(rows)), given.labels[rows]].mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    assert parameter.grad is not None
                    step = parameter.grad + recipe.weight_decay * parameter
                    memory[name] = recipe.momentum * memory[name] + step if name in memory else step.clone()
                    parameter -= rate * (step + recipe.momentum * memory[name])
        epochs.append(float(np.mean(losses)))
    return network.eval(), epochs


def test_training_is_the_loop_written_out_by_hand() -> None:
    given = data(channels=3)
    recipe = quick(epochs=4, transforms=(Flip(),), learning_rate=0.02, weight_decay=0.01)
    fitted = recipe.fit([given], [5])
    expected, losses = by_hand(given, recipe, 5)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(fitted.models[0].state_dict()[f"network.{name}"], value, atol=2e-4, rtol=2e-3)
    np.testing.assert_allclose(fitted.history["loss"][0], losses, rtol=1e-3)
    assert losses[-1] < losses[0]


def test_without_momentum_or_decay_it_is_plain_gradient_descent() -> None:
    given, model = data(count=12), models.build("convnet:width=4", 3, (1, 8, 8), seed=1)
    recipe = quick(momentum=0.0, weight_decay=0.0, normalize="none", transforms=(), batch_size=99, epochs=1)
    state = recipe.start(given, 1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    gradients = torch.autograd.grad(
        F.cross_entropy(model.train()(given.images / 255), given.labels), list(model.parameters())
    )
    state.run_epoch()
    after = dict(state.module.network.named_parameters())
    for (name, value), gradient in zip(before.items(), gradients, strict=True):
        torch.testing.assert_close(after[name], value - 0.1 * gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (StepDecay(), [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        (Cosine(), [(1 + np.cos(np.pi * epoch / 8)) / 2 for epoch in range(8)]),
        (OneCycle(peak=0.5), [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_the_learning_rate_of_each_epoch(schedule: Schedule, expected: list[float]) -> None:
    state = quick(epochs=8, batch_size=ROWS, learning_rate=0.02, schedule=schedule).start(data(), 0)
    rates = []
    for _ in range(8):
        state.run_epoch()
        rates.append(state.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, 0.02 * np.array(expected), atol=1e-12)
    assert state.progress == 1


def test_normalisation_uses_the_visible_pixels_of_the_training_set() -> None:
    given = data(channels=3).select(range(10, 50)).replace([12, 13], torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    module = quick().module(given, 0)
    pixels = given.pixels(given.ids).double().numpy() / 255
    np.testing.assert_allclose(module.normalize.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(module.normalize.std.numpy(), pixels.std((0, 2, 3)), rtol=1e-6)
    assert isinstance(quick(normalize="none").module(given, 0).normalize, nn.Identity)


def test_a_channel_that_is_constant_is_not_scaled() -> None:
    images = data(channels=3).images.clone()
    images[:, 1] = 200
    normalize = quick().module(ImageData(images, data().labels, data().classes), 0).normalize
    assert normalize.std[1] == 1
    assert normalize.mean[1].item() == pytest.approx(200 / 255)


def test_mixed_labels_reach_the_loss() -> None:
    state = quick(transforms=(Mixup(),)).start(data(), 0)
    batch = next(state.batches())
    assert torch.equal(batch.targets, torch.eye(3)[data().labels[batch.rows]])
    copy = quick(transforms=(Mixup(),)).start(data(), 0)
    mixed = Mixup()(batch, nn.Identity(), stream(0, "transforms"))
    logits = copy.module.train()(mixed.images)
    expected = -(mixed.targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(state.advance(batch), expected.detach())


# --- step by step ----------------------------------------------------------------------------------------------------


def test_states_come_once_per_epoch_and_end_where_fit_ends() -> None:
    recipe, seen = quick(epochs=3), []
    for state in recipe.states(data(), 0):
        seen.append((state.epoch, state.progress, digest(state.module)))
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3]
    assert [progress for _, progress, _ in seen] == pytest.approx([1 / 3, 2 / 3, 1])
    assert len({weights for _, _, weights in seen}) == 3
    fitted = recipe.fit([data()], [0])
    assert seen[-1][2] == digest(fitted.models[0])
    assert state.losses == fitted.history["loss"][0]


def test_advancing_by_hand_is_running_an_epoch() -> None:
    by_epoch, by_batch = (quick().start(data(), 0) for _ in range(2))
    by_epoch.run_epoch()
    losses = [by_batch.advance(batch) for batch in by_batch.batches()]
    assert digest(by_batch.module) == digest(by_epoch.module)
    assert float(torch.stack(losses).mean()) == pytest.approx(by_epoch.losses[0], rel=1e-6)
    assert by_batch.progress == by_epoch.progress == 0.5


def test_a_restart_forgets_everything() -> None:
    state = quick().start(data(), 0)
    state.run_epoch()
    state.restart(1)
    fresh = quick().start(data(), 1)
    assert (state.epoch, state.steps, state.losses, state.progress) == (0, 0, [], 0)
    for one in (state, fresh):
        one.run_epoch()
    assert digest(state.module) == digest(fresh.module)


def test_no_epochs_leave_the_weights_as_they_are_drawn() -> None:
    recipe = quick(epochs=0)
    fitted = recipe.fit([data()], [0])
    assert digest(fitted.models[0]) == digest(recipe.module(data(), 0))
    assert fitted.history == {"loss": [[]]}
    assert [state.epoch for state in recipe.states(data(), 0)] == [0]


# --- what comes back -------------------------------------------------------------------------------------------------


def test_what_fit_returns() -> None:
    fitted = quick().fit([data(), data(1)], [0, 1])
    assert isinstance(fitted.models, Ensemble)
    assert not any(part.training for module in fitted.models for part in module.modules())
    assert [len(losses) for losses in fitted.history["loss"]] == [2, 2]
    assert fitted.kept == [None, None]
    assert fitted.guarantees == ()
    images = data().images[:5] / 255
    prediction = fitted.predictor(images)
    assert torch.equal(prediction.scores, torch.stack([module(images) for module in fitted.models]).detach())
    assert prediction.scores.dtype == torch.float32
    assert not prediction.scores.requires_grad
    assert prediction.abstained.shape == (2, 5)
    assert not prediction.abstained.any()
    assert prediction.radius is None
    assert torch.equal(predictor_of(fitted.models)(images).scores, prediction.scores)


def test_data_sets_and_seeds_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        quick().fit([data()], [0, 1])


def test_a_watch_sees_each_member_after_each_epoch_and_changes_nothing() -> None:
    seen = []

    def watch(member: int, epoch: int, predictor: object) -> None:
        prediction = predictor(data().images[:4] / 255)  # type: ignore[operator]
        seen.append((member, epoch, prediction.scores))

    watched = quick().fit([data(), data(1)], [0, 1], watch=watch)
    assert [(member, epoch) for member, epoch, _ in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(scores.shape == (1, 4, 3) for _, _, scores in seen)
    assert torch.equal(seen[3][2][0], watched.models[1](data().images[:4] / 255).detach())
    assert [digest(module) for module in watched.models] == digests(quick(), data(), data(1), seeds=(0, 1))


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_bf16_trains_and_answers_in_float32(precision: str) -> None:
    recipe = quick(precision=precision, epochs=12)
    fitted = recipe.fit([data()], [0])
    module = fitted.models[0]
    assert module.bf16 == (precision == "bf16" or bf16_pays(torch.device("cpu")))
    assert fitted.history["loss"][0][-1] < 0.8 * fitted.history["loss"][0][0]
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    images = data().images / 255
    exact = module.double()(images.double())
    assert module.float()(images).dtype == torch.float32
    torch.testing.assert_close(module(images).double(), exact.double(), atol=1e-4, rtol=1e-4)
    module.bf16 = True
    assert not torch.allclose(module.train()(images), replace(recipe, precision="fp32").module(data(), 0)(images))


def test_bf16_is_used_where_it_is_asked_for() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.seen = nn.Linear(64, 3), []

        def forward(self, images: Tensor) -> Tensor:
            found = self.linear(images.flatten(1))
            self.seen.append((self.training, found.dtype))
            return found

    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        module = quick(model=lambda classes: Spy(), precision=precision, epochs=1).fit([data()], [0]).models[0]
        module(data().images / 255)
        spy = module.network
        assert {kind for training, kind in spy.seen if training} == {dtype}
        assert {kind for training, kind in spy.seen if not training} == {torch.float32}


def test_a_training_that_diverges_says_so() -> None:
    recipe = quick(model=dropout_net, learning_rate=1e38, epochs=1)
    with pytest.warns(UserWarning, match=r"diverged in epoch 1 .*lower learning_rate from 1e\+38"):
        recipe.fit([data()], [0])


# --- row rules and gradient rules ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DropFirst(RowRule):
    """Drops the first half of the rows, and notes what it saw."""

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        SEEN.append((progress, data.ids.tolist(), torch.rand((), generator=rng).item()))
        return data.ids[len(data) // 2 :]


@dataclass(frozen=True, kw_only=True)
class Noting(GradientRule):
    """The mean gradient, and a note of the rows and the progress of each step."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        STEPS.append((batch.rows.tolist(), batch.progress))
        return Mean()(model, batch, rng)


SEEN: list[tuple[float, list[int], float]] = []
STEPS: list[tuple[list[int], float]] = []


def test_a_row_rule_drops_rows_for_the_epochs_to_come() -> None:
    SEEN.clear()
    STEPS.clear()
    fitted = quick(epochs=3, batch_size=10, row_rule=DropFirst(), gradient=Noting()).fit([data()], [0])
    epochs = [STEPS[:6], STEPS[6:9], STEPS[9:]]
    used = [sorted(row for rows, _ in steps for row in rows) for steps in epochs]
    assert used == [list(range(60)), list(range(30, 60)), list(range(45, 60))]
    assert [progress for progress, _, _ in SEEN] == pytest.approx([1 / 3, 2 / 3])  # none after the last epoch
    assert [rows for _, rows, _ in SEEN] == used[:2]
    assert SEEN[0][2] != SEEN[1][2]
    assert fitted.kept[0] is not None
    assert fitted.kept[0].tolist() == used[2]


def test_progress_is_a_share_of_the_training_even_when_rows_are_dropped() -> None:
    """It used to count the steps of longer epochs against the total of shorter ones, and ran past the end."""
    STEPS.clear()
    quick(epochs=3, batch_size=10, row_rule=DropFirst(), gradient=Noting()).fit([data()], [0])
    expected = [*(k / 18 for k in range(6)), *(1 / 3 + k / 9 for k in range(3)), *(2 / 3 + k / 6 for k in range(2))]
    assert [progress for _, progress in STEPS] == pytest.approx(expected)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"momentum": -0.9}, "momentum is -0.9"),
        ({"trainable": "head"}, "start_from must name the weights"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_a_recipe_is_a_value_and_its_own_innermost_recipe() -> None:
    recipe = quick()
    assert recipe.recipe is recipe
    assert recipe == quick()
    assert hash(recipe) == hash(quick())
    assert isinstance(recipe.start(data(), 0), TrainingState)


def test_a_batch_that_does_not_fit_into_memory_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TrainingState, batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingState, "advance", full)
    with pytest.raises(MemoryError, match="batch_size 32; use a smaller one"):
        quick(batch_size=32).fit([data()], [0])


# --- normalisation and guarantees ------------------------------------------------------------------------------------


def test_fixed_normalisation_does_not_look_at_the_data() -> None:
    white = data().replace(list(range(ROWS)), torch.full((ROWS, 1, 8, 8), 255, dtype=torch.uint8))
    first, second = (quick(normalize="fixed").module(given, 0).normalize for given in (data(), white))
    for layer in (first, second):
        assert isinstance(layer, models.Normalize)
        assert (layer.mean.tolist(), layer.std.tolist()) == ([0.5], [0.25])


@dataclass(frozen=True, kw_only=True)
class Claiming(GradientRule):
    """Says how many rows it was told of."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        return Mean()(model, batch, rng)

    def check(self, recipe: Recipe) -> None:
        if recipe.epochs == 13:
            raise ValueError("13 epochs")

    def guarantee(self, recipe: Recipe, data: ImageData) -> Guarantee | None:
        rows = len(data)
        return Guarantee(kind="rows", statement="", values={"epsilon": float(rows)}) if rows > 10 else None


def test_a_fit_carries_what_its_rule_claims_for_the_worst_data_set() -> None:
    recipe, small = quick(epochs=1, gradient=Claiming()), data().select(torch.arange(30))
    assert [one.values for one in recipe.fit([small, data()], [0, 1]).guarantees] == [{"epsilon": 60.0}]
    assert recipe.fit([data().select(torch.arange(10)), data()], [0, 1]).guarantees == ()
    assert quick(epochs=1).fit([data()], [0]).guarantees == ()
    assert recipe.fit([], []).guarantees == ()


def test_a_mixture_of_recipes_claims_nothing() -> None:
    recipe = quick(epochs=1, gradient=Claiming())
    assert Mixed((recipe, recipe)).fit([data()], [0]).guarantees == ()


def test_a_recipe_asks_its_rule_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="13 epochs"):
        quick(epochs=13, gradient=Claiming())
    with pytest.raises(ValueError, match="13 epochs"):
        replace(quick(gradient=Claiming()), epochs=13)
