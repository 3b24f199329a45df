"""The mean by hand and by finite differences; clipping and noise; what private training refuses and claims."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.batch import Batch, GradientRule, RowRule
from mithridate.core.data import ImageData
from mithridate.core.gradient_rules import Mean, PerSample, Shaped, refuse_second_rule, trainable
from mithridate.core.models import build
from mithridate.core.privacy import subsampled_gaussian_epsilon
from mithridate.core.sampling import Poisson, Shuffled
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe
from mithridate.core.transforms import Adversarial, Cutmix, Flip, Maxup, Mixup
from tests.core.training_cases import data, digest


def batch(classes: int = 3, *, channels: int = 1, dtype: torch.dtype = torch.float64) -> Batch:
    rng = stream(0, "batch")
    images = torch.rand(6, channels, 8, 8, generator=rng).to(dtype)
    targets = torch.softmax(torch.randn(6, classes, generator=rng), 1).to(dtype)
    return Batch(images, targets, torch.arange(6), 0.0)


def test_softmax_regression_in_closed_form() -> None:
    given = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double())
    gradients, loss = Mean()(model, given, stream(0))
    logits = model(given.images).detach()
    wrong = (logits.softmax(1) - given.targets) / 6
    torch.testing.assert_close(gradients["1.weight"], wrong.T @ given.images.flatten(1))
    torch.testing.assert_close(gradients["1.bias"], wrong.sum(0))
    torch.testing.assert_close(loss, -(given.targets * logits.log_softmax(1)).sum(1).mean())
    assert not loss.requires_grad


def test_a_network_against_finite_differences() -> None:
    given, model = batch(), build("convnet:width=4", 3, (1, 8, 8), seed=0).double().eval()
    gradients, _ = Mean()(model, given, stream(0))
    rng = stream(1)

    def moved(direction: dict[str, Tensor], step: float) -> float:
        weights = {name: value.detach() + step * direction[name] for name, value in model.named_parameters()}
        return F.cross_entropy(torch.func.functional_call(model, weights, given.images), given.targets).item()

    for _ in range(3):
        direction = {name: torch.randn(g.shape, generator=rng, dtype=g.dtype) for name, g in gradients.items()}
        expected = (moved(direction, 1e-6) - moved(direction, -1e-6)) / 2e-6
        found = sum((gradients[name] * direction[name]).sum().item() for name in gradients)
        assert abs(found - expected) < 1e-6 * max(1, abs(expected))


def test_frozen_parameters_get_no_gradient() -> None:
    model = build("convnet:width=4", 3, (1, 8, 8), seed=0)
    head = model.get_submodule("linear")
    model.requires_grad_(False)
    head.requires_grad_(True)
    assert set(trainable(model)) == {"linear.weight", "linear.bias"}
    gradients, _ = Mean()(model, batch(dtype=torch.float32), stream(0))
    assert set(gradients) == {"linear.weight", "linear.bias"}


def test_the_rule_leaves_no_gradient_behind() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double())
    Mean()(model, batch(), stream(0))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_batch_has_no_gradient() -> None:
    model = build("convnet:width=4", 3, (1, 8, 8), seed=0).train()  # BatchNorm would refuse it
    empty = Batch(torch.zeros(0, 1, 8, 8), torch.zeros(0, 3), torch.arange(0), 0.0)
    gradients, loss = Mean()(model, empty, stream(0))
    assert loss.item() == 0
    assert {name: part.shape for name, part in gradients.items()} == {n: p.shape for n, p in trainable(model).items()}
    assert not any(bool(part.any()) for part in gradients.values())


# --- shaping ---------------------------------------------------------------------------------------------------------


def length(gradients: dict[str, Tensor]) -> float:
    return sum(float(part.square().sum()) for part in gradients.values()) ** 0.5


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()


def test_shaping_clips_the_gradient_of_the_batch_and_nothing_shorter() -> None:
    model, given = linear(), batch()
    plain, loss = Mean()(model, given, stream(0))
    for clip in (0.1 * length(plain), 10 * length(plain)):
        shaped, same = Shaped(clip=clip, noise=0.0)(model, given, stream(0))
        assert torch.equal(loss, same)
        for name, part in shaped.items():
            torch.testing.assert_close(part, plain[name] * min(1, clip / length(plain)))


def deviations(rule: GradientRule, given: Batch) -> tuple[float, float]:
    """Of the added noise over all numbers of 60 gradients, and the largest mean of one number."""
    model = linear()
    quiet, _ = replace(rule, noise=0.0)(model, given, stream(0))  # type: ignore[call-arg]
    rng = stream(1)
    drawn = torch.stack(
        [
            torch.cat([(part - quiet[name]).flatten() for name, part in rule(model, given, rng)[0].items()])
            for _ in range(60)
        ]
    )
    return drawn.std().item(), drawn.mean(0).abs().max().item()


@pytest.mark.parametrize("count", [6, 0])
def test_noise_has_the_deviation_that_is_said(count: int) -> None:
    """For private training a multiple of the clip over the lot, whatever batch was drawn."""
    given = batch()
    given = given._replace(images=given.images[:count], targets=given.targets[:count], rows=given.rows[:count])
    found, shift = deviations(PerSample(clip=0.3, noise=2.0, lot=12), given)
    assert abs(found - 0.3 * 2.0 / 12) < 0.02 * found  # of 11,700 draws: three standard errors
    assert shift < 5 * found / 60**0.5
    if count:
        found, _ = deviations(Shaped(clip=0.3, noise=2.0), given)
        assert abs(found - 0.3 * 2.0) < 0.02 * found


def test_the_noise_follows_the_generator() -> None:
    first, again, other = (PerSample(lot=6)(linear_at(0), batch(), stream(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first["1.weight"], again["1.weight"])
    assert not torch.equal(first["1.weight"], other["1.weight"])


def linear_at(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return linear()


# --- private training ------------------------------------------------------------------------------------------------


def test_the_private_step_divides_the_clipped_sum_by_a_constant() -> None:
    """By the lot, and not by the number of images that were drawn."""
    model, given = linear_at(0), batch()
    gradients, loss = PerSample(clip=0.2, noise=0.0, lot=10)(model, given, stream(0))
    expected = {name: torch.zeros_like(part) for name, part in gradients.items()}
    losses = []
    for number in range(6):
        one = Batch(*(part[number : number + 1] for part in given[:3]), 0.0)  # type: ignore[arg-type]
        own, single = Mean()(model, one, stream(0))
        losses.append(single)
        for name, part in own.items():
            expected[name] += part * min(1.0, 0.2 / length(own)) / 10
    torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def private(**settings: object) -> Recipe:
    suitable: dict[str, object] = {
        "model": "convnet:width=4,norm=group", "epochs": 2, "batch_size": 20, "learning_rate": 0.05,
        "precision": "fp32", "gradient": PerSample(lot=20), "sampler": Poisson(), "normalize": "fixed",
    }  # fmt: skip
    return Recipe(**(suitable | settings))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Half(RowRule):
    """Keeps the first half."""

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        return data.ids[: len(data) // 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": Shuffled()}, "shuffled does not draw .* set sampler=Poisson"),
        ({"transforms": (Flip(), Mixup())}, "mixup mixes images.* leave mixup out"),
        ({"transforms": (Maxup(inner=Cutmix()),)}, "leave maxup out"),
        ({"row_rule": Half()}, "row rule .* leave it out"),
        ({"precision": "auto"}, "precision is 'auto'.* set precision='fp32'"),
        ({"precision": "bf16"}, "set precision='fp32'"),
        ({"normalize": "data"}, "normalize is 'data'.* set normalize='fixed'"),
    ],
)
def test_what_would_make_the_claim_false_is_refused_when_the_recipe_is_made(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        private(**settings)
    with pytest.raises(ValueError, match=words):
        replace(private(), **settings)


def test_what_looks_at_one_image_at_a_time_is_fine() -> None:
    private(transforms=(Flip(), Adversarial(), Maxup()), normalize="none")


def test_batch_norm_is_refused_at_the_first_step_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d .*model='convnet:norm=group'.*trainable='head'"):
        private(model="convnet:width=4", gradient=PerSample(noise=0.0)).fit([data()], [0])


def test_private_training_claims_what_the_accountant_says() -> None:
    given, recipe = data(count=60), private(gradient=PerSample(noise=1.3, lot=20, delta=1e-3))
    (claim,) = recipe.guarantees([given])
    assert claim.kind == "differential-privacy"
    assert claim.values["epsilon"] == subsampled_gaussian_epsilon(1 / 3, 1.3, 6, 1e-3)
    assert {name: claim.values[name] for name in ("delta", "noise_multiplier", "sampling_rate", "steps")} == {
        "delta": 1e-3, "noise_multiplier": 1.3, "sampling_rate": 1 / 3, "steps": 6.0,
    }  # fmt: skip
    assert "adding or removing one training row" in claim.statement
    said = " ".join(claim.assumptions)
    assert [
        word
        for word in ("image and label", "number of rows", "seed", "start_from", "run", "floating")
        if word not in said
    ] == []


def test_without_noise_it_claims_nothing() -> None:
    assert private(gradient=PerSample(noise=0.0, lot=20)).guarantees([data()]) == ()


def test_private_training_runs_on_batches_of_any_size() -> None:
    """Batches of one row on average, so that some are empty; the same seed gives the same bits."""
    recipe = private(batch_size=1, gradient=PerSample(lot=1, noise=0.1), epochs=1)
    given = data(count=24)
    assert 0 in [len(rows) for rows in Poisson()(given.ids, 1, stream(0, "batches"))]
    first, again = (recipe.fit([given], [0]) for _ in range(2))
    assert digest(first.models[0]) == digest(again.models[0])
    assert all(bool(parameter.isfinite().all()) for parameter in first.models[0].parameters())
    assert first.history["loss"][0][0] < 10


def test_plain_training_survives_an_empty_batch() -> None:
    fitted = replace(private(), gradient=Mean(), batch_size=1, epochs=1).fit([data(count=24)], [0])
    assert fitted.history["loss"][0][0] < 10
    assert fitted.guarantees == ()


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        (PerSample, {"clip": 0.0}, "clip is 0.0"),
        (PerSample, {"noise": -1.0}, "noise is -1.0"),
        (PerSample, {"lot": 0}, "lot is 0"),
        (PerSample, {"delta": 0.0}, "delta is 0.0"),
        (PerSample, {"delta": 1.0}, "delta is 1.0"),
        (Shaped, {"clip": -1.0}, "clip is -1.0"),
        (Shaped, {"noise": float("nan")}, "noise is nan"),
    ],
)
def test_wrong_settings_are_refused(rule: type[GradientRule], settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rule(**settings)


def test_a_second_rule_does_not_replace_the_first_without_a_word() -> None:
    refuse_second_rule([Recipe()], "dp-sgd")
    with pytest.raises(ValueError, match=r"dp-sgd .* \(per-sample\); use one of the two"):
        refuse_second_rule([Recipe(), private()], "dp-sgd")
