"""Releases do what their papers claim: accuracy on clean digits of victims that were trained on released ones alone."""

from __future__ import annotations

import pytest

from mithridate.core.balls import Linf
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.adversarial_release import AdversarialRelease
from mithridate.poisoning.attacks.class_wise_noise import ClassWiseNoise
from mithridate.poisoning.attacks.error_minimizing import ErrorMinimizing
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.secure_release import SecureRelease
from mithridate.poisoning.attacks.tensorclog import TensorClog
from mithridate.poisoning.threat import Availability, ThreatModel

RECIPE = Recipe(model="mlp:width=64", epochs=40, batch_size=64, transforms=(), precision="fp32")


@pytest.fixture
def accuracies(recwarn: pytest.WarningsRecorder) -> dict[str, float]:
    """Clean accuracy of 3 fresh victims by method; eps is 0.3, where a perceptron feels it (and a person sees it)."""
    ball = Linf(eps=0.3)
    assert "plain to see" in str(recwarn.pop(UserWarning).message)
    train, test = Digits().load()
    task = ThreatModel(budget=1.0, ball=ball, goal=Availability(), poison_class="any").draw(train, test, 0)
    methods: dict[str, Attack] = {
        "random": RandomNoise(),
        "untargeted": AdversarialRelease(aim="untargeted"),
        "targeted": AdversarialRelease(),
        "class-wise": ClassWiseNoise(),
        "secure": SecureRelease(),
        "error-minimizing": ErrorMinimizing(),
        "tensorclog": TensorClog(),
    }
    found = {}
    for name, attack in methods.items():
        poison = attack.craft(task, RECIPE, 0)
        task.check(poison)
        fitted = RECIPE.fit([poison.apply(train)] * 3, [100, 101, 102])
        accuracy = task.outcome(fitted, poison)["accuracy"]
        assert accuracy is not None
        found[name] = float(accuracy.mean())
    return found


@pytest.mark.effect
def test_on_digits_releases_come_in_the_order_of_the_reference_runs(accuracies: dict[str, float]) -> None:
    """The order that an independent implementation gave: 0.959, 0.868 (static), 0.635, 0.558 and 0.161."""
    assert accuracies["random"] > 0.93
    assert accuracies["tensorclog"] > 0.9  # weak, as published
    assert accuracies["error-minimizing"] < 0.85  # the static one is at 0.87
    assert accuracies["secure"] < 0.75
    assert accuracies["untargeted"] < 0.8
    assert accuracies["class-wise"] < 0.7
    assert accuracies["targeted"] < 0.25
    assert accuracies["targeted"] < min(accuracies["untargeted"], accuracies["secure"], accuracies["class-wise"]) - 0.2
