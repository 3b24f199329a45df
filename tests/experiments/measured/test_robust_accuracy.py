"""Robust accuracy as a measurement."""

from __future__ import annotations

from pathlib import Path

from mithridate.core.balls import Linf
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.evasion.attacks.pgd import PGD
from mithridate.evasion.robustness import robustness
from mithridate.experiments.evasions import drawn
from mithridate.experiments.measured.robust_accuracy import RobustAccuracy
from mithridate.experiments.study import run_study


def test_it_is_what_the_attack_finds_and_models_are_shared(tmp_path: Path) -> None:
    data, recipe = Digits(train=200), Recipe(model="mlp", epochs=3)
    attacks = [PGD(ball=Linf(eps=eps), steps=3) for eps in (1e-6, 0.1)]
    trials = [
        RobustAccuracy(data=data, recipe=recipe, attack=attack, images=40, seed=s) for attack in attacks for s in (0, 1)
    ]
    found = run_study(trials, tmp_path, progress=False)
    assert len(list((tmp_path / "fits").iterdir())) == 2
    for settings, result in found[:2]:
        assert settings["seed"] in (0, 1)
        assert result["outcome"]["stands"] == result["outcome"]["right"]
    train, test = data.load()
    model = recipe.fit([train], [1]).models[0].eval()
    expected = robustness(model, drawn(test, 40, 0), [attacks[1]], seed=1, probe=False)
    assert found[3][1]["outcome"]["stands"] == expected.stands.tolist()
    assert sum(found[3][1]["outcome"]["stands"]) < sum(found[3][1]["outcome"]["right"])
