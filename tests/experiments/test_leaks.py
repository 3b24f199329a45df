"""LeakTrial: which images leak, what the attacker is told, what is measured of its images, what is stored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mithridate.core.classifier import save_weights
from mithridate.core.schema import from_json, to_json
from mithridate.core.seeds import derive
from mithridate.core.sources import Digits
from mithridate.experiments.leaks import IMAGES, LeakTrial
from mithridate.experiments.store import Store
from mithridate.inversion.attacks.analytic_linear import AnalyticLinear
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.client import Client
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.larger_batch import LargerBatch
from mithridate.inversion.defenses.local_steps import LocalSteps
from mithridate.inversion.defenses.mixing import Mixing
from mithridate.inversion.defenses.sparsify import Sparsify
from mithridate.inversion.sharing import Gradient, Update
from tests.experiments.leak_spy import DATA, RECIPE, DistinctSpy, Spy, leak_trial

TRAIN, TEST = DATA.load()


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    Spy.log.clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def pixels_of(store: Store, trial: str) -> dict[str, np.ndarray]:
    return load_file(store.trial_folder(trial) / IMAGES)


def decibels(images: np.ndarray, truth: np.ndarray) -> list[float]:
    """PSNR of images in [0, 1], one after the other."""
    return [-10 * math.log10(((a - b) ** 2).mean()) for a, b in zip(images, truth, strict=True)]


# --- which images ----------------------------------------------------------------------------------------------------


def test_images_are_test_images_and_their_labels_known_by_row(store: Store) -> None:
    result = leak_trial(4).run(store)
    rows = torch.tensor(result.case["rows"])
    assert np.array_equal(pixels_of(store, result.trial)["true"], TEST.images[rows].numpy())
    assert result.case["labels"] == TEST.labels[rows].tolist()
    assert len(set(result.case["rows"])) == 4


@pytest.mark.parametrize("distinct", [False, True])
def test_a_batch_begins_with_the_smaller_one_of_the_same_seed(distinct: bool) -> None:
    rows = [leak_trial(batch, distinct=distinct, seed=3).rows(TEST).tolist() for batch in (1, 4, 8)]
    assert rows[2][:4] == rows[1]
    assert rows[1][:1] == rows[0]


def test_seeds_draw_other_images_and_attacks_the_same() -> None:
    first = leak_trial(4, seed=0).rows(TEST).tolist()
    assert first != leak_trial(4, seed=1).rows(TEST).tolist()
    assert first == leak_trial(4, attack=InvertingGradients(), defenses=(Sparsify(),)).rows(TEST).tolist()


@pytest.mark.parametrize("settings", [{"distinct": True}, {"attack": DistinctSpy()}])
def test_labels_differ_where_that_is_asked_for_or_needed(settings: dict) -> None:
    for seed in range(5):
        assert len(set(TEST.labels[leak_trial(10, seed=seed, **settings).rows(TEST)].tolist())) == 10


def test_a_larger_batch_holds_more_images_of_the_same_draw() -> None:
    larger = leak_trial(2, defenses=(LargerBatch(factor=3),)).rows(TEST).tolist()
    assert larger == leak_trial(6).rows(TEST).tolist()


def test_too_few_images_or_classes_are_named() -> None:
    few = Digits(train=1790).load()[1]
    with pytest.raises(ValueError, match="shares 8 images, but the test set has 7; use a smaller batch"):
        leak_trial(8).rows(few)
    with pytest.raises(ValueError, match=r"11 images with different labels needs 11 classes, but .* has 10"):
        leak_trial(11, distinct=True).rows(TEST)


# --- what the attacker is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_attacker_knows_the_defences_only_where_it_adapts(adaptive: bool, store: Store) -> None:
    trial = leak_trial(4, defenses=(Mixing(), LocalSteps(steps=2), Sparsify(keep=0.5)), adaptive=adaptive)
    trial.run(store)
    (leak, _), defended = Spy.log[0], trial.defended
    assert leak.filters == (defended.filters if adaptive else ())
    assert leak.sharing == (Update(steps=2, rate=0.1) if adaptive else Gradient())
    assert (leak.mixing is not None) == adaptive


def test_what_is_shared_does_not_depend_on_what_the_attacker_knows(store: Store) -> None:
    for adaptive in (False, True):
        leak_trial(2, defenses=(ClipAndNoise(noise=0.5),), adaptive=adaptive).run(store)
    (first, seed), (second, same) = Spy.log
    assert seed == same
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))
    assert first.sharing == Gradient()
    assert second.sharing == Gradient(clip=1.0)


def test_the_number_of_images_is_always_known(store: Store) -> None:
    result = leak_trial(2, defenses=(LargerBatch(factor=3),)).run(store)
    assert Spy.log[0][0].count == result.client["count"] == 6
    assert result.client["numbers"] == sum(part.numel() for part in Spy.log[0][0].tensors)


@pytest.mark.parametrize(
    ("batch", "defenses", "error", "message"),
    [
        (1, (Mixing(),), ValueError, "use a batch of 2 or more"),
        (2, (ClipAndNoise(), LocalSteps()), TypeError, "before clip-and-noise"),
        (2, (Mixing(), ClipAndNoise()), TypeError, "before mixing"),
    ],
)
def test_settings_that_do_not_fit_are_found_at_once(batch: int, defenses: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        leak_trial(batch, defenses=defenses)


# --- the model -------------------------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_stored(store: Store) -> None:
    assert leak_trial().run(store).models == []
    assert not (store.folder / "fits").exists()
    model = RECIPE.module(TRAIN, derive(0, "model"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in Spy.log[0][0].model.state_dict().items())


def test_a_trained_model_is_shared_by_all_trials(store: Store) -> None:
    recipe = replace(RECIPE, epochs=1)
    results = [leak_trial(seed=seed, recipe=recipe).run(store) for seed in (0, 1)]
    assert len(results[0].models) == 1
    assert results[0].models == results[1].models
    assert [path.name for path in (store.folder / "fits").iterdir() if path.is_dir()] == results[0].models
    (other,) = leak_trial(recipe=recipe, model_seed=1).run(store).models
    assert other != results[0].models[0]


def test_a_checkpoint_is_attacked_as_it_is(store: Store, tmp_path: Path) -> None:
    given = RECIPE.module(TRAIN, 99)
    save_weights(given, tmp_path / "weights.safetensors")
    leak_trial(recipe=replace(RECIPE, start_from=tmp_path / "weights.safetensors")).run(store)
    attacked = Spy.log[0][0].model.state_dict()
    assert all(torch.equal(value, attacked[name]) for name, value in given.state_dict().items())


# --- what is measured ------------------------------------------------------------------------------------------------


def test_an_exact_attack_is_measured_as_exact(store: Store) -> None:
    result = leak_trial(4, attack=AnalyticLinear(), distinct=True, recipe=replace(RECIPE, model="mlp")).run(store)
    assert min(result.outcome["psnr"]) > 60
    assert min(result.outcome["ssim"]) > 0.999
    assert result.outcome["rank"] == [1] * 4
    assert result.outcome["candidates"] == 1000
    assert result.outcome["label_accuracy"] == 1.0
    assert max(result.outcome["feature_distance"]) < 1e-2
    assert result.outcome["value"] < 1e-6
    assert result.case["found_labels"] == result.case["labels"]
    stored = pixels_of(store, result.trial)
    assert np.array_equal(stored["found"], stored["true"])


def test_numbers_are_those_of_the_stored_images_in_their_order(store: Store) -> None:
    result = leak_trial(4, seed=2).run(store)
    stored = pixels_of(store, result.trial)
    assert {(value.dtype, value.shape) for value in stored.values()} == {(np.dtype(np.uint8), (4, 1, 8, 8))}
    found, truth = (stored[name] / 255 for name in ("found", "true"))
    assert result.outcome["psnr"] == pytest.approx(decibels(found, truth), abs=0.1)
    assert sorted(result.case["found_labels"]) == sorted(result.case["labels"])
    assert result.outcome["label_accuracy"] == 1.0  # as many of each label, whatever their order


def test_the_control_is_the_mean_of_the_other_candidates(store: Store) -> None:
    everything = len(TRAIN) + len(TEST)
    result = leak_trial(2, candidates=everything).run(store)
    rows = result.case["rows"]
    images = np.concatenate([np.delete(TEST.images.numpy(), rows, axis=0), TRAIN.images.numpy()]) / 255
    truth = TEST.images.numpy()[rows] / 255
    mean = np.broadcast_to(images.mean(0), truth.shape)
    assert result.outcome["candidates"] == everything
    assert result.control["psnr"] == pytest.approx(decibels(mean, truth), abs=1e-4)
    nearer = ((np.concatenate([images, truth])[None] - mean[:, None]) ** 2).sum((2, 3, 4))
    own = ((truth - mean) ** 2).sum((1, 2, 3))
    assert result.control["rank"] == (1 + (nearer < own[:, None] * (1 - 1e-7)).sum(1)).tolist()


def test_there_are_no_more_candidates_than_images(store: Store) -> None:
    assert leak_trial(candidates=10**6).run(store).outcome["candidates"] == len(TRAIN) + len(TEST)
    assert leak_trial(candidates=7).run(store).outcome["candidates"] == 7
    with pytest.raises(ValueError, match=r"candidates is 1; .* at least one other"):
        leak_trial(candidates=1)


def test_candidates_hold_each_image_once_and_the_true_ones_first(store: Store) -> None:
    trial = leak_trial(3, candidates=400)
    data, rows = store.data(DATA), trial.rows(TEST)
    catalogue = trial.catalogue(data, rows)
    assert catalogue.dtype == torch.uint8
    assert torch.equal(catalogue[:3], TEST.images[rows])
    own = {image.numpy().tobytes() for image in catalogue[:3]}
    assert not own & {image.numpy().tobytes() for image in catalogue[3:]}
    everything = {image.numpy().tobytes() for image in torch.cat([TRAIN.images, TEST.images])}
    assert {image.numpy().tobytes() for image in catalogue} <= everything


def no_linear(classes: int) -> torch.nn.Module:
    """A model without a Linear."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, classes, 8), torch.nn.Flatten())


def test_a_model_without_a_last_linear_has_no_distance_of_features(store: Store) -> None:
    result = leak_trial(2, recipe=replace(RECIPE, model=f"{__name__}:no_linear")).run(store)
    assert result.outcome["feature_distance"] == [None, None]


# --- what is stored --------------------------------------------------------------------------------------------------


def test_the_result_has_the_agreed_form(store: Store) -> None:
    trial = leak_trial(2, attack=InvertingGradients(steps=2), defenses=(ClipAndNoise(noise=1.0),))
    content = json.loads(json.dumps(trial.run(store).to_json()))
    assert (content["schema"], content["kind"]) == (1, "leak")
    assert content["trial"] == store.identity(trial.work(store.data(DATA).fingerprint))
    assert content["outcome"].keys() == {
        *("psnr", "ssim", "rank", "candidates", "feature_distance", "label_accuracy", "value")
    }
    assert content["control"].keys() == {"psnr", "ssim", "rank"}
    assert content["case"].keys() == {"rows", "labels", "found_labels"}
    assert {len(value) for value in content["case"].values()} == {2}
    assert content["client"]["sharing"] == {"type": "gradient", "batch_statistics": False, "clip": 1.0}
    assert content["guarantees"][0]["values"]["epsilon"] > 0
    assert content["seconds"].keys() == {"model", "share", "attack", "evaluate"}
    assert content["data"]["test"] == len(TEST)


def test_the_id_follows_the_settings_and_the_images_but_not_their_place(store: Store) -> None:
    trial = leak_trial(2)
    settings = {"seed": 1, "model_seed": 1, "candidates": 9, "adaptive": True, "distinct": True}
    others = [replace(trial, **{name: value}) for name, value in settings.items()]
    others += [replace(trial, attack=Spy(warns="so")), replace(trial, recipe=replace(RECIPE, batch_size=10))]
    others += [replace(trial, defenses=(Sparsify(),)), leak_trial(3)]
    fingerprint = store.data(DATA).fingerprint
    names = {store.identity(one.work(fingerprint)) for one in (trial, *others)}
    assert len(names) == 1 + len(others)
    moved = replace(trial, data=Digits(train=200))  # as if the same images lay elsewhere
    assert store.identity(moved.work(fingerprint)) == store.identity(trial.work(fingerprint))
    assert store.identity(trial.work("other images")) not in names


def test_warnings_are_kept_once(store: Store) -> None:
    assert leak_trial(attack=Spy(warns="hardly anything was shared")).run(store).warnings == [
        "hardly anything was shared"
    ]


def test_equal_trials_give_equal_results(tmp_path: Path) -> None:
    trial = leak_trial(2, attack=InvertingGradients(steps=3), defenses=(ClipAndNoise(noise=0.1),), seed=4)
    first, again = (trial.run(Store(tmp_path / name)).to_json() for name in ("a", "b"))
    for timed in ("seconds", "peak_memory_mb"):
        del first[timed], again[timed]
    assert first == again
    assert first["outcome"] != replace(trial, seed=5).run(Store(tmp_path / "a")).outcome


def test_a_trial_survives_json() -> None:
    trial = leak_trial(
        4,
        attack=InvertingGradients(steps=7),
        client=Client(batch=4, sharing=Update(steps=2, rate=0.1, batches=((0, 1), (2, 3))), tells_labels=False),
        defenses=(Sparsify(keep=0.2),),
        adaptive=True,
    )
    content = json.loads(json.dumps(to_json(trial)))
    assert "client" in content
    assert "threat" not in content
    assert from_json(content, LeakTrial) == trial


def test_a_label_tells_trials_apart() -> None:
    trial = leak_trial(4, attack=InvertingGradients(), defenses=(ClipAndNoise(), Sparsify()), adaptive=True, seed=3)
    assert trial.label() == "inverting-gradients adaptive vs clip-and-noise + sparsify, batch 4, seed 3"
