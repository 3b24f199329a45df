"""Ensembles against forward passes and gradients written out by hand; modes and buffers stay as they were."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.ensemble import Ensemble, features
from mithridate.core.models import build
from mithridate.core.seeds import stream

IMAGES = torch.rand(6, 1, 8, 8, generator=stream(0, "images"))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def member(seed: int, spec: str = "convnet:width=4") -> nn.Module:
    """A network with BatchNorm statistics of its own, in eval mode."""
    network = build(spec, 3, (1, 8, 8), seed)
    with torch.no_grad():
        network.train()(torch.rand(32, 1, 8, 8, generator=stream(seed, "history")))
    return network.eval()


@pytest.fixture
def pair() -> Ensemble:
    return Ensemble([member(0), member(1, "resnet18:width=4")])


def state(models: Ensemble) -> list[Tensor]:
    return [value.clone() for module in models for value in module.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_sequence_of_its_members(pair: Ensemble) -> None:
    assert len(pair) == 2
    assert list(pair) == [pair[0], pair[-1]]
    assert isinstance(pair[:1], Ensemble)
    assert list(pair[:1]) == [pair[0]]
    assert pair.map(lambda module, x: type(module).__name__ + x, "!") == ["Sequential!"] * 2
    assert repr(pair) == "Ensemble(Sequential, Sequential)"
    assert len(Ensemble(module for module in pair)) == 2


def test_logits_are_those_of_each_member_in_eval_mode(pair: Ensemble) -> None:
    expected = torch.stack([module(IMAGES) for module in pair])
    pair[0].train()
    assert torch.equal(pair.logits(IMAGES), expected)
    assert pair[0].training
    assert not pair[1].training


def test_logits_are_float32_whatever_the_member_computes_in() -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(torch.float64)
    assert Ensemble([small]).logits(IMAGES.double()).dtype == torch.float32


def test_train_mode_uses_batch_statistics_and_leaves_the_buffers_alone(pair: Ensemble) -> None:
    before = state(pair)
    found = pair.logits(IMAGES, train=True)
    assert same(state(pair), before)
    assert not any(module.training for whole in pair for module in whole.modules())
    expected = torch.stack([module.train()(IMAGES) for module in pair])  # changes the buffers: comes last
    torch.testing.assert_close(found, expected)
    assert not same(state(pair), before)


def test_train_mode_can_be_differentiated(pair: Ensemble) -> None:
    """Writing the old statistics back used to break the backward pass of BatchNorm."""
    images = IMAGES.clone().requires_grad_()
    (found,) = torch.autograd.grad(pair.logits(images, train=True).square().sum(), images)
    (expected,) = torch.autograd.grad(sum(module.train()(images).square().sum() for module in pair), images)
    torch.testing.assert_close(found, expected)


def test_the_buffers_stay_the_same_objects(pair: Ensemble) -> None:
    before = [id(buffer) for module in pair for buffer in module.buffers()]
    pair.logits(IMAGES, train=True)
    assert [id(buffer) for module in pair for buffer in module.buffers()] == before


def test_modes_come_back_part_by_part_even_after_an_error(pair: Ensemble) -> None:
    whole = pair[0]
    whole.train()
    next(part for part in whole.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    modes, before = [part.training for part in whole.modules()], state(pair)
    for train in (True, False):
        pair.logits(IMAGES, train=train)
        with pytest.raises(RuntimeError):
            pair.logits(torch.zeros(2, 5, 8, 8), train=train)
        assert [part.training for part in whole.modules()] == modes
        assert same(state(pair), before)


def test_features_are_what_the_last_linear_receives(pair: Ensemble) -> None:
    found = pair.features(IMAGES)
    for module, value in zip(pair, found, strict=True):
        assert isinstance(module, nn.Sequential)
        torch.testing.assert_close(value, module[:-1](IMAGES))
        torch.testing.assert_close(module[-1](value), module(IMAGES))
    assert [value.shape[1] for value in found] == [16, 32]


def test_features_ignore_train_mode_and_are_differentiable(pair: Ensemble) -> None:
    images = IMAGES.clone().requires_grad_()
    pair[0].train()
    before = state(pair)
    (found,) = torch.autograd.grad(pair.features(images)[0].square().sum(), images)
    pair[0].eval()
    (expected,) = torch.autograd.grad(pair[0][:-1](images).square().sum(), images)
    torch.testing.assert_close(found, expected)
    assert same(state(pair), before)
    assert not any(part._forward_pre_hooks for module in pair for part in module.modules())


def test_features_need_a_last_linear_that_runs_once() -> None:
    with pytest.raises(ValueError, match="no final Linear"):
        features(nn.Flatten(), IMAGES)
    shared = nn.Linear(64, 64)
    twice = nn.Sequential(OrderedDict(flat=nn.Flatten(), a=shared, b=shared))
    with pytest.raises(ValueError, match="ran 2 times"):
        features(twice, IMAGES)
    assert not shared._forward_pre_hooks


def test_gradients_are_those_of_the_summed_cross_entropy(pair: Ensemble) -> None:
    pair[1].train()
    found = pair.gradients(IMAGES, LABELS)
    pair[1].eval()
    for module, gradients in zip(pair, found, strict=True):
        module.zero_grad()
        for image, label in zip(IMAGES, LABELS, strict=True):  # one after the other: a sum, not a mean
            (-module(image[None]).log_softmax(1)[0, label]).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_shares_of_classes_are_labels_too_and_frozen_parameters_are_left_out(pair: Ensemble) -> None:
    pair[0].requires_grad_(False)
    pair[0].get_submodule("linear").requires_grad_(True)
    hard, soft = (pair.gradients(IMAGES, labels)[0] for labels in (LABELS, F.one_hot(LABELS, 3).float()))
    assert list(hard) == ["linear.weight", "linear.bias"]
    torch.testing.assert_close(hard, soft)


def test_a_kept_graph_can_be_differentiated_again() -> None:
    module, labels = member(2).double(), LABELS[:2]
    images = IMAGES[:2].double().requires_grad_()

    def by_hand(x: Tensor) -> float:
        """Squared length of the gradient, in float64 throughout."""
        gradients = torch.autograd.grad(-module(x).log_softmax(1)[[0, 1], labels].sum(), list(module.parameters()))
        return sum(value.square().sum().item() for value in gradients)

    with torch.no_grad():  # gradients() switches them on itself
        (found,) = Ensemble([module]).gradients(images, labels, graph=True)
    length = torch.stack([value.square().sum() for value in found.values()]).sum()
    (slope,) = torch.autograd.grad(length, images)
    direction = torch.randn(images.shape, generator=stream(3), dtype=torch.float64)
    up, down = (by_hand(images.detach() + sign * 1e-6 * direction) for sign in (1, -1))
    assert (slope * direction).sum().item() == pytest.approx((up - down) / 2e-6, rel=1e-3)


def test_no_graph_is_kept_unasked(pair: Ensemble) -> None:
    assert not any(value.requires_grad for found in pair.gradients(IMAGES, LABELS) for value in found.values())
