"""A made-up study folder that looks like a real one: no training, numbers drawn from a fixed generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

CLASSES = ["plane", "<script>alert(1)</script>", "bird & co", "cat", "deer"]
ENVIRONMENT = {
    "python": "3.11.2",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "mithridate": "0.1.0",
    "platform": "Linux",
    "device": "cpu",
    "cpu": "A processor",
}
RECIPE = {"type": "recipe", "model": "convnet", "epochs": 40, "batch_size": 125, "learning_rate": 0.1}
PARTS = {"type": "partition-vote", "parts": 25}
VOTE = {
    "kind": "partition-vote",
    "statement": "an answer with radius r stays the same",
    "assumptions": ["training is bit-exact"],
    "values": {"parts": 25},
}
SPECTRAL = {"type": "spectral-signatures", "contamination": 0.03}
MIXUP = {"type": "mixup", "k": 2}
TARGETED = {
    "goal": {"type": "misclassify"},
    "ball": {"type": "linf", "eps": 16 / 255},
    "budget": 0.02,
    "relabel": False,
}
BACKDOOR = {
    "goal": {"type": "backdoor", "intended": None, "sources": "all", "area": 0.1, "tests": 60},
    "ball": {"type": "patch", "area": 0.1},
    "budget": 0.02,
    "relabel": True,
}


def trial(attack: str, threat: dict[str, Any], *defenses: dict[str, Any], seed: int = 0, **more: Any) -> dict[str, Any]:
    """trial.json, as `to_json(Trial(...))` writes it."""
    source = {"poison_class": "any" if threat["relabel"] else "intended", "targets": 1, "case": None}
    base = {
        "data": {"type": "parquet", "path": "data/cifar10", "per_class": 500},
        "threat": threat | source,
        "attack": {"type": attack, "steps": 250, "restarts": 1}
        if attack in ("witches-brew", "badnets")
        else {"type": attack},
        "learner": RECIPE,
        "pretrain": None,
        "trusted": 0,
        "defenses": list(defenses),
        "surrogate": None,
        "adaptive": False,
        "victims": 1,
        "seed": seed,
        "surrogate_seed": 0,
    }
    return base | more


def result(
    made: dict[str, Any],
    success: list[list[int]],
    margin: list[list[float]],
    accuracy: list[float],
    **more: Any,
) -> dict[str, Any]:
    """result.json of that trial. `more` replaces whole entries."""
    attack, threat, seed = made["attack"]["type"], made["threat"], made["seed"]
    poisoned, dirty = attack != "no-attack", threat["relabel"] and attack == "badnets"
    base = {
        "schema": 1,
        "trial": name_of(made),
        "outcome": {
            "success": success,
            "margin": margin,
            "accuracy": accuracy,
            "abstained": [[0] * len(row) for row in success],
            "radius": None,
            "correct": [[int(not hit) for hit in row] for row in success],
        },
        "case": {
            "goal": threat["goal"]["type"],
            "target_rows": [1000 * seed + i for i in range(len(success[0]))],
            "target_classes": [CLASSES[1]] * len(success[0]),
            "intended": [CLASSES[2]] * len(success[0]),
            "poison_class": CLASSES[2] if threat["poison_class"] == "intended" else "any",
        },
        "data": {"fingerprint": "abc", "train": 5000, "test": 10000, "classes": CLASSES, "shape": [3, 32, 32]},
        "poison": {
            "id": "poison-" + name_of({k: made[k] for k in ("attack", "threat", "seed", "pretrain")}),
            "count": 100 if poisoned else 0,
            "share": 0.02 if poisoned else 0.0,
            "max_linf": 16 / 255 if poisoned else 0.0,
            "mean_l2": 1.9 if poisoned else 0.0,
            "relabelled": 90 if dirty else 0,
            "notes": {"objective": 0.1 + 0.001 * seed} if attack == "witches-brew" else {},
        },
        "defense": {"removed": None, "removed_poisons": None},
        "guarantees": [],
        "models": [],
        "seconds": {"surrogates": 5.0, "craft": 31.0 if poisoned else 0.0, "victims": 50.0, "evaluate": 1.5},
        "peak_memory_mb": 812.5,
        "threads": 1,
        "environment": ENVIRONMENT,
        "warnings": [],
    }
    return base | more


def name_of(settings: Any) -> str:
    """An id: a hash of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def hits(
    attack: str, won: list[int], *defenses: dict[str, Any], threat: dict[str, Any] = TARGETED, **more: Any
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Trials of one cell: `won[seed]` says whether the attack succeeded."""
    for seed, hit in enumerate(won):
        settings = trial(attack, threat, *defenses, seed=seed, **more)
        yield settings, result(settings, [[hit]], [[2.0 * hit - 1.0]], [0.9 - 0.01 * len(defenses) + 0.001 * seed])


def misclassify_pairs(targets: int = 20, seed: int = 0) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Gradient matching and its controls, without a defence and under mixup."""
    rng = np.random.default_rng(seed)
    hits = {("witches-brew", 0): 9, ("witches-brew", 1): 2, ("random-noise", 0): 1}
    for defended, defenses in enumerate(((), (MIXUP,))):
        for attack in ("witches-brew", "random-noise", "no-attack"):
            won = hits.get((attack, defended), 0)
            for t in range(targets):
                victims = 8 if attack == "no-attack" else 1
                made = trial(attack, TARGETED, *defenses, seed=t, victims=victims)
                success = [[int(t * 7 % targets < won * targets / 20)] for _ in range(victims)]
                margin = [[float(rng.normal(0.5 if s[0] else -4 + (1.5 if won > 1 else 0), 0.8))] for s in success]
                clean = np.random.default_rng(defended).normal(0.622 - 0.018 * defended, 0.004, victims)
                accuracy = clean if attack == "no-attack" else rng.normal(0.618 - 0.018 * defended, 0.005, victims)
                slow = ["bf16 is slow on this machine; precision=fp32 was used"] if t == 3 else []
                made_result = result(made, success, margin, [round(float(a), 4) for a in accuracy], warnings=slow)
                yield made, made_result


def backdoor_pairs(cases: int = 8, seed: int = 1) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A patch backdoor, its controls, and three defences that help, fail and cost."""
    rng = np.random.default_rng(seed)
    shares = {(): 0.97, ("mixup",): 0.94, ("spectral-signatures",): 0.3, ("partition-vote",): 0.04}
    cost = {"mixup": -0.004, "spectral-signatures": 0.01, "partition-vote": 0.16}
    for defenses in ((), (MIXUP,), (SPECTRAL,), (PARTS,)):
        names = tuple(d["type"] for d in defenses)
        for attack in ("badnets", "random-noise", "no-attack"):
            for t in range(cases):
                victims = 4 if attack == "no-attack" else 1
                share = shares[names] + rng.normal(0, 0.02) if attack == "badnets" else 0.02
                success = [[int(rng.random() < share) for _ in range(60)] for _ in range(victims)]
                margin = [[float(rng.normal(2 if s else -2, 1)) for s in row] for row in success]
                made = trial(attack, BACKDOOR, *defenses, seed=t, victims=victims)
                mean = 0.622 - cost.get("".join(names), 0)
                accuracy = [round(float(a), 4) for a in rng.normal(mean, 0.004, victims)]
                done = result(made, success, margin, accuracy)
                if names == ("spectral-signatures",):
                    done["defense"] = {
                        "removed": [150] * victims,
                        "removed_poisons": [78 if attack == "badnets" else 3],
                    }
                if names == ("partition-vote",):
                    done["outcome"]["radius"] = [[int(r) for r in rng.integers(0, 8, 60)] for _ in range(victims)]
                    done["outcome"]["certified"] = [[value * (1 - r / 10) for r in range(8)] for value in accuracy]
                    done["guarantees"] = [VOTE]
                yield made, done


def transfer_pairs(cases: int = 4) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Feature collision on frozen features: works each time, on too few cases to show it."""
    threat = TARGETED | {"ball": {"type": "any-image"}, "budget": 1 / 5000}
    for attack in ("poison-frogs", "random-noise", "no-attack"):
        for t in range(cases):
            made = trial(attack, threat, seed=t, pretrain=RECIPE)
            hit = int(attack == "poison-frogs")
            done = result(made, [[hit]], [[1.5 if hit else -3.0]], [0.64])
            done["poison"] |= {"count": int(attack != "no-attack"), "share": 1 / 5000, "max_linf": 0.4, "mean_l2": 3.0}
            yield made, done


def digits(count: int) -> torch.Tensor:
    """Small real images, [count, 1, 8, 8] uint8."""
    from sklearn.datasets import load_digits

    return torch.from_numpy((load_digits().images[:count] * 15.9).astype("uint8"))[:, None]


def write_poison(folder: Path, trial_json: dict[str, Any], clean: torch.Tensor, count: int = 12) -> None:
    """poisons/<id>: clean pixels moved by at most 16 / 255 (or a patch, for a backdoor)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(3)
    base, target = clean[:count], clean[count : count + 1]
    images = (base.int() + torch.randint(-16, 17, base.shape, generator=rng)).clamp(0, 255).to(torch.uint8)
    if trial_json["attack"]["type"] == "badnets":
        images = base.clone()
        size = max(2, base.shape[-1] // 8)
        images[:, :, -size:, -size:] = 255
    tensors = {"rows": torch.arange(len(images)), "images": images, "base": base.contiguous(), "target": target}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "poison.safetensors")
    manifest = {"schema": 1, "count": len(images), "work": trial_json, "notes": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def pairs(targets: int = 20, cases: int = 8) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All made-up trials."""
    return [*misclassify_pairs(targets), *backdoor_pairs(cases), *transfer_pairs()]


def make_study(folder: Path, images: torch.Tensor | None = None, **sizes: int) -> Path:
    """Write a whole study folder: finished trials, poisons, one failure, one that never ran."""
    clean = digits(13) if images is None else images
    for made, done in pairs(**sizes):
        place = folder / "trials" / name_of(made)
        place.mkdir(parents=True)
        (place / "trial.json").write_text(json.dumps(made))
        (place / "result.json").write_text(json.dumps(done))
        if done["poison"]["count"] and made["seed"] < 2:
            write_poison(folder / "poisons" / done["poison"]["id"], made, clean)
    failed, missing = trial("witches-brew", TARGETED, seed=90), trial("witches-brew", TARGETED, seed=91)
    for made in (failed, missing):
        (folder / "trials" / name_of(made)).mkdir()
        (folder / "trials" / name_of(made) / "trial.json").write_text(json.dumps(made))
    error = {
        "label": "x",
        "type": "ValueError",
        "message": "loss is <nan> after 3 epochs",
        "traceback": "Traceback ...",
    }
    (folder / "trials" / name_of(failed) / "error.json").write_text(json.dumps(error))
    study = {"schema": 1, "command": "mithridate audit --data data/cifar10 --preset small", "versions": ENVIRONMENT}
    (folder / "study.json").write_text(json.dumps(study))
    return folder
