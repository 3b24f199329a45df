"""What perturbs a release: its objectives against slow references, and chunks that do not depend on each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.augmentation import Flip, Mixup, Shift
from mithridate.core.balls import L2, Linf, Patch
from mithridate.core.ensemble import Ensemble
from mithridate.core.schema import choices, parse
from mithridate.core.seeds import stream
from mithridate.poisoning import release
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.adversarial_release import AdversarialRelease
from mithridate.poisoning.attacks.class_wise_noise import ClassWiseNoise
from mithridate.poisoning.release import Release, dealt, into, judging_gradients, lowering_losses, reach
from mithridate.poisoning.threat import Misclassify, ThreatModel
from tests.poisoning.cases import quick, three_classes

RELEASES: list[str] = sorted(name for name, kind in choices(Attack).items() if issubclass(kind, Release))
every_release = pytest.mark.parametrize("name", RELEASES)


def small(name: str) -> Release:
    """A release with its default settings, but little work."""
    attack = parse(Attack, name)
    assert isinstance(attack, Release)
    known = {field.name for field in dataclasses.fields(attack)}
    work = {"steps": 3, "batch": 8}
    return dataclasses.replace(attack, **{key: value for key, value in work.items() if key in known})


def smooth(seed: int = 0) -> nn.Sequential:
    """A network with smooth units, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(27, 3)
    return nn.Sequential(*parts).double().eval()


def case(count: int = 7) -> tuple[Tensor, Tensor]:
    rng = stream(3, "case")
    images = torch.rand(count, 1, 5, 5, generator=rng, dtype=torch.float64)
    return images, F.one_hot(torch.arange(count) % 3, 3).double()


def differences(function, images: Tensor) -> Tensor:
    """The gradient of a number by central differences, pixel by pixel."""
    found = torch.zeros_like(images)
    for place in range(images.numel()):
        moved = [images.clone(), images.clone()]
        for sign, one in zip((1, -1), moved, strict=True):
            one.view(-1)[place] += sign * 1e-6
        found.view(-1)[place] = (function(moved[0]) - function(moved[1])) / 2e-6
    return found


# --- the objectives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [False, True])
def test_losses_and_their_slope_are_those_of_autograd_averaged_over_models(raised: bool) -> None:
    images, labels = case()
    models = Ensemble([smooth(0), smooth(1)])
    value, slope = lowering_losses(models, labels, raised=raised)(images, stream(0))
    leaf = images.clone().requires_grad_()
    sign = -1 if raised else 1
    by_hand = sum(-(labels * model(leaf).log_softmax(1)).sum(1) for model in models) * sign / 2
    assert isinstance(by_hand, Tensor)
    assert torch.allclose(value, by_hand)
    assert torch.allclose(slope, torch.autograd.grad(by_hand.sum(), leaf)[0])


def squared(weights: Sequence[Tensor]):
    """A judge with another derivative for each parameter: the weighted sum of squares."""

    def judge(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = torch.stack([(w * g.square()).sum() for w, g in zip(weights, gradient, strict=True)]).sum()
        return value, [2 * w * g for w, g in zip(weights, gradient, strict=True)]

    return judge


@pytest.mark.parametrize("graph", [2, 3, 128])
def test_the_slope_of_a_judged_gradient_is_that_of_finite_differences(
    graph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "SECOND_ORDER", 25 * graph)
    images, labels = case()
    model = smooth()
    weights = [torch.rand(p.shape, generator=stream(i), dtype=p.dtype) for i, p in enumerate(model.parameters())]

    def reference(moved: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for part, known in ((moved[:4], labels[:4]), (moved[4:], labels[4:])):  # one batch of 4, one of 3
            mean = -(known * model(part).log_softmax(1)).sum(1).mean()
            gradient = torch.autograd.grad(mean, list(model.parameters()))
            total = total + squared(weights)(gradient)[0]
        return total

    value, slope = judging_gradients(model, [squared(weights)] * 2, labels)(images, stream(0))
    assert len(value.unique()) == 2
    assert torch.equal(value[:4], value[:1].expand(4))
    assert torch.allclose(value[0] + value[-1], reference(images))
    assert torch.allclose(slope, differences(reference, images), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("transforms", [(Flip(), Shift(share=0.2)), (Mixup(),)])
def test_pieces_do_not_change_draws_values_or_slopes(transforms, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = case()
    model = smooth()
    weights = [torch.ones_like(p) for p in model.parameters()]

    def found(size: int) -> list[Tensor]:
        monkeypatch.setattr(release, "SECOND_ORDER", 25 * size)
        monkeypatch.setattr(release, "FIRST_ORDER", 25 * size)
        both = (
            lowering_losses(Ensemble([model]), labels, transforms=transforms),
            judging_gradients(model, [squared(weights)], labels, transforms=transforms),
        )
        return [part for objective in both for part in objective(images, stream(4))]

    assert all(torch.allclose(a, b) for a, b in zip(found(2), found(100), strict=True))


def test_the_slope_goes_back_through_the_augmentation() -> None:
    images, labels = case()
    model, always = smooth(), (Flip(probability=1.0),)
    value, slope = lowering_losses(Ensemble([model]), labels, transforms=always)(images, stream(0))
    mirrored, turned = lowering_losses(Ensemble([model]), labels)(images.flip(3), stream(0))
    assert torch.allclose(value, mirrored)
    assert torch.allclose(slope, turned.flip(3))


def test_what_does_not_fit_into_memory_is_done_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = case()

    class Small(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            if len(input) > 3:
                raise MemoryError
            return super().forward(input)

    small = Small(*smooth())
    expected = lowering_losses(Ensemble([smooth()]), labels)(images, stream(0))
    monkeypatch.setattr(release, "FIRST_ORDER", 100)
    objective = lowering_losses(Ensemble([small]), labels)
    with pytest.warns(UserWarning, match="pieces of 2"):
        found = objective(images, stream(0))
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    objective(images, stream(0))  # and remembers it: a second warning would be an error


# --- balls -----------------------------------------------------------------------------------------------------------


def test_reach_is_the_largest_change_of_a_pixel() -> None:
    assert reach(Linf(eps=8 / 255), (3, 4, 4)) == pytest.approx(8 / 255)
    assert reach(L2(eps=0.1), (1, 2, 2)) <= 0.1
    assert reach(Linf(eps=8 / 255) + Patch(area=0.3), (3, 8, 8)) > 8 / 255


@pytest.mark.parametrize("ball", [Linf(eps=8 / 255), L2(eps=0.5), Linf(eps=4 / 255) + Patch(area=0.1)])
def test_into_is_inside(ball) -> None:
    base = torch.randint(256, (6, 3, 8, 8), generator=stream(0)).float() / 255
    found = into(ball, base, torch.rand(base.shape, generator=stream(1)))
    assert ball.contains(base, found.float() / 255).all()
    assert (found.float() / 255 != base).any()


# --- chunks ----------------------------------------------------------------------------------------------------------


@every_release
def test_a_chunk_alone_gets_the_bits_that_it_gets_among_others(name: str) -> None:
    train, _ = three_classes()
    ball = Linf(eps=8 / 255)

    def perturbed(*chunks: slice) -> list[Tensor]:
        perturb = small(name).prepare(train, ball, quick(epochs=1), 0)
        return [
            perturb(train.floats(train.ids[part]), train.labels[part], stream(5, part.start)).images for part in chunks
        ]

    parts = slice(0, 16), slice(16, 32), slice(32, 41)
    together = perturbed(*parts)
    for part, expected in zip(parts, together, strict=True):
        assert torch.equal(perturbed(part)[0], expected)
        assert ball.contains(train.floats(train.ids[part]), expected.float() / 255).all()
        assert expected.dtype == torch.uint8


@every_release
def test_crafting_goes_chunk_by_chunk_from_the_streams_of_their_first_rows(name: str) -> None:
    train, test = three_classes()
    attack = dataclasses.replace(small(name), chunk=25)
    task = attack.threat.draw(train, test, 0)
    poison = attack.craft(task, quick(epochs=1), 3)
    perturb = attack.prepare(train, task.ball, quick(epochs=1), 3)
    for first in (0, 25, 50):
        rows = train.ids[first : first + 25]
        alone = perturb(train.floats(rows), train.labels_of(rows), stream(3, "craft", first)).images
        assert torch.equal(poison.images[first : first + 25], alone)


@every_release
def test_images_that_are_not_in_the_training_set_are_perturbed_too(name: str) -> None:
    train, test = three_classes()
    perturb = small(name).prepare(train, Linf(eps=8 / 255), quick(epochs=1), 0)
    clean = test.floats(test.ids[:5])
    found = perturb(clean, test.labels[:5], stream(1))
    assert found.images.shape == clean.shape
    assert (found.images.float() / 255 != clean).flatten(1).any(1).all()
    assert found.value.numel() in (1, 5)


@every_release
def test_another_goal_is_refused(name: str) -> None:
    train, test = three_classes()
    task = ThreatModel(budget=0.1, goal=Misclassify()).draw(train, test, 0)
    with pytest.raises(TypeError, match=f"{name} serves the goal availability"):
        small(name).craft(task, quick(epochs=1), 0)


def test_a_chunk_of_no_image_is_refused() -> None:
    task = ClassWiseNoise.threat.draw(*three_classes(), 0)
    with pytest.raises(ValueError, match="chunk is 0; it must hold at least 1 image"):
        ClassWiseNoise(chunk=0).craft(task, quick(), 0)


def test_the_note_is_the_mean_over_all_images() -> None:
    task = AdversarialRelease.threat.draw(*three_classes(), 0)
    attack = AdversarialRelease(steps=1, augment=False, precision="fp32", chunk=25)
    poison = attack.craft(task, quick(epochs=1), 0)
    model = quick(epochs=1).fit([task.train], [0]).models[0]
    with torch.no_grad():
        losses = F.cross_entropy(model(poison.images.float() / 255), (task.train.labels + 1) % 3)
    assert poison.notes["objective"] == pytest.approx(float(losses), rel=1e-4)


def test_dealt_parts_keep_the_order() -> None:
    assert torch.equal(torch.cat(dealt(torch.arange(11), 3)), torch.arange(11))
