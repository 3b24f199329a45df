"""Targeted attacks do what their papers claim: on digits, against random noise of equal budget, on the same targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from mithridate.core.balls import Linf
from mithridate.core.sources import Digits
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import Scenario, scenario
from mithridate.experiments.statistics import sign_flip
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import ThreatModel


def outcomes(
    attacks: tuple[Attack, Attack], threat: ThreatModel, way: Scenario, trials: int, folder: Path
) -> tuple[list[list[float]], list[int]]:
    """Margins of each attack by seed, and how many targets each moved; the seeds pair them."""
    store = Store(folder)
    margins, moved = [], []
    for attack in attacks:
        results = [
            run(
                Trial(
                    data=Digits(),
                    threat=threat,
                    attack=attack,
                    learner=way.learner,
                    pretrain=way.pretrain,
                    seed=seed,
                ),
                store,
            )
            for seed in range(trials)
        ]
        margins.append([result.outcome["margin"][0][0] for result in results])
        moved.append(sum(result.outcome["success"][0][0] for result in results))
    return margins, moved


@pytest.mark.effect
def test_poison_frogs_move_targets_of_a_frozen_network_and_noise_does_not(tmp_path: Path) -> None:
    attacks = (PoisonFrogs(steps=300), RandomNoise())
    frozen = scenario("transfer", digits_recipe())
    margins, moved = outcomes(attacks, PoisonFrogs.threat, frozen, trials=10, folder=tmp_path)
    differences = [a - b for a, b in zip(*margins, strict=True)]
    assert sign_flip(differences) < 0.01
    assert moved[0] >= 5
    assert moved[1] == 0


@pytest.mark.effect
def test_witches_brew_raises_the_margin_of_the_intended_class_more_than_noise_does(tmp_path: Path) -> None:
    attacks = (WitchesBrew(steps=60, surrogates=2), RandomNoise())
    threat = ThreatModel(budget=0.05, ball=Linf(eps=48 / 255))
    margins, _ = outcomes(attacks, threat, scenario("from-scratch", digits_recipe()), trials=12, folder=tmp_path)
    differences = [a - b for a, b in zip(*margins, strict=True)]
    assert sign_flip(differences) < 0.05, differences
