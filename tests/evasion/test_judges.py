"""Attacks of other libraries: what they are given, and that their answers are looked at again."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.balls import L2, Linf
from mithridate.evasion.judges import AutoAttack, FoolboxPGD, spoken


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5))
    return layers.to(memory_format=torch.channels_last)


def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Library:
    """Stands in for AutoAttack: one step along the sign of a gradient, which it views as rows, and one step too far."""

    told: Any = None

    def __init__(self, forward: Any, **settings: Any) -> None:
        type(self).told = settings
        self.forward = forward

    def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        moved = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.forward(moved), y)
        gradient = torch.zeros_like(x) + torch.autograd.grad(loss, moved)[0]
        gradient.view(len(gradient), -1)
        found = (x + self.told["eps"] * gradient.sign()).clamp(0, 1)
        found[0] = 0.5 * found[0] + 0.5
        return found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Library]:
    module = types.ModuleType("autoattack")
    module.AutoAttack = Library  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "autoattack", module)
    return Library


def test_auto_attack_sees_contiguous_images_and_is_held_to_the_ball(library: type[Library]) -> None:
    network, clean = model(), images()
    clean = clean.to(memory_format=torch.channels_last)
    labels = network(clean).argmax(1)
    found = AutoAttack(ball=Linf(eps=0.1)).perturb(network, clean, labels, torch.Generator().manual_seed(0))
    assert library.told["norm"] == "Linf"
    assert library.told["eps"] == 0.1
    assert torch.equal(found.images[0], clean[0])
    assert not bool(found.fooled[0])
    assert float((found.images - clean).abs().max()) <= 0.1 + 1e-6
    with torch.no_grad():
        assert torch.equal(found.fooled, network(found.images).argmax(1) != labels)
    assert bool(found.fooled.any())
    AutoAttack(ball=L2(eps=0.5)).perturb(network, clean, labels, torch.Generator())
    assert library.told["norm"] == "L2"


def test_auto_attack_is_not_asked_for_a_class(library: type[Library]) -> None:
    with pytest.raises(TypeError, match="AutoAttack is asked for any wrong class"):
        AutoAttack().perturb(model(), images(), torch.zeros(6).long(), torch.Generator(), wanted=torch.ones(6).long())


def test_foolbox_finds_what_it_says_it_does() -> None:
    pytest.importorskip("foolbox", reason="foolbox is not installed (extra judges)")
    network, clean = model(), images()
    labels = network(clean).argmax(1)
    found = FoolboxPGD(ball=Linf(eps=0.2)).perturb(network, clean, labels, torch.Generator().manual_seed(0))
    assert bool(found.fooled.any())
    assert bool(Linf(eps=0.2).contains(clean, found.images).all())


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ImportError, match=r"mithridate\[judges\]"):
        AutoAttack().perturb(model(), images(), torch.zeros(6).long(), torch.Generator())


def test_names_are_those_of_the_command_line() -> None:
    assert spoken(AutoAttack()) == "autoattack"
