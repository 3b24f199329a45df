"""The command line: what the attacker knows, what it aims at, what victims start from, where pixels are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mithridate.core.classifier import save_weights
from mithridate.core.schema import to_json
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import ThreatModel

TINY = ("--model", "convnet:width=4", "--epochs", "1")
FEW = ("--trials", "1", "--clean-victims", "1", "--workers", "1")


def trials(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json"))]


def test_an_adaptive_audit_meets_every_defence_twice(run, tmp_path: Path) -> None:
    brew = ("--attacks", "witches-brew:steps=2,surrogates=1", "--defenses", "mixup", "--adaptive")
    code, out, err = run("audit", *TINY, *FEW, *brew, "--budget", "0.02")
    assert (code, "adaptive" in out) == (0, True), err
    made = trials(tmp_path / "runs/audit")
    attacked = [t for t in made if t["attack"]["type"] == "witches-brew"]
    assert sorted((len(t["defenses"]), t["adaptive"]) for t in attacked) == [(0, False), (1, False), (1, True)]
    assert not any(t["adaptive"] for t in made if t["attack"]["type"] in ("no-attack", "random-noise"))


def test_a_black_box_trains_the_model_that_is_named(run, tmp_path: Path) -> None:
    frogs = ("--attacks", "poison-frogs:steps=2", "--scenarios", "transfer-black-box", "--defenses")
    code, _, err = run("audit", *TINY, *FEW, *frogs, "--surrogate", "vgg11:width=4")
    assert code == 0, err
    made = trials(tmp_path / "runs/audit")
    (attacked,) = [t for t in made if t["attack"]["type"] == "poison-frogs"]
    assert (attacked["surrogate"]["model"], attacked["knows_features"]) == ("vgg11:width=4", False)
    assert all(t["surrogate"] is None for t in made if t is not attacked)


def test_trusted_rows_are_held_out_for_fine_tuning(run, tmp_path: Path) -> None:
    badnets = ("--attacks", "badnets", "--defenses", "fine-tuning:epochs=1")
    code, _, err = run("audit", *TINY, *FEW, *badnets)
    assert (code, "trusted" in err) == (2, True)
    code, _, err = run("audit", *TINY, *FEW, *badnets, "--trusted", "50")
    assert code == 0, err
    assert {t["trusted"] for t in trials(tmp_path / "runs/audit")} == {50}


def test_victims_start_from_the_users_checkpoint(run, tmp_path: Path) -> None:
    recipe = Recipe(model="convnet:width=4", epochs=1, transforms=())
    save_weights(recipe.fit([Digits(train=100).load()[0]], [3]).models[0], tmp_path / "mine.safetensors")
    brew = ("--attacks", "witches-brew:steps=2,surrogates=1", "--defenses", "--start-from", "mine.safetensors")
    code, _, err = run("audit", *TINY, *FEW, *brew)
    assert code == 0, err
    assert {t["learner"]["start_from"] for t in trials(tmp_path / "runs/audit")} == {"mine.safetensors"}
    assert "fine-tuning" in (tmp_path / "runs/audit/report.html").read_text()


def test_a_poison_is_crafted_for_an_image_of_the_user(run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seven.png")
    aim = ("craft", *TINY, "--attack", "poison-frogs:steps=2", "--target")
    code, out, err = run(*aim, "seven.png", "--intended", "3", "--true", "7", "--json")
    assert code == 0, err
    case = json.loads(out)["case"]
    assert (case["target_files"], case["intended"], case["target_classes"]) == (["seven.png"], ["3"], ["7"])
    label = int(Digits().load()[1].labels[17])
    code, out, err = run(*aim, "17", "--intended", str((label + 1) % 10), "--json")
    assert (code, json.loads(out)["case"]["target_rows"]) == (0, [17]), err
    code, _, err = run(*aim, "17")
    assert (code, "--intended" in err) == (2, True)


def test_pixels_are_kept_in_a_memory_map(run, tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 6)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    badnets = ("--attacks", "badnets", "--defenses", "--budget", "0.1")
    code, _, err = run("audit", "--data", "photos", "--cache", "pixels", *TINY, *FEW, *badnets)
    assert code == 0, err
    assert sum(path.stat().st_size for path in (tmp_path / "pixels").rglob("*") if path.is_file()) >= 36 * 192
    (result, *_) = (tmp_path / "runs/audit").glob("trials/*/result.json")
    assert json.loads(result.read_text())["data"]["decoder"].startswith("pillow ")


def test_the_models_of_one_trial_are_shared_out_and_come_out_the_same(run, tmp_path: Path) -> None:
    recipe = Recipe(model="convnet:width=4", epochs=1, transforms=())
    brew = WitchesBrew(steps=2, surrogates=2)
    trial = Trial(
        data=Digits(train=100), threat=ThreatModel(budget=0.05), attack=brew, learner=recipe, victims=2, seed=1
    )
    (tmp_path / "trial.json").write_text(json.dumps(to_json(trial)))
    outcomes = []
    for workers in ("1", "2"):
        code, _, err = run("trial", "trial.json", "--workers", workers, "--out", f"with-{workers}")
        assert code == 0, err
        (path,) = (tmp_path / f"with-{workers}").glob("trials/*/result.json")
        outcomes.append({key: json.loads(path.read_text())[key] for key in ("outcome", "case", "poison")})
    assert outcomes[0] == outcomes[1]


def test_the_fast_recipe_is_asked_for_by_name(run, tmp_path: Path) -> None:
    width = ("--model", "convnet:width=4", "--workers", "1")
    code, _, err = run("audit", *width, *FEW, "--attacks", "badnets", "--defenses", "--recipe", "fast", "--epochs", "1")
    assert code == 0, err
    assert {t["learner"]["schedule"]["type"] for t in trials(tmp_path / "runs/audit")} == {"one-cycle"}
    assert run("audit", "--recipe", "quick").code == 2
