"""Examples and studies: every script runs, every study is what its docstring says."""

from __future__ import annotations

import importlib
import json
import runpy
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import mithridate as mi
from mithridate.core.schema import from_json, to_json
from mithridate.experiments.study import run_study
from mithridate.experiments.trial import Trial
from studies import witches_brew

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"audit_lightning": ("lightning",), "audit_hf_trainer": ("transformers", "accelerate")}
"""Optional packages of an example; the first is the name of the extra as well."""
SAYS = {"federated_leak": "label 3, in truth 3; PSNR"}
"""What an example prints; all others the accuracy of an audit."""


@pytest.fixture
def quick_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits of one case instead of as many as a script asks for."""
    audits = importlib.import_module("mithridate.experiments.audit")
    real = audits.panels_of
    monkeypatch.setattr(audits, "panels_of", lambda *args, **kw: real(*args, **{**kw, "trials": 1, "clean_victims": 1}))


def import_or_skip(*packages: str) -> None:
    """Imports what a test needs; what it warns of while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in packages:
            pytest.importorskip(package, reason=f"needs {package}: pip install 'mithridate[{packages[0]}]'")


def test_there_are_examples() -> None:
    assert len(SCRIPTS) >= 3
    assert NEEDS.keys() | SAYS.keys() <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short(script: Path) -> None:
    assert 15 <= len([line for line in script.read_text().splitlines() if line.strip()]) <= 45


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("quick_trials")
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_or_skip(*NEEDS.get(script.stem, ()))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert SAYS.get(script.stem, "accuracy") in printed.out
    assert "Warning" not in printed.err


def test_the_small_study_is_the_standard_small_setting() -> None:
    trials = witches_brew.medium()
    assert {trial.learner for trial in trials} == {mi.Recipe(model="convnet", epochs=40, batch_size=125)}
    assert {trial.data.per_class for trial in trials} == {500}
    cells = Counter((trial.attack, trial.threat, trial.defenses) for trial in trials)
    assert set(cells.values()) == {20}
    undefended = [cell for cell in cells if not cell[2]]
    assert len(undefended) == 2 * 2 + 1  # attack and noise at two doses, and one set of clean victims
    assert len(cells) - len(undefended) == 1 + 1  # the poisons of the lower dose under mixup
    assert {trial.victims for trial in trials if trial.attack == mi.NoAttack() and not trial.defenses} == {8}


def test_the_precision_study_repeats_cells_of_the_small_study_in_float32() -> None:
    repeated = [replace(t, attack=replace(t.attack, precision="auto")) for t in witches_brew.fp32()]
    assert [trial.attack.precision for trial in witches_brew.fp32()] == ["fp32"] * 8
    assert all(trial in witches_brew.medium() for trial in repeated)


def test_the_paper_study_has_the_published_numbers() -> None:
    trials = witches_brew.paper()
    brew = [trial for trial in trials if isinstance(trial.attack, mi.WitchesBrew)]
    assert len(brew) == 10
    assert {trial.victims for trial in trials} == {8}
    assert {(t.attack.steps, t.attack.restarts, t.threat.budget, t.threat.ball) for t in brew} == {
        (250, 8, 0.01, mi.Linf(eps=16 / 255))
    }


@pytest.mark.parametrize("study", [witches_brew.medium, witches_brew.fp32, witches_brew.paper])
def test_a_study_survives_json(study) -> None:
    trials = study()
    assert [from_json(json.loads(json.dumps(to_json(trial))), Trial) for trial in trials[::30]] == trials[::30]


def test_the_paper_study_runs_in_small_form_on_the_cpu(tmp_path: Path) -> None:
    trials = [
        replace(
            trial,
            data=mi.Digits(train=100),
            learner=replace(trial.learner, model="resnet18:width=2", epochs=1, batch_size=50),
            attack=replace(trial.attack, steps=2, restarts=1) if hasattr(trial.attack, "steps") else trial.attack,
            victims=1,
        )
        for trial in witches_brew.paper()
        if trial.seed == 0
    ]
    pairs = run_study(trials, tmp_path / "paper", progress=False)
    assert [trial["attack"]["type"] for trial, _ in pairs] == ["witches-brew", "random-noise", "no-attack"]
    assert all(result["poison"]["max_linf"] <= 16 / 255 + 1e-6 for _, result in pairs)
