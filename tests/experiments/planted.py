"""Trials whose outcome is planted: nothing is trained, so what a study concludes can be compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mithridate.core.balls import Linf
from mithridate.core.schema import name_of
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.facts import TrialResult, environment
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.threat import ThreatModel

DATA = Digits(train=100)
MIXUP = Mixup()


@dataclass(frozen=True, kw_only=True)
class Planted(Trial):
    """Succeeds as often as `rates` says of its attack and number of defences; or where its dose passes a threshold."""

    ran: ClassVar[list[tuple[str, int, int]]] = []
    """Attack, defences, seed of every trial that was run."""
    rates: ClassVar[dict[tuple[str, int], float]] = {}
    median: ClassVar[float | None] = None
    """Budget that moves half of the targets; None: rates count."""
    failing: ClassVar[set[int]] = set()
    """Seeds that fail."""

    def run(self, store: Store, device: str = "cpu", *, keep_models: bool = False) -> TrialResult:
        attack, data = name_of(self.attack), store.data(self.data, device)
        Planted.ran.append((attack, len(self.defenses), self.seed))
        if self.seed in self.failing:
            raise RuntimeError("planted failure")
        rng = np.random.default_rng([self.seed, len(attack), len(self.defenses)])
        hit = [[int(rng.random() < self._chance(attack))] for _ in range(self.victims)]
        count = 0 if attack == "no-attack" else round(self.threat.budget * 1000)
        return TrialResult(
            trial=store.identity(self.work(data.fingerprint)),
            outcome={"success": hit, "margin": [[0.0]] * self.victims, "accuracy": [0.9] * self.victims},
            case={"goal": "misclassify", "target_rows": [self.seed], "target_files": None, "intended": ["1"]},
            data={
                "fingerprint": data.fingerprint,
                "train": 1000,
                "test": 100,
                "classes": ["0", "1"],
                "shape": [1, 8, 8],
            },
            poison={"id": "none", "count": count, "share": count / 1000, "relabelled": 0, "notes": {}},
            defense={"removed": None, "removed_poisons": None},
            guarantees=[],
            models=[],
            seconds={},
            peak_memory_mb=None,
            threads=1,
            environment=environment("cpu"),
            warnings=[],
        )

    def _chance(self, attack: str) -> float:
        if self.median is None or attack != "witches-brew":
            return self.rates.get((attack, len(self.defenses)), 0.0)
        threshold = np.log2(self.median * 2 ** len(self.defenses)) + np.random.default_rng(self.seed).normal(0, 0.7)
        return float(np.log2(self.threat.budget) > threshold)


def planted(
    cases: int, *defenses: Defense, budgets: tuple[float, ...] = (0.02,), controls: bool = True, **more: Any
) -> list[Trial]:
    """An attack under no defence and under each of some, at every budget, with its controls."""
    attacks = [WitchesBrew(), *((RandomNoise(), NoAttack()) if controls else ())]
    return [
        Planted(
            data=DATA,
            threat=ThreatModel(budget=budget, ball=Linf(eps=8 / 255)),
            attack=attack,
            learner=Recipe(),
            defenses=stack,
            seed=seed,
            **more,
        )
        for budget in budgets
        for attack in attacks
        for stack in ((), *((one,) for one in defenses))
        for seed in range(cases)
        if not stack or not isinstance(attack, RandomNoise)
    ]
