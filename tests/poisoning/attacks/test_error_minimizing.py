"""error-minimizing: rounds, when they end, class-wise patterns, and what is published."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.seeds import stream
from mithridate.core.states import TrainingState
from mithridate.poisoning.alternating import Alternating, PerClass, PerImage, batches_left, rounds_of
from mithridate.poisoning.attacks.error_minimizing import ErrorMinimizing, Noise
from tests.poisoning.cases import OwnCode, quick, three_classes

RECIPE = quick(epochs=6, transforms=())  # 2 steps an epoch
QUICK = ErrorMinimizing(steps=5, batches=2, inner_steps=3, precision="fp32", augment=False)


def followed(attack: ErrorMinimizing, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in the alternation, in order."""
    events: list[str] = []
    advance = TrainingState.advance
    monkeypatch.setattr(TrainingState, "advance", lambda self, batch: events.append("train") or advance(self, batch))
    for kind in (PerImage, PerClass):
        improve = kind.improve
        monkeypatch.setattr(
            kind, "improve", lambda self, *args, improve=improve: events.append("noise") or improve(self, *args)
        )
    attack.prepare(three_classes()[0], Linf(eps=16 / 255), RECIPE, 0)
    return events


@pytest.mark.parametrize("noise", ["sample-wise", "class-wise"])
def test_rounds_alternate_to_the_end_of_training_where_errors_stay(
    noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Alternating, "error", lambda self, models: 1.0)
    events = followed(dataclasses.replace(QUICK, noise=noise), monkeypatch)
    assert events == ["noise", "train", "train"] * 6


@pytest.mark.parametrize(("noise", "enough"), [("sample-wise", 0.009), ("class-wise", 0.09)])
def test_rounds_end_when_errors_are_few(noise: Noise, enough: float, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 1.2 * enough, enough])
    monkeypatch.setattr(Alternating, "error", lambda self, models: next(errors))
    events = followed(dataclasses.replace(QUICK, noise=noise), monkeypatch)
    assert events.count("noise") == 3


def test_networks_train_on_the_noisy_images_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = three_classes()
    seen, noisy = [], []
    advance, improve = TrainingState.advance, PerImage.improve

    def advanced(self: TrainingState, batch):
        seen.append(batch)
        return advance(self, batch)

    def improved(self: PerImage, *args) -> None:
        improve(self, *args)
        noisy.append(self.noisy.clone())

    monkeypatch.setattr(TrainingState, "advance", advanced)
    monkeypatch.setattr(PerImage, "improve", improved)
    monkeypatch.setattr(Alternating, "error", lambda self, models: 1.0)
    QUICK.prepare(train, Linf(eps=16 / 255), RECIPE, 0)
    for number, batch in enumerate(seen):
        expected = noisy[number // 2][batch.rows].float() / 255
        assert torch.equal(batch.images, expected)
    assert all(Linf(eps=16 / 255).contains(train.floats(train.ids), one.float() / 255).all() for one in noisy)


def test_noise_lowers_the_loss_of_images_that_were_never_seen() -> None:
    train, test = three_classes()
    perturb = dataclasses.replace(QUICK, steps=30).prepare(train, Linf(eps=16 / 255), RECIPE, 0)
    images, labels = test.floats(test.ids), test.labels
    start = dataclasses.replace(QUICK, steps=0).prepare(train, Linf(eps=16 / 255), RECIPE, 0)
    after, before = (one(images, labels, stream(1)).value for one in (perturb, start))
    assert (after < before).float().mean() > 0.95


def test_class_wise_noise_is_one_pattern_for_each_class_inside_the_ball() -> None:
    train, test = three_classes()
    eps = 16 / 255
    perturb = dataclasses.replace(QUICK, noise="class-wise").prepare(train, Linf(eps=eps), RECIPE, 0)
    grey = torch.full((9, 3, 8, 8), 128, dtype=torch.uint8).float() / 255
    labels = torch.arange(9) % 3
    change = perturb(grey, labels, stream(0)).images.int() - 128
    for label in range(3):
        assert (change[labels == label] == change[label]).all()
    assert 0 < change.abs().max() <= 16
    assert not torch.equal(change[0], change[1])
    clean = test.floats(test.ids)
    assert Linf(eps=eps).contains(clean, perturb(clean, test.labels, stream(0)).images.float() / 255).all()


def test_class_wise_noise_moves_along_the_summed_gradient_of_its_class() -> None:
    train, _ = three_classes()
    attack = dataclasses.replace(QUICK, noise="class-wise", inner_steps=1, step=0.25, chunk=17)
    work = PerClass(attack, train, Linf(eps=0.1), ())
    models = RECIPE.fit([train], [0]).models
    work.improve(models, 0, 0)
    leaf = train.floats(train.ids).requires_grad_()
    loss = F.cross_entropy(models[0](leaf), train.labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, leaf)
    for label in range(3):
        wanted = -0.025 * slope[train.labels == label].sum(0).sign()
        assert torch.allclose(work.patterns[label] - 0.5, wanted, atol=1e-6)


def test_the_error_is_the_share_of_noisy_images_that_come_out_wrong() -> None:
    train, _ = three_classes()
    work = PerImage(QUICK, train, Linf(eps=0.1), ())
    models = RECIPE.fit([train] * 2, [0, 1]).models
    work.noisy = 255 - work.noisy
    with torch.no_grad():
        guess = torch.stack([model(work.noisy.float() / 255) for model in models]).sum(0).argmax(1)
    assert work.error(models) == pytest.approx(float((guess != train.labels).float().mean()))
    assert work.error(models) > 0


def test_a_training_has_so_many_rounds_and_batches() -> None:
    (state,) = RECIPE.begin([three_classes()[0]], [0])
    assert rounds_of(state, 5) == 3  # 12 steps
    count = 0
    for batch in batches_left(state):
        state.advance(batch)
        count += 1
    assert count == 12


def test_code_of_the_users_own_cannot_take_part() -> None:
    with pytest.raises(TypeError, match="give a Recipe"):
        QUICK.prepare(three_classes()[0], Linf(eps=0.1), OwnCode(RECIPE), 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise": "pixel-wise"}, "noise is 'pixel-wise'; use one of sample-wise, class-wise"),
        ({"batches": 0}, "batches is 0; a round needs at least 1"),
        ({"inner_steps": 0}, "inner_steps is 0; a round needs at least 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ErrorMinimizing(**settings)
