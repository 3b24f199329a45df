"""Inversions as one call: the grid, what a rehearsal finds, a tiny one from end to end, one leak of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from mithridate.core.classifier import save_weights
from mithridate.core.schema import from_json
from mithridate.experiments.invert import Inverted, invert, invert_leak, plan_invert, rehearse_leaks, run_invert
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.study import StudyErrors
from mithridate.inversion.attack import Inversion
from mithridate.inversion.attacks.analytic_linear import AnalyticLinear
from mithridate.inversion.attacks.gradinversion import GradInversion
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.client import Client
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.local_steps import LocalSteps
from mithridate.inversion.defenses.mixing import Mixing
from mithridate.inversion.defenses.sparsify import Sparsify
from tests.experiments.leak_spy import DATA, RECIPE, DistinctSpy, Spy, leak_trial
from tests.inversion.cases import images, labels, leak_of, perceptron

TINY = InvertingGradients(steps=2)
TRAIN, TEST = DATA.load()


# --- the grid --------------------------------------------------------------------------------------------------------


def cells(trials: list[LeakTrial]) -> Counter:
    return Counter((trial.recipe.epochs, trial.attack, trial.client.batch, trial.defenses) for trial in trials)


def test_every_model_attack_and_batch_is_met_with_no_defence_and_with_each() -> None:
    stack = (LocalSteps(), Sparsify())
    recipes = [replace(RECIPE, epochs=0), replace(RECIPE, epochs=1)]
    attacks = [InvertingGradients(), GradInversion()]
    trials = plan_invert(DATA, recipes, batches=(1, 4), attacks=attacks, defenses=[Sparsify(), stack], cases=3)
    assert cells(trials) == {
        (epochs, attack, batch, defenses): 3
        for epochs in (0, 1)
        for attack in attacks
        for batch in (1, 4)
        for defenses in ((), (Sparsify(),), stack)
    }


def test_all_cells_have_the_same_seeds_and_model() -> None:
    trials = plan_invert(DATA, [RECIPE], cases=3, seed=5)
    assert set(Counter(trial.seed for trial in trials).values()) == {8}
    assert {trial.seed for trial in trials} == {5, 6, 7}
    assert {trial.model_seed for trial in trials} == {0}


def test_an_adaptive_attacker_comes_beside_one_who_knows_nothing() -> None:
    trials = plan_invert(DATA, [RECIPE], batches=(4,), defenses=[Sparsify()], adaptive=True, cases=1)
    assert [(trial.defenses, trial.adaptive) for trial in trials] == [
        ((), False),
        ((Sparsify(),), False),
        ((Sparsify(),), True),
    ]


def test_attacks_that_need_different_labels_have_all_attacks_see_such_batches() -> None:
    assert not any(trial.distinct for trial in plan_invert(DATA, [RECIPE], attacks=[Spy()], cases=1))
    trials = plan_invert(DATA, [RECIPE], attacks=[Spy(), DistinctSpy()], batches=(4,), defenses=(), cases=1)
    first, second = (trial.rows(TEST).tolist() for trial in trials)
    assert first == second
    assert len(set(TEST.labels[first].tolist())) == 4


def test_what_is_true_of_the_client_is_true_in_every_cell() -> None:
    trials = plan_invert(DATA, [RECIPE], client=Client(batch=9, tells_labels=False), batches=(1, 4), cases=1)
    assert {trial.client for trial in trials} == {Client(batch=batch, tells_labels=False) for batch in (1, 4)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cases": 0}, "cases is 0; at least one"),
        ({"attacks": ()}, "no attack is named"),
        ({"batches": ()}, "no batch size is named"),
        ({"batches": (0,)}, "batch is 0"),
        ({"batches": (1, 4), "defenses": [Mixing()]}, "use a batch of 2 or more"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_invert(DATA, [RECIPE], **settings)


# --- the rehearsal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "batch", "model", "message"),
    [
        (TINY, 2000, "mlp:width=4", "the test set has 1697"),
        (DistinctSpy(), 11, "mlp:width=4", "needs 11 classes"),
        (GradInversion(), 1, "mlp:width=4", "BatchNorm"),
        (TINY, 1, "convnt", "convnet"),
    ],
)
def test_what_no_trial_could_run_with_is_found_before_training(
    attack: Inversion, batch: int, model: str, message: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, model=model, epochs=10**6)
    with pytest.raises(ValueError, match=message):
        invert(recipe, DATA, attacks=[attack], batches=[batch], defenses=(), cases=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_found_before_anything_runs(tmp_path: Path) -> None:
    save_weights(replace(RECIPE, model="mlp:width=5").module(TRAIN, 0), tmp_path / "weights.safetensors")
    recipe = replace(RECIPE, start_from=tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="does not fit the model"):
        invert(recipe, DATA, attacks=[TINY], batches=[1], defenses=(), cases=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_looks_at_each_cell_once() -> None:
    Spy.log.clear()
    rehearse_leaks(plan_invert(DATA, [RECIPE], attacks=[Spy()], batches=(1, 2), defenses=[Sparsify()], cases=7))
    assert Counter(leak.count for leak, _ in Spy.log) == {1: 2, 2: 2}


# --- from end to end -------------------------------------------------------------------------------------------------


def tiny(out: Path, **settings) -> Inverted:
    return invert(
        RECIPE, DATA, attacks=[TINY], batches=(1, 2), defenses=[ClipAndNoise(noise=1.0)], cases=2, out=out, **settings
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Inverted:
    return tiny(tmp_path_factory.mktemp("invert") / "out", command="mithridate invert --tiny")


def test_the_table_has_a_row_per_cell_and_the_report_the_command(finished: Inverted) -> None:
    assert [(row.batch, row.defense, row.trials, row.images) for row in finished.table.rows] == [
        (1, "none", 2, 2),
        (1, "clip-and-noise", 2, 2),
        (2, "none", 2, 4),
        (2, "clip-and-noise", 2, 4),
    ]
    assert "mithridate invert --tiny" in finished.report.read_text()
    assert str(finished).endswith(f"report: {finished.report}")


def test_the_same_call_resumes(finished: Inverted, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in finished.folder.glob("trials/*/*")}
    monkeypatch.setattr(LeakTrial, "run", lambda *_, **__: pytest.fail("a finished trial ran again"))
    assert str(tiny(finished.folder).table) == str(finished.table)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.glob("trials/*/*")} == stamps


def test_failed_trials_do_not_cost_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mithridate.experiments.invert.rehearse_leaks", lambda *_: None)
    trials = [leak_trial(attack=Spy(fails="out of memory" if seed else ""), seed=seed) for seed in (0, 1)]
    with pytest.raises(StudyErrors, match="1 of 2 trials failed"):
        run_invert(trials, tmp_path / "out")
    assert "out of memory" in (tmp_path / "out" / "report.html").read_text()


def test_data_may_be_images_in_memory(tmp_path: Path) -> None:
    done = invert(RECIPE, TRAIN, TEST, attacks=[TINY], batches=[1], defenses=(), cases=1, out=tmp_path / "out")
    assert done.table.rows[0].images == 1
    with pytest.raises(ValueError, match="test images are missing"):
        invert(RECIPE, TRAIN)


# --- one leak of the user's own --------------------------------------------------------------------------------------


def test_a_leak_becomes_image_files_a_sheet_tensors_and_a_manifest(tmp_path: Path) -> None:
    leak = leak_of(perceptron(), 3)
    found = invert_leak(leak, AnalyticLinear(), out=tmp_path / "out", seed=7)
    truth = (images(3) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    files = sorted((tmp_path / "out").glob("image-*.png"))
    assert [file.name for file in files] == [f"image-00{number}-class-{number}.png" for number in range(3)]
    for file, image in zip(files, truth, strict=True):  # this attack keeps the order of the labels
        assert np.abs(np.asarray(Image.open(file)).astype(int) - image).max() <= 1
    stored = load_file(tmp_path / "out" / "reconstruction.safetensors")
    assert np.array_equal(stored["images"], found.images.numpy())
    assert stored["labels"].tolist() == labels(3).tolist()
    facts = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert from_json(facts["attack"], Inversion) == AnalyticLinear()
    assert (facts["seed"], facts["distance"], facts["labels"]) == (7, found.value, [0, 1, 2])
    assert facts["labels_known"] is True
    sheet = np.asarray(Image.open(tmp_path / "out" / "all.png"))
    assert sheet.shape[0] < sheet.shape[1]  # one row of three


def test_a_second_reconstruction_replaces_the_first(tmp_path: Path) -> None:
    invert_leak(leak_of(perceptron(), 3), AnalyticLinear(), out=tmp_path)
    invert_leak(leak_of(perceptron(), 1), AnalyticLinear(), out=tmp_path)
    assert [file.name for file in tmp_path.glob("image-*.png")] == ["image-000-class-0.png"]


def test_restarts_in_workers_find_the_same(tmp_path: Path) -> None:
    leak, attack = leak_of(perceptron(), 1), replace(TINY, restarts=2)
    alone, shared = (invert_leak(leak, attack, out=tmp_path / str(n), workers=n) for n in (1, 2))
    assert torch.equal(alone.images, shared.images)
    assert alone.value == shared.value


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\documentclass{article}")
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        invert_leak(leak_of(perceptron(), 1), AnalyticLinear(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
