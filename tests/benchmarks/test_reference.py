"""The loops by hand do what they are compared for: the same augmentation, function, gradient and search."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference import inverting, matching
from benchmarks.reference.collision import Colliding, collide_by_hand, collide_plain
from benchmarks.reference.flow import PHASES, Flow, run_plain
from benchmarks.reference.matching import Brew, Brewing, brew_by_hand, brew_plain, double_backward, forward_over_reverse
from benchmarks.reference.pixels import REACH, augment_plain, folded, one_gather, ordinary, synthetic, two_passes
from benchmarks.reference.schooling import Schooling, Way, train_by_hand, train_plain
from benchmarks.reference.together import train_stacked
from benchmarks.reference.unrolling import (
    Derive,
    Setting,
    Unrolling,
    one_graph,
    step_by_step,
    unroll_by_hand,
    unroll_plain,
)
from mithridate.core.batch import Batch
from mithridate.core.ensemble import in_mode
from mithridate.core.models import build
from mithridate.core.networks import ConvNorm
from mithridate.poisoning.unrolling import unrolled_loss


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """One image [C, H, W] moved by whole pixels, pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y, x] = image[:, y + down, x + right]
    return result


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network with BatchNorm statistics of its own, in eval mode."""
    network = build("convnet:width=8", 3, (3, 16, 16), seed=0)
    train_plain(network, *synthetic(60, classes=3, side=16), Schooling(epochs=2, batch_size=20))
    return network.eval()


@pytest.mark.parametrize("draw", ["one gather", "two passes", "plain"])
def test_augmentations_mirror_and_move_by_up_to_four_pixels(draw: str) -> None:
    images, _ = synthetic(3, classes=2, side=10)
    ways: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "one gather": one_gather(images),
        "two passes": two_passes(images),
        "plain": lambda rows, rng: augment_plain(images[rows], rng),
    }
    reaches = range(-REACH, REACH + 1)
    for index, image in enumerate(images):
        allowed = {
            tuple(moved(version, down, right).flatten().tolist())
            for version in (image, image.flip(2))
            for down in reaches
            for right in reaches
        }
        drawn = ways[draw](torch.tensor([index] * 60), torch.Generator().manual_seed(index))
        seen = {tuple(one.flatten().tolist()) for one in drawn}
        assert seen <= allowed
        assert len(seen) > 30


@pytest.mark.parametrize("name", ["convnet:width=4", "resnet18:width=4", "mobilenet_v2:width=4"])
def test_ordinary_and_folded_layers_compute_the_same_function(name: str) -> None:
    network, images = build(name, 4, (3, 16, 16), seed=0).train(), torch.rand(6, 3, 16, 16)
    for _ in range(3):
        network(images)  # moves the running statistics
    network.eval()
    for other in (ordinary(network), folded(network)):
        assert not any(isinstance(part, ConvNorm) for part in other.modules())
        torch.testing.assert_close(other(images), network(images), atol=1e-4, rtol=1e-4)
    assert any(isinstance(part, ConvNorm) for part in network.modules())
    assert folded(network, torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "way", [None, Way(bf16=False), Way(bf16=False, gather=False), Way(bf16=False, fused=False)], ids=str
)
def test_training_by_hand_learns(way: Way | None) -> None:
    images, labels = synthetic(120, classes=3, side=16)
    school, network = Schooling(epochs=4, batch_size=20), build("convnet:width=8", 3, (3, 16, 16), seed=0)
    if way is None:
        assert train_plain(network, images, labels, school) < 0.6
    else:
        assert train_by_hand(network, images, labels, school, way) < 0.6


def test_stacked_members_learn_like_members_alone() -> None:
    images, labels = synthetic(120, classes=3, side=16)
    networks = [build("convnet:width=8", 3, (3, 16, 16), seed=seed) for seed in range(2)]
    school = Schooling(epochs=4, batch_size=20)
    alone = train_by_hand(copy.deepcopy(networks[0]), images, labels, school, Way(bf16=False))
    losses = train_stacked(networks, images, labels, school, bf16=False)
    assert losses[0] == pytest.approx(alone, abs=1e-3)  # the same draws: its generator has the same seed
    assert losses[1] < 0.6


def test_mismatch_is_one_minus_the_cosine_of_the_long_vectors() -> None:
    a, b = [torch.rand(3), torch.rand(2, 2)], [torch.rand(3), torch.rand(2, 2)]
    long = [torch.cat([part.flatten() for part in parts]) for parts in (a, b)]
    expected = 1 - functional.cosine_similarity(long[0], long[1], dim=0)
    torch.testing.assert_close(matching.mismatch_of(a, b), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("derive", [double_backward, forward_over_reverse])
def test_both_passes_give_the_gradient_of_the_mismatch(network: nn.Module, derive: matching.Pass) -> None:
    network = copy.deepcopy(network).double()
    images, labels = torch.rand(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2])
    parameters = list(network.parameters())
    wanted = [torch.randn_like(parameter) for parameter in parameters]
    leaf = images.clone().requires_grad_()
    total = functional.cross_entropy(network(leaf), labels, reduction="sum")
    expected = matching.mismatch_of(torch.autograd.grad(total, parameters, create_graph=True), wanted)
    (slope,) = torch.autograd.grad(expected, leaf)
    value, found = derive(network, images, labels, wanted, False)
    torch.testing.assert_close(value, expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, slope, atol=1e-6, rtol=1e-3)


def mean_mismatch(network: nn.Module, brew: Brew, images: Tensor) -> float:
    """Over thirty draws of the augmentation: one draw says little."""
    parameters, rng = list(network.parameters()), torch.Generator().manual_seed(5)
    wanted = torch.autograd.grad(functional.cross_entropy(network(brew.target), brew.intended), parameters)
    found = []
    for _ in range(30):
        loss = functional.cross_entropy(network(augment_plain(images, rng)), brew.labels, reduction="sum")
        found.append(matching.mismatch_of(torch.autograd.grad(loss, parameters), wanted))
    return float(torch.stack(found).mean())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("derive", [None, double_backward, forward_over_reverse])
def test_matching_by_hand_lowers_the_mismatch_inside_the_ball(derive: matching.Pass | None) -> None:
    network = build("convnet:width=8", 3, (3, 16, 16), seed=0).eval()
    images, labels = synthetic(13, classes=3, side=16)
    brew = Brew(images[1:].float() / 255, labels[1:], images[:1].float() / 255, torch.tensor([2]))
    brewing = Brewing(steps=40)
    if derive is None:
        poison, _ = brew_plain(network, brew, brewing)
    else:
        poison, _ = brew_by_hand(network, brew, brewing, derive, bf16=False)
    assert (poison - brew.base).abs().max() <= brewing.eps + 1e-6
    assert poison.min() >= 0
    assert poison.max() <= 1
    assert mean_mismatch(network, brew, poison) < mean_mismatch(network, brew, brew.base) - 0.15  # 0.18


def test_colliding_by_hand_takes_the_same_steps_as_published_code(network: nn.Module) -> None:
    features = nn.Sequential(*list(network.children())[:-1])
    base, target = torch.rand(4, 3, 16, 16), torch.rand(1, 3, 16, 16)
    rate = 160.0  # large, so that some candidates of some images are rejected
    plain, _ = collide_plain(ordinary(features), base, target, Colliding(steps=6, beta=0.01, learning_rate=rate))
    seven = Colliding(steps=7, beta=0.01, learning_rate=rate)  # the seventh judges the sixth candidate
    by_hand, _ = collide_by_hand(copy.deepcopy(features), base, target, seven, bf16=False)
    torch.testing.assert_close(by_hand, plain, atol=1e-4, rtol=1e-4)

    def distance(images: Tensor) -> float:
        with torch.no_grad():
            return float((features(images) - features(target)).square().sum(1).mean())

    assert distance(plain) < 0.5 * distance(base)


def unrolled_setting() -> Setting:
    images, labels = synthetic(600, classes=3, side=16)
    pixels = images.float() / 255
    return Setting(pixels[1:9], labels[1:9], pixels[20:], labels[20:], pixels[:1], torch.tensor([2]))


def test_both_unrolled_passes_are_the_derivative_of_training_on_the_poison(network: nn.Module) -> None:
    setting, module = unrolled_setting(), ordinary(network).double().train()
    images, labels = setting.batches(torch.Generator().manual_seed(0))
    images = [torch.cat([setting.base, images[0]]), *images[1:]]
    labels = [torch.cat([setting.labels, labels[0]]), *labels[1:]]
    seen = [batch.double()[:12] for batch in images]
    setting = replace(setting, target=setting.target.double())
    arguments = ([answers[:12] for answers in labels], setting, 0.05, False)
    (value, slope), (again, other) = (
        derive(module, [batch.clone() for batch in seen], *arguments) for derive in (one_graph, step_by_step)
    )
    torch.testing.assert_close(again, value, rtol=1e-6, atol=1e-6)
    assert float(torch.cosine_similarity(slope.flatten(), other.flatten(), dim=0)) > 0.9999
    batches = [
        Batch(batch, functional.one_hot(answers[:12], 3).double(), torch.arange(12), 0.0)
        for batch, answers in zip(seen, labels, strict=True)
    ]
    batches[0].images.requires_grad_()
    with in_mode(module, train=True):
        loss = unrolled_loss(module, batches, setting.target, setting.intended, 0.05, 100.0)
    torch.testing.assert_close(value, loss.detach().to(value), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(loss, batches[0].images)[0]
    assert float(torch.cosine_similarity(slope.flatten(), ours.flatten(), dim=0)) > 0.9999


@pytest.mark.parametrize("derive", [None, one_graph, step_by_step])
def test_unrolling_by_hand_stays_inside_the_ball(derive: Derive | None) -> None:
    network, setting = build("convnet:width=4", 3, (3, 16, 16), seed=0), unrolled_setting()
    unrolling = Unrolling(steps=2)
    if derive is None:
        poison, loss = unroll_plain([network], setting, unrolling)
    else:
        poison, loss = unroll_by_hand([network], setting, unrolling, derive, bf16=False)
    assert 0 < float((poison - setting.base).abs().max()) <= unrolling.eps + 1e-6
    assert loss == loss  # a number


def test_the_plain_flow_trains_crafts_and_evaluates() -> None:
    images, labels = synthetic(90, classes=3, side=16)
    flow = Flow(
        build=lambda seed: build("convnet:width=8", 3, (3, 16, 16), seed),
        images=images[:60],
        labels=labels[:60],
        test_images=images[60:],
        test_labels=labels[60:],
        rows=torch.tensor([0, 3, 6]),
        target=images[61:62].float() / 255,
        intended=torch.tensor([0]),
        school=Schooling(epochs=4, batch_size=20),
        brewing=Brewing(steps=2),
        victims=2,
    )
    outcome = run_plain(flow)
    assert len(outcome.success) == len(outcome.accuracy) == 2
    assert min(outcome.accuracy) > 0.6
    assert set(outcome.seconds) == set(PHASES)
    assert all(seconds > 0 for seconds in outcome.seconds.values())


def test_both_inversions_by_hand_take_the_same_way() -> None:
    """In float64, where no sign hangs on rounding: one differentiates a flat vector, the other part by part."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 3)).double()
    images, labels = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 2])
    loss = nn.functional.cross_entropy(network(images), labels)
    goal = torch.autograd.grad(loss, list(network.parameters()))
    begin = inverting.start((2, 3, 8, 8)).double()
    plain, by_hand = (
        loop(network, goal, labels, begin, 40) for loop in (inverting.invert_plain, inverting.invert_by_hand)
    )
    first = inverting.invert_by_hand(network, goal, labels, begin, 1)
    assert plain == pytest.approx(by_hand, rel=1e-6)
    assert by_hand < 0.5 * first
