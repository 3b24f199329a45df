"""Made-up gradient-inversion results that look like real ones: nothing is attacked, numbers come from a generator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.experiments.synthetic import ENVIRONMENT, name_of

CLASSES = [*map(str, range(7)), "<b>7</b>", "8", "nine & more"]
RECIPE = {"type": "recipe", "model": "convnet", "normalize": "data", "epochs": 0, "start_from": None}
ATTACK = {"type": "inverting-gradients", "steps": 2000, "restarts": 1, "lr": 0.025, "total_variation": 1e-4}
WEAK = {"type": "deep-leakage", "steps": 300, "restarts": 1}
SPARSE = {"type": "sparsify", "keep": 0.1}
LARGER = {"type": "larger-batch", "factor": 4}

Pair = tuple[dict[str, Any], dict[str, Any]]


def noise(value: float) -> dict[str, Any]:
    """Settings of clip-and-noise."""
    return {"type": "clip-and-noise", "clip": 1.0, "noise": value, "delta": 1e-5}


def trial(*defenses: dict[str, Any], seed: int = 0, batch: int = 1, **more: Any) -> dict[str, Any]:
    """trial.json, as `to_json(LeakTrial(...))` writes it; `more` replaces whole entries, `client` some of them."""
    sharing = {"type": "gradient", "batch_statistics": False, "clip": None}
    client = {"batch": batch, "sharing": sharing, "mixing": None, "filters": [], "tells_labels": True}
    client |= {"tells_statistics": False, "guarantees": []} | more.pop("client", {})
    base = {
        "data": {"type": "digits", "train": 1000, "seed": 0},
        "attack": ATTACK,
        "recipe": RECIPE,
        "client": client,
        "defenses": list(defenses),
        "adaptive": False,
        "distinct": False,
        "candidates": 1000,
        "seed": seed,
        "model_seed": 0,
    }
    return base | more


def result(
    made: dict[str, Any],
    psnr: Sequence[float],
    rank: Sequence[int],
    control: Sequence[float] | None = None,
    control_rank: Sequence[int] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """result.json of that trial: numbers of each image. `more` replaces whole entries."""
    count, seed = len(psnr), made["seed"]
    base_rows = [100 * seed + place for place in range(count)]
    base = {
        "schema": 1,
        "kind": "leak",
        "trial": name_of(made),
        "outcome": {
            "psnr": list(psnr),
            "ssim": [value / 40 for value in psnr],
            "rank": list(rank),
            "candidates": made["candidates"],
            "feature_distance": [0.5] * count,
            "label_accuracy": 1.0,
            "value": 0.01,
        },
        "control": {
            "psnr": list(control or [10.0] * count),
            "ssim": [0.1] * count,
            "rank": list(control_rank or [500] * count),
        },
        "case": {"rows": base_rows, "labels": [row % 10 for row in base_rows], "found_labels": [0] * count},
        "client": {"count": count, "sharing": made["client"]["sharing"], "numbers": 12345},
        "guarantees": _guarantees(made),
        "notes": {},
        "data": {"fingerprint": "abc", "train": 1000, "test": 797, "classes": CLASSES, "shape": [1, 8, 8]},
        "models": [],
        "seconds": {"model": 0.0, "share": 0.1, "attack": 30.0 * count, "evaluate": 0.9},
        "peak_memory_mb": 400.0,
        "threads": 1,
        "environment": ENVIRONMENT,
        "warnings": [],
    }
    return base | more


def _guarantees(made: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for defense in made["defenses"]:
        if defense["type"] == "clip-and-noise":
            epsilon = round(4.0 / defense["noise"], 3)
            statement = f"one message is ({epsilon:g}, 1e-05)-differentially private for one image of the batch"
            assumptions = ["this message alone: every further round adds to epsilon"]
            values = {"epsilon": epsilon, "delta": 1e-5, "noise_multiplier": defense["noise"]}
            kind = "differential-privacy"
            found.append({"kind": kind, "statement": statement, "assumptions": assumptions, "values": values})
    return found


# --- with images -----------------------------------------------------------------------------------------------------


def digits() -> np.ndarray:
    """Real small images [N, 1, 8, 8] uint8."""
    from sklearn.datasets import load_digits

    pixels = load_digits(return_X_y=True)[0].reshape(-1, 1, 8, 8)
    return (pixels * 15.9).astype("uint8")


def measured(made: dict[str, Any], pool: np.ndarray, error: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """result.json and the images of a reconstruction that is off by so much, measured as plainly as can be."""
    rng = np.random.default_rng([made["seed"], round(1000 * error), len(made["attack"]["type"])])
    count = made["client"]["batch"]
    for defense in made["defenses"]:
        count *= defense.get("factor", 1)
    rows = [(37 * made["seed"] + 5 * place) % 797 for place in range(count)]
    true = pool[rows].astype(float) / 255
    mean = pool.astype(float).mean(0) / 255
    mixed = (1 - min(1.0, error)) * true + min(1.0, error) * mean
    found = np.clip(mixed + rng.normal(0, 0.25 * error, true.shape), 0, 1)
    found = np.round(found * 255) / 255
    control = np.broadcast_to(mean, true.shape)
    near, ranks, far, others = (*_near(found, rows, pool), *_near(control, rows, pool))
    done = result(made, near, ranks, far, others)
    labels = [row % 10 for row in rows]
    done["case"] = {"rows": rows, "labels": labels, "found_labels": labels}
    images = {"true": pool[rows], "found": np.round(found * 255).astype("uint8")}
    return done, images


def _near(found: np.ndarray, rows: Sequence[int], pool: np.ndarray) -> tuple[list[float], list[int]]:
    """PSNR of each image, and the rank of its true one among the first 1,000 of the pool."""
    decibels, ranks = [], []
    for image, row in zip(found, rows, strict=True):
        apart = ((pool[:1000].astype(float) / 255 - image) ** 2).mean((1, 2, 3))
        decibels.append(float(-10 * np.log10(apart[row])))
        ranks.append(1 + int((apart < apart[row]).sum()))
    return decibels, ranks


def realistic(cases: int = 12) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]]:
    """Two attacks, three batch sizes, no defence, three strengths of noise (both kinds of attacker), two more."""
    pool = digits()
    errors = {"none": 0.15, "0.01": 0.3, "0.1": 0.7, "1.0": 1.3, "sparsify": 0.35, "larger-batch": 0.55}
    for attack, worse in ((ATTACK, 1.0), (WEAK, 1.8)):
        for batch, crowd in ((1, 0.0), (4, 0.25), (8, 0.45)):
            for defense in (None, noise(0.01), noise(0.1), noise(1.0), SPARSE, LARGER):
                name = "none" if defense is None else str(defense.get("noise", defense["type"]))
                for adaptive in (False, True) if "noise" in (defense or ()) and attack is ATTACK else (False,):
                    for seed in range(cases):
                        given = () if defense is None else (defense,)
                        made = trial(*given, seed=seed, batch=batch, attack=attack, adaptive=adaptive)
                        luck = np.random.default_rng([seed, batch]).uniform(0.5, 1.6)
                        error = worse * luck * (errors[name] + crowd) * (0.85 if adaptive else 1.0)
                        yield made, *measured(made, pool, error)


def put(
    folder: Path, made: dict[str, Any], done: dict[str, Any] | None, images: dict[str, np.ndarray] | None = None
) -> Path:
    """Write one trial."""
    place = folder / "trials" / name_of(made)
    place.mkdir(parents=True, exist_ok=True)
    (place / "trial.json").write_text(json.dumps(made))
    if images is not None:
        save_file({name: np.ascontiguousarray(value) for name, value in images.items()}, place / "images.safetensors")
    if done is not None:
        (place / "result.json").write_text(json.dumps(done))
    return place


def make_study(folder: Path, cases: int = 12) -> Path:
    """Write a whole folder: finished trials with images, one failure, one that never ran."""
    for made, done, images in realistic(cases):
        put(folder, made, done, images)
    failed = put(folder, trial(seed=90), None)
    error = {"type": "ValueError", "message": "the gradient of <conv> holds NaN", "traceback": "..."}
    (failed / "error.json").write_text(json.dumps(error))
    put(folder, trial(seed=91), None)
    study = {"schema": 1, "command": "mithridate invert --data digits --model convnet --batch 1 4 8", "versions": {}}
    (folder / "study.json").write_text(json.dumps(study))
    return folder
