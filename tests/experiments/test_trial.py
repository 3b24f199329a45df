"""Trials: who trains on what with which seeds, what is measured, and the same result in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mithridate.core.balls import Patch
from mithridate.core.data import ImageData
from mithridate.core.schema import from_json, to_json
from mithridate.core.seeds import derive
from mithridate.core.sources import Arrays, Digits
from mithridate.core.states import TrainingState
from mithridate.core.training import Fitted, Recipe
from mithridate.core.transforms import Mixup as MixupTransform
from mithridate.experiments import facts
from mithridate.experiments.store import Store, Stored
from mithridate.experiments.trial import Clock, Trial, TrialResult, hold_out, pretrained, run, victim_seeds, wrap
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.defense import Filtered
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import ThreatModel, ThreatModelViolation
from mithridate.poisoning.voting import Voting
from tests.experiments.fakes import Brighten, digits, recipe, trial


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    Brighten.log.clear()


def fits(store: Store) -> int:
    return len(list((store.folder / "fits").glob("*/fit.json")))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        trial(attack=NoAttack()),
        trial(attack=RandomNoise(), defenses=[Mixup(k=3), SpectralSignatures(contamination=0.1)], victims=2),
        trial(attack=BadNets(), threat=BadNets.threat, surrogate=recipe(epochs=1), pretrain=recipe(), adaptive=True),
    ],
)
def test_a_trial_comes_back_from_json(made: Trial) -> None:
    assert from_json(json.loads(json.dumps(to_json(made))), Trial) == made


def test_what_is_in_the_ids(store: Store) -> None:
    """Everything is in the id of a trial; the poison's leaves out victims, and defences that the attacker ignores."""
    base, data = trial(), "abc"
    shared = [{"victims": 2}, {"defenses": (Mixup(),)}, {"learner": recipe(epochs=3), "surrogate": recipe()}]
    own = [
        {"seed": 1},
        {"surrogate_seed": 1},
        {"attack": Brighten(by=3)},
        {"threat": ThreatModel()},
        {"learner": recipe(epochs=3)},
        {"pretrain": recipe()},
        {"trusted": 5},
        {"defenses": (Mixup(),), "adaptive": True},
    ]
    poison = store.identity(base.poison_work(data))
    assert {store.identity(trial(**change).poison_work(data)) for change in shared} == {poison}
    assert len({store.identity(trial(**change).poison_work(data)) for change in own} - {poison}) == len(own)
    trials = {store.identity(trial(**change).work(data)) for change in [*shared, *own]}
    assert len(trials - {store.identity(base.work(data))}) == len(shared) + len(own)
    assert store.identity(base.work("other data")) != store.identity(base.work(data))


def test_the_path_of_the_data_is_not_in_the_ids(store: Store) -> None:
    train, test = Digits(train=100).load()
    assert store.identity(trial(data=Arrays(train, test)).work("abc")) == store.identity(trial().work("abc"))


def test_label_and_scenario(tmp_path: Path) -> None:
    assert trial(attack=BadNets(), defenses=(Mixup(), PartitionVote()), seed=3).label() == (
        "badnets vs mixup + partition-vote, seed 3"
    )
    assert trial().scenario == "from scratch"
    assert trial(pretrain=recipe()).scenario == "transfer"
    assert trial(learner=recipe(start_from=tmp_path)).scenario == "fine-tuning"
    assert trial(learner=recipe(start_from=tmp_path, trainable="head")).scenario == "transfer"


@pytest.mark.parametrize(("settings", "words"), [({"victims": 0}, "victims is 0"), ({"trusted": -1}, "trusted is -1")])
def test_settings_out_of_range(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trial(**settings)


# --- the steps -------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_no_longer_trained_on() -> None:
    train = digits()
    rest, trusted = hold_out(train, 30, seed=1)
    assert trusted is not None
    assert sorted([*rest.ids.tolist(), *trusted.ids.tolist()]) == list(range(100))
    assert len(trusted) == 30
    assert hold_out(train, 30, seed=1)[1].ids.tolist() == trusted.ids.tolist()
    assert hold_out(train, 30, seed=2)[1].ids.tolist() != trusted.ids.tolist()
    assert hold_out(train, 0, seed=1) == (train, None)
    with pytest.raises(ValueError, match="trusted is 100, but the training set has 100 rows"):
        hold_out(train, 100, seed=1)


def test_recipe_changes_come_first_then_the_store_then_wrappers(store: Store) -> None:
    mixed = wrap(recipe(), [Mixup()], store)
    assert isinstance(mixed, Stored)
    assert isinstance(mixed.learner, Recipe)
    assert any(isinstance(transform, MixupTransform) for transform in mixed.learner.transforms)
    both = wrap(recipe(), [Mixup(), SpectralSignatures(), PartitionVote(parts=4)], store)
    assert isinstance(both, Voting)
    assert isinstance(both.learner, Filtered)
    assert isinstance(both.learner.learner, Stored)
    assert both.recipe == mixed.recipe
    bare = wrap(recipe(), [SpectralSignatures()], None)
    assert isinstance(bare, Filtered)
    assert isinstance(bare.learner, Recipe)
    assert isinstance(wrap(recipe(), [], store), Stored)
    assert wrap(recipe(), [], None) == recipe()
    for place in (store, None):
        with pytest.raises(TypeError, match="put mixup first"):
            wrap(recipe(), [PartitionVote(), Mixup()], place)


def test_seeds_of_victims() -> None:
    """Poisoned victims follow the trial's seed; clean ones are shared by a study."""
    task = trial().threat.draw(digits(), digits(), seed=0)
    empty, poison = Poison.empty(task), Poison(torch.tensor([1]), digits().images[:1])
    assert victim_seeds(trial(seed=1, victims=2), poison) == [derive(1, "victim", 0), derive(1, "victim", 1)]
    assert victim_seeds(trial(seed=1), empty) == victim_seeds(trial(seed=2), empty) == [derive(0, "victim", 0)]
    assert victim_seeds(trial(seed=1, surrogate_seed=5), empty) == [derive(5, "victim", 0)]


def test_surrogates_are_shared_by_all_trials_of_a_study(store: Store) -> None:
    for seed in (1, 2):
        run(trial(seed=seed, attack=Brighten(models=2)), store)
    run(trial(seed=3, attack=Brighten(models=1)), store)
    assert fits(store) == 2
    ids = [[store.fit_of[model] for model in entry["fitted"].models] for entry in Brighten.log]
    assert ids[0] == ids[1]
    assert ids[2] == ids[0][:1]


def test_clean_victims_are_shared_and_poisoned_ones_kept_on_request(store: Store) -> None:
    results = [run(trial(attack=NoAttack(), seed=seed, victims=3), store) for seed in (1, 2)]
    assert fits(store) == 3
    assert results[0].models == results[1].models
    assert len(results[0].models) == 3
    assert results[0].outcome["accuracy"] != results[1].outcome["accuracy"]  # each leaves its own target out
    assert run(trial(attack=RandomNoise()), store).models == []
    assert fits(store) == 3
    kept = run(trial(attack=RandomNoise(), victims=2), store, keep_models=True)
    assert fits(store) == 5
    assert len(kept.models) == 2


def test_a_poison_is_shared_by_the_cells_of_a_grid(store: Store) -> None:
    first = run(trial(), store)
    second = run(trial(defenses=(Mixup(),), victims=2), store)
    assert len(Brighten.log) == 1
    assert first.poison == second.poison
    run(trial(defenses=(Mixup(),), adaptive=True), store)
    assert len(Brighten.log) == 2


def test_only_an_adaptive_attacker_crafts_through_the_defences(store: Store) -> None:
    run(trial(defenses=(Mixup(),)), store)
    run(trial(defenses=(Mixup(),), adaptive=True), store)
    run(trial(defenses=(Mixup(),), adaptive=True, surrogate=recipe(epochs=1)), store)
    seen = [entry["recipe"] for entry in Brighten.log]
    assert [len(how.transforms) for how in seen] == [0, 1, 1]
    assert [how.epochs for how in seen] == [2, 2, 1]


# --- transfer --------------------------------------------------------------------------------------------------------


def test_transfer_trains_features_on_one_half_and_heads_on_the_other(store: Store) -> None:
    net = recipe(model="convnet:width=2", epochs=1)
    made = trial(pretrain=net, learner=net, trusted=10)
    result = run(made, store, keep_models=True)
    setting = pretrained(made, hold_out(store.data(made.data).train, 10, 0)[0], store)
    assert result.data["train"] == len(setting.train) == 45
    assert result.data["features"] == setting.features == {"fit": setting.features["fit"], "rows": 45}
    task = Brighten.log[0]["task"]
    assert task.train.ids.tolist() == setting.train.ids.tolist()
    assert set(task.candidates.tolist()) <= set(setting.train.ids.tolist())
    body = load_file(store.fit_folder(setting.features["fit"]) / "weights.safetensors")
    victim = load_file(store.fit_folder(result.models[0]) / "weights.safetensors")
    changed = {name for name in body if not torch.equal(body[name], victim[name])}
    assert sorted(body[name].shape for name in changed) == [(10,), (10, 8)]  # bias and weight of the last layer
    assert Brighten.log[0]["recipe"].trainable == "head"
    halves = {seed: pretrained(trial(pretrain=net, surrogate_seed=seed), digits(), store).train.ids for seed in (0, 1)}
    assert halves[0].tolist() != halves[1].tolist()


def test_transfer_needs_a_recipe_that_starts_from_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pretrain gives features to a Recipe, but the learner is voting"):
        run(trial(pretrain=recipe(), learner=Voting(recipe(), 3)), store)
    with pytest.raises(ValueError, match="choose one"):
        run(trial(pretrain=recipe(), learner=recipe(start_from=tmp_path / "weights.safetensors")), store)


# --- the harness -----------------------------------------------------------------------------------------------------


def test_an_attack_that_oversteps_is_an_error_and_is_not_stored(store: Store) -> None:
    with pytest.raises(ThreatModelViolation, match="pixels"):
        run(trial(attack=Brighten(by=9)), store)
    assert list((store.folder / "poisons").iterdir()) == []


def test_poison_that_was_changed_on_disk_is_judged_again(store: Store) -> None:
    result = run(trial(), store)
    folder = store.poison_folder(result.poison["id"])
    poison = Poison.load(folder)
    Poison(poison.rows, 255 - poison.images, notes=poison.notes).save(folder)
    with pytest.raises(ThreatModelViolation):
        run(trial(victims=2), store)


def test_the_result_holds_what_was_measured(store: Store) -> None:
    threat = ThreatModel(budget=0.05, targets=3, ball=trial().threat.ball)
    result = run(trial(threat=threat, victims=2), store)
    outcome = result.outcome
    assert np.shape(outcome["success"]) == np.shape(outcome["margin"]) == (2, 3)
    assert np.shape(outcome["accuracy"]) == (2,)
    assert outcome["radius"] is None
    for success, margin in zip(np.ravel(outcome["success"]), np.ravel(outcome["margin"]), strict=True):
        assert success == (margin > 0)
    assert len(result.case["target_rows"]) == len(result.case["intended"]) == 3
    assert result.defense == {"removed": None, "removed_poisons": None}
    assert result.threads == torch.get_num_threads()
    assert result.warnings == []
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(ValueError, match="schema 99; this version reads 1"):
        TrialResult.from_json({**result.to_json(), "schema": 99})


def test_backdoor_outcomes_are_per_triggered_image(store: Store) -> None:
    threat = ThreatModel(budget=0.1, ball=Patch(area=0.1), goal=Backdoor(tests=20), relabel=True, poison_class="any")
    result = run(trial(attack=BadNets(), threat=threat), store)
    assert np.shape(result.outcome["success"]) == (1, 20)
    assert result.poison["relabelled"] == result.poison["count"] == 10
    assert load_file(store.poison_folder(result.poison["id"]) / "poison.safetensors")["target"].shape[0] == 16


def test_poison_facts_against_plain_numpy() -> None:
    train = digits()
    rows = torch.tensor([2, 5, 9])
    images = train.pixels(rows).clone()
    images[0, 0, 0, 0] = 255
    images[1] = 255 - images[1]
    labels = train.labels_of(rows).clone()
    labels[2] = (labels[2] + 1) % 10
    change = (images.numpy().astype(float) - train.images[rows].numpy()) / 255
    found = facts.poison_facts(Poison(rows, images, labels, notes={"a": 1.0}), train)
    assert found["max_linf"] == pytest.approx(np.abs(change).max())
    assert found["mean_l2"] == pytest.approx(np.sqrt((change**2).sum((1, 2, 3))).mean())
    assert (found["count"], found["share"], found["relabelled"], found["notes"]) == (3, 0.03, 1, {"a": 1.0})
    task = trial().threat.draw(train, train, seed=0)
    nothing = facts.poison_facts(Poison.empty(task), train)
    assert (nothing["count"], nothing["max_linf"], nothing["mean_l2"]) == (0, 0.0, 0.0)


def test_removed_rows_and_poisons() -> None:
    train = digits().select(range(20))
    poison = Poison(torch.tensor([3, 4]), train.images[:2])
    kept = [torch.arange(1, 20), None, torch.tensor([4])]
    fitted = Fitted((), None, {}, kept)
    assert facts.removed(fitted, train, poison) == {"removed": [1, 0, 19], "removed_poisons": [0, 0, 1]}
    assert facts.removed(Fitted((), None, {}, [None]), train, poison)["removed"] is None


def test_filters_and_votes_in_a_trial(store: Store) -> None:
    filtered = run(trial(defenses=(SpectralSignatures(contamination=0.1),), victims=2), store)
    assert len(filtered.defense["removed"]) == len(filtered.defense["removed_poisons"]) == 2
    assert min(filtered.defense["removed"]) > 0
    voted = run(trial(defenses=(PartitionVote(parts=3),)), store)
    assert np.shape(voted.outcome["radius"]) == (1, 1)
    assert voted.guarantees[0]["kind"] == "partition-vote"


def test_warnings_are_kept_once_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = TrainingState.run_epoch

    def noisy(self: TrainingState) -> None:
        warnings.warn("mind the gap", stacklevel=1)
        epoch(self)

    monkeypatch.setattr(TrainingState, "run_epoch", noisy)
    assert run(trial(), store).warnings == ["mind the gap"]


def test_a_lambda_marks_the_result_as_not_resumable(store: Store) -> None:
    model = lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))  # noqa: E731
    assert "not resumable" in run(trial(learner=recipe(model=model)), store).warnings[0]


def test_the_clock_counts_inner_phases_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    with clock("craft"):
        now[0] += 1
        for _ in range(2):
            with clock("surrogates"):
                now[0] += 10
        now[0] += 2
    with clock("victims"):
        now[0] += 100
    assert clock.seconds() == {"pretrain": 0, "surrogates": 20, "craft": 3, "victims": 100, "evaluate": 0}


def test_missing_data_are_an_error(store: Store) -> None:
    data = ImageData.from_arrays(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), [0, 1] * 10)
    with pytest.raises(ValueError, match="budget"):
        run(trial(data=Arrays(data, data), threat=ThreatModel(budget=0.9)), store)


# --- bit-identity ----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[2]))
from mithridate.core.schema import from_json
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run
made = from_json(json.loads(sys.stdin.read()), Trial)
print(json.dumps(run(made, Store(sys.argv[1]), keep_models=True).to_json()))
"""
SAME = ("trial", "outcome", "case", "data", "poison", "defense", "guarantees", "models", "threads")


def test_another_process_gets_the_same_result_to_the_bit(tmp_path: Path) -> None:
    made = trial(
        attack=RandomNoise(),
        learner=Recipe(model="convnet:width=4", epochs=2, batch_size=32),
        defenses=(Mixup(), SpectralSignatures(contamination=0.1)),
        victims=2,
    )
    torch.manual_seed(1)
    here = run(made, Store(tmp_path / "here"), keep_models=True).to_json()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "there"), "2"]
    done = subprocess.run(command, input=json.dumps(to_json(made)), capture_output=True, text=True, check=True)
    there = json.loads(done.stdout)
    assert {name: there[name] for name in SAME} == {name: here[name] for name in SAME}
    for stage, name in (("fits", "weights.safetensors"), ("poisons", "poison.safetensors")):
        found = [
            {path.parent.name: path.read_bytes() for path in (tmp_path / where / stage).glob(f"*/{name}")}
            for where in ("here", "there")
        ]
        assert found[0] == found[1] != {}


def test_a_resumed_trial_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Fits and poison from disk, in a store that remembers nothing, give the same numbers as fresh ones."""
    made = trial(learner=Recipe(model="convnet:width=4", epochs=2, batch_size=32))
    first, again = (run(made, Store(tmp_path), keep_models=True).to_json() for _ in range(2))
    assert {name: first[name] for name in SAME} == {name: again[name] for name in SAME}
