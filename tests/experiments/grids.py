"""A made-up study of the size people run: attacks against defences, static and adaptive, from made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.experiments import synthetic as made

Pair = tuple[dict[str, Any], dict[str, Any]]

DEFENSES: tuple[dict[str, Any], ...] = (
    {"type": "mixup", "k": 2},
    {"type": "cutmix"},
    {"type": "cutout"},
    {"type": "maxup"},
    {"type": "noise", "scale": 0.1},
    {"type": "spectral-signatures", "contamination": 0.02},
    {"type": "partition-vote", "parts": 10},
)
SHARES = {
    "witches-brew": (0.5, 0.1, 0.3, 0.45, 0.2, 0.25, 0.5, 0.05),
    "poison-frogs": (0.85, 0.7, 0.8, 0.75, 0.6, 0.6, 0.0, 0.02),
    "badnets": (0.98, 0.97, 0.6, 0.97, 0.9, 0.95, 0.05, 0.04),
}
"""Success without a defence, then with each."""
COSTS = (0.0, -0.004, 0.004, 0.01, 0.02, 0.05, 0.002, 0.16)
UNRUN = {("poison-frogs", 2, False), ("poison-frogs", 4, True), ("badnets", 5, True), ("badnets", 7, True)}
"""(attack, number of the defence, adaptive) that are left out."""


def grid_pairs(targets: int = 20, adaptive: bool = True) -> Iterator[Pair]:
    """Three attacks and their controls against nothing and seven defences."""
    rng = np.random.default_rng(5)
    for attack, shares in SHARES.items():
        threat, pretrain = _threat(attack)
        for number, share in enumerate(shares):
            defenses = [DEFENSES[number - 1]] if number else []
            arms = [(attack, False), ("random-noise", False), ("no-attack", False)]
            arms += [(attack, True)] if adaptive and number else []
            for name, knows in arms:
                if (name, number, knows) in UNRUN:
                    continue
                won = min(1.0, share + 0.25 * knows) if name == attack else 0.03
                for seed in range(targets):
                    trial = made.trial(name, threat, *defenses, seed=seed, pretrain=pretrain, adaptive=knows)
                    yield trial, _result(trial, won, COSTS[number], rng)


def transfer_pairs(targets: int = 10) -> Iterator[Pair]:
    """One attack from two surrogates on two victim models."""
    rng = np.random.default_rng(6)
    wide, threat = made.RECIPE | {"model": "convnet-wide"}, made.TARGETED | {"budget": 0.04}
    for victim in (made.RECIPE, wide):
        for surrogate in (made.RECIPE, wide):
            for name in ("witches-brew", "random-noise"):
                won = (0.6 if victim is surrogate else 0.1) if name == "witches-brew" else 0.0
                other = None if surrogate is victim else surrogate
                if name == "random-noise" and other is not None:
                    continue
                for seed in range(targets):
                    trial = made.trial(name, threat, seed=seed, learner=victim, surrogate=other)
                    yield trial, _result(trial, won, 0.0, rng)


def _threat(attack: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if attack == "badnets":
        return made.BACKDOOR, None
    if attack == "poison-frogs":
        return made.TARGETED | {"ball": {"type": "any-image"}, "budget": 1 / 5000}, made.RECIPE
    return made.TARGETED, None


def _result(trial: dict[str, Any], share: float, cost: float, rng: np.random.Generator) -> dict[str, Any]:
    images = 30 if trial["threat"]["relabel"] else 1
    success = [[int(rng.random() < share) for _ in range(images)]]
    margin = [[round(float(rng.normal(1.5 if hit else -3 + 2 * share, 0.8)), 4) for hit in row] for row in success]
    return made.result(trial, success, margin, [round(float(rng.normal(0.62 - cost, 0.004)), 4)])


def write(folder: Path, pairs: Iterator[Pair], poisons: int = 0) -> Path:
    """Write a study folder; the first `poisons` cases of each attack have a stored poison."""
    clean = made.digits(13)
    for trial, result in pairs:
        place = folder / "trials" / made.name_of(trial)
        place.mkdir(parents=True)
        (place / "trial.json").write_text(json.dumps(trial))
        (place / "result.json").write_text(json.dumps(result))
        stored = folder / "poisons" / result["poison"]["id"]
        if result["poison"]["count"] and trial["seed"] < poisons and not stored.exists():
            made.write_poison(stored, trial, clean)
    (folder / "study.json").write_text(json.dumps({"schema": 1, "command": "mithridate study attack-by-defense"}))
    return folder
