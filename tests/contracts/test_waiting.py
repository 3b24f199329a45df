"""No step of training or crafting waits for the GPU: a longer run waits no more often than a short one."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from mithridate.core.batch import BatchTransform, GradientRule
from mithridate.core.sampling import Poisson
from mithridate.core.schema import choices
from mithridate.core.training import Recipe
from mithridate.poisoning.attack import Attack
from tests.poisoning.cases import quick, three_classes
from tests.waiting import waits

TRANSFORMS, RULES, ATTACKS = choices(BatchTransform), choices(GradientRule), choices(Attack)
UNDISTURBED: dict[str, dict[str, int]] = {"hidden-trigger": {"every": 100}, "sleeper-agent": {"refits": 0}}
"""Settings without what interrupts a search now and then: other partners, trained surrogates."""
SEARCHES = sorted(name for name in ATTACKS if "steps" in {field.name for field in dataclasses.fields(ATTACKS[name])})


def test_the_counter_sees_what_waits_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = torch.arange(4.0), torch.arange(4.0)
    with waits(monkeypatch, [there]) as seen:
        (here * 2).tolist()
        float(here[1])
        there.mul(2).add_(here).sum()
        assert seen == []
        float(there[1])
        (there + 1).tolist()
        here[there > 1]
        if (there * 0).any():
            pass
        torch.zeros(4).copy_(there).cpu()
    assert Counter(seen)["_local_scalar_dense"] >= 1
    assert {"tolist", "index", "cpu"} <= set(seen)


def in_training(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, rows: int) -> Counter[str]:
    train, _ = three_classes(train=rows)
    poisoned = train.replace([0, 7], 255 - train.images[[0, 7]])
    patch = poisoned.patch
    assert patch is not None
    with waits(monkeypatch, [train.images, train.labels, patch.rows, patch.images, patch.labels]) as seen:
        recipe.fit([poisoned], [0])
    return Counter(seen)


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"jpeg"}))  # an encoder runs on the CPU
def test_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick(epochs=1, batch_size=10, transforms=(TRANSFORMS[name](),))
    assert in_training(monkeypatch, recipe, 20) == in_training(monkeypatch, recipe, 60)


@pytest.mark.parametrize("name", RULES)
def test_gradient_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    private = {"sampler": Poisson(), "normalize": "fixed", "model": "convnet:norm=group"}
    recipe = quick(epochs=1, batch_size=10, gradient=RULES[name](), **(private if name == "per-sample" else {}))
    assert in_training(monkeypatch, recipe, 20) == in_training(monkeypatch, recipe, 60)


@pytest.mark.parametrize("name", SEARCHES)
def test_attacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = three_classes()
    threat = dataclasses.replace(ATTACKS[name].threat, budget=0.1)

    # As long as the longest search: an attack that follows training to its end begins another one, and waits for that.
    recipe = quick(epochs=1 if name != "metapoison" else 60)

    def crafted(steps: int) -> Counter[str]:
        task = threat.draw(train, test, 0)
        attack = ATTACKS[name](steps=steps, **UNDISTURBED.get(name, {}))
        with waits(monkeypatch, [train.images, train.labels, test.images, test.labels]) as seen:
            attack.craft(task, recipe, 0)
        return Counter(seen)

    assert crafted(2) == crafted(6)
