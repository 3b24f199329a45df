"""Poisoned batches: against plain training, against objectives written out, and against what each part may be given."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.batch import Batch
from mithridate.core.classifier import Classifier
from mithridate.core.ensemble import in_mode
from mithridate.core.poisoned import UNROLLED_RATE, UNROLLED_STEPS, Inner, Poisoned, Split
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe
from mithridate.core.transforms import Flip, Noise, Shift
from tests.core.training_cases import data
from tests.core.transform_cases import batch, net

SEARCHING = [inner for inner in get_args(Inner) if inner not in ("patch", "noise")]
every_inner = pytest.mark.parametrize("inner", get_args(Inner))
every_search = pytest.mark.parametrize("inner", SEARCHING)
SHAPE = (3, 8, 8)


def harmless(inner: Inner) -> Poisoned:
    return Poisoned(inner=inner, steps=0, eps=0, patch=(0, 0))


def given(count: int = 12, classes: int = 3) -> Batch:
    return batch(count, SHAPE, classes=classes)


def changed(before: Batch, after: Batch) -> Tensor:
    """Places of the images that were changed."""
    return (before.images != after.images).flatten(1).any(1).nonzero()[:, 0]


@every_inner
def test_without_strength_it_is_plain_training_to_the_bit(inner: Inner) -> None:
    """BatchNorm, flips and shifts included: they see what they would see, and draw what they would draw."""
    images = data(count=40)
    plain = Recipe(model="convnet:width=4", epochs=2, batch_size=16, transforms=(Flip(), Shift(), Noise()))
    among = replace(plain, transforms=(Flip(), harmless(inner), Shift(), harmless(inner), Noise()))
    a, b = (recipe.fit([images], [3]).models[0].state_dict() for recipe in (plain, among))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@every_inner
def test_it_draws_beside_the_stream_of_the_others(inner: Inner) -> None:
    rng, model = stream(4), net(SHAPE, 3)
    state = rng.get_state()
    first = Poisoned(inner=inner, steps=1)(given(), model, rng)
    assert torch.equal(rng.get_state(), state)
    assert torch.equal(first.images, Poisoned(inner=inner, steps=1)(given(), model, rng).images)
    torch.rand(1, generator=rng)
    assert not torch.equal(first.images, Poisoned(inner=inner, steps=1)(given(), model, rng).images)


@every_search
@pytest.mark.parametrize("split", ["apart", "shuffled"])
def test_only_the_poisoned_part_moves_and_it_stays_in_the_ball(inner: Inner, split: Split) -> None:
    before = given(20)
    transform = Poisoned(inner=inner, steps=3, share=0.3, eps=8 / 255, split=split)
    after = transform(before, net(SHAPE, 3), stream(5))
    assert len(changed(before, after)) == 6
    assert torch.equal(after.targets, before.targets)
    assert torch.equal(after.rows, before.rows)
    assert float((after.images - before.images).abs().max()) <= 8 / 255 + 1e-6
    assert 0 <= float(after.images.min()) <= float(after.images.max()) <= 1


def test_noise_is_plus_or_minus_eps() -> None:
    before = given()._replace(images=torch.full((12, *SHAPE), 0.5))
    after = Poisoned(inner="noise", eps=0.125, share=0.75)(before, net(SHAPE, 3), stream(0))
    assert len(changed(before, after)) == 9
    assert sorted((after.images - before.images).unique().tolist()) == [-0.125, 0, 0.125]


def test_which_part_is_poisoned_is_drawn_for_each_batch() -> None:
    rng, model, seen = stream(6), net(SHAPE, 3), torch.zeros(12)
    for _ in range(60):
        seen[changed(given(), Poisoned(inner="noise")(given(), model, rng))] += 1
        torch.rand(1, generator=rng)  # as the transforms of the next batch do
    assert 12 < float(seen.min()) <= float(seen.max()) < 48  # 30 expected, deviation 3.9


@every_inner
@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_too_small_for_two_parts_is_left_alone(inner: Inner, count: int) -> None:
    alone = given(2)
    alone = Batch(alone.images[:count], alone.targets[:count], alone.rows[:count], 0.5)
    assert torch.equal(Poisoned(inner=inner)(alone, net(SHAPE, 3), stream(0)).images, alone.images)


@every_inner
def test_the_model_stays_as_it_is(inner: Inner) -> None:
    model = net(SHAPE, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Poisoned(inner=inner, steps=2)(given(), model, stream(0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@every_search
def test_the_attack_inside_lowers_its_own_objective(inner: Inner) -> None:
    """Measured from outside, by loss written out below."""
    model, before, reached = net(SHAPE, 3), given(24), []
    for steps in (0, 12):
        transform = Poisoned(inner=inner, steps=steps, step=0.01, eps=32 / 255)
        after = transform(before, model, stream(8))
        places = changed(before, after)
        rest = torch.tensor([place for place in range(24) if place not in places])
        reached.append(OBJECTIVES[inner](model, after.images[places], before.targets[places], before.images[rest]))
    assert reached[1] < reached[0] - 1e-4


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with in_mode(model, train=False):
        loss = F.cross_entropy(model(images), labels)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def pretended(labels: Tensor) -> int:
    return int(labels.argmax(1).bincount().argmax())


def apart(model: nn.Module, poisons: Tensor, labels: Tensor, targets: Tensor, *, cosine: bool) -> float:
    goal = gradient(model, targets, torch.full((len(targets),), pretended(labels)))
    own = gradient(model, poisons, labels.argmax(1))
    return float(1 - F.cosine_similarity(own, goal, dim=0)) if cosine else float((own - goal).square().sum())


def collision(model: nn.Module, poisons: Tensor, labels: Tensor, targets: Tensor) -> float:
    def mean(images: Tensor) -> Tensor:
        with in_mode(model, train=False), torch.no_grad():
            return nn.Sequential(*list(model.children())[:-1])(images).mean(0)

    return float((mean(poisons) - mean(targets)).square().mean())


def unrolled(model: nn.Module, poisons: Tensor, labels: Tensor, targets: Tensor) -> float:
    """Two real steps of SGD on a copy, then the loss of the targets."""
    copied = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(copied.parameters(), lr=UNROLLED_RATE)
    for _ in range(UNROLLED_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(copied(poisons), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(copied(targets), torch.full((len(targets),), pretended(labels))))


OBJECTIVES = {
    "gradient-matching": lambda *case: apart(*case, cosine=True),
    "squared-error": lambda *case: apart(*case, cosine=False),
    "feature-collision": collision,
    "metapoison": unrolled,
}


@every_search
def test_one_step_goes_along_the_sign_of_the_written_out_gradient(inner: Inner) -> None:
    """In float64, from the start that no steps leave; the gradient by central differences of the loss above."""
    model = net(SHAPE, 3).double()
    before = given(6)._replace(images=given(6).images.double(), targets=given(6).targets.double())
    start, moved = (
        Poisoned(inner=inner, steps=steps, step=1e-4, share=0.4)(before, model, stream(2)) for steps in (0, 1)
    )
    places = changed(before, start)
    rest = torch.tensor([place for place in range(6) if place not in places])

    def loss(images: Tensor) -> float:
        return OBJECTIVES[inner](model, images[places], before.targets[places], before.images[rest])

    checked = 0
    for pixel in range(0, 192, 24):
        image, (c, y, x) = places[pixel % len(places)], (pixel // 64, pixel // 8 % 8, pixel % 8)
        up, down = start.images.clone(), start.images.clone()
        up[image, c, y, x] += 1e-5
        down[image, c, y, x] -= 1e-5
        slope = (loss(up) - loss(down)) / 2e-5
        step = float(moved.images[image, c, y, x] - start.images[image, c, y, x])
        if abs(slope) > 1e-6 and 0 < float(start.images[image, c, y, x]) < 1 and abs(step) > 1e-6:
            assert (step < 0) == (slope > 0)
            checked += 1
    assert checked >= 3


def test_patches_go_by_class_and_targets_wear_another() -> None:
    classes, count = 4, 40
    before = batch(count, (3, 20, 20), classes=classes)
    after = Poisoned(inner="patch", patch=(0.25, 0.25), share=0.7)(before, net((3, 20, 20), classes), stream(3))
    covered = (before.images != after.images).any(1)  # [B, H, W]
    rows, columns = (covered.any(0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    assert (len(rows), len(columns)) == (5, 5)
    worn = [tuple(image[:, rows][:, :, columns].flatten().tolist()) for image in after.images]
    looks = sorted(set(worn))
    assert len(looks) == classes
    assert all(set(look) <= {0.0, 1.0} for look in looks)
    by_class = [[looks.index(worn[i]) for i in range(c, count, classes)] for c in range(classes)]
    kinds = [sorted(set(seen), key=seen.count) for seen in by_class]  # the rarer of two is that of another class
    assert all(len(pair) == 2 for pair in kinds)
    assert sorted(own for _, own in kinds) == sorted(other for other, _ in kinds) == list(range(classes))


def test_a_patch_in_a_shuffled_split_is_worn_by_the_poisoned_part_and_by_the_rest() -> None:
    before = given(30)
    after = Poisoned(inner="patch", split="shuffled", share=0.2)(before, net(SHAPE, 3), stream(3))
    assert len(changed(before, after)) == 30


def test_the_gradient_of_the_step_reaches_the_images_as_if_nothing_were_added() -> None:
    images = given().images.requires_grad_()
    result = Poisoned(steps=2)(given()._replace(images=images), net(SHAPE, 3), stream(0))
    (slope,) = torch.autograd.grad(result.images.sum(), images)
    assert torch.equal(slope, torch.ones_like(slope))


def test_it_computes_in_the_number_format_of_training() -> None:
    seen: list[torch.dtype] = []

    class Spy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            result = super().forward(input)
            seen.append(result.dtype)
            return result

    for bf16 in (False, True):
        seen.clear()
        model = Classifier(nn.Sequential(nn.Flatten(), Spy(192, 3)), nn.Identity(), bf16=bf16)
        Poisoned(steps=1)(given(), model, stream(0))
        assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "frogs"}, "poisoned inner is 'frogs'; use one of gradient-matching"),
        ({"split": "half"}, "poisoned split is 'half'; use one of apart"),
        ({"eps": 8}, "poisoned eps is 8; it is a change of pixels"),
        ({"steps": -1}, "poisoned steps is -1"),
        ({"step": 0}, "poisoned step is 0"),
        ({"share": 1.0}, "poisoned share is 1.0; it is the part of a batch"),
        ({"patch": (0.5, 0.2)}, "poisoned patch is"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Poisoned(**settings)
