"""Plans: counts by hand, and estimates that are there, positive and of the right proportion."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from mithridate.experiments.plan import Plan, plan, shared_fits
from mithridate.experiments.study import run_study
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from tests.experiments.fakes import Brighten, Plain, recipe, trial


def test_counts_of_a_grid() -> None:
    cells = [(), (Mixup(),), (SpectralSignatures(),), (PartitionVote(parts=5),)]
    trials = [trial(attack=WitchesBrew(), seed=s, defenses=d, victims=2) for s in range(3) for d in cells]
    trials += [trial(attack=NoAttack(), seed=s, defenses=d, victims=4) for s in range(3) for d in cells]
    found = plan([*trials, trials[0]], probe=False)
    assert (found.trials, found.finished, found.poisons_made, found.minutes) == (24, 0, 0, None)
    assert found.poisons == 6  # 3 crafted, 3 empty
    assert found.poisoned_victims == 24
    assert found.shared_fits == 2 + 4 + 4 + 2 * 4 + 5 * 4  # surrogates; clean: plain, mixup, filter, vote
    assert "24 trials (0 finished)" in str(found)
    assert "no estimate" in str(found)


def test_features_for_transfer_count_once() -> None:
    head = recipe(model="convnet:width=2")
    trials = [trial(attack=WitchesBrew(surrogates=3), seed=s, pretrain=head, learner=head) for s in range(2)]
    assert sorted((group.kind, group.fits) for group in shared_fits(trials)) == [("features", 1), ("surrogates", 3)]


def test_what_is_done_is_not_counted_again(tmp_path: Path) -> None:
    trials = [trial(seed=seed) for seed in range(3)]
    run_study(trials[:2], tmp_path, progress=False)
    before = sorted(tmp_path.rglob("*"))
    found = plan(trials, tmp_path)
    assert (found.trials, found.finished, found.poisons, found.poisons_made) == (3, 2, 3, 2)
    assert found.minutes is not None
    assert found.minutes > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "nothing to do" in str(plan(trials[:2], tmp_path))
    plan(trials, tmp_path / "new", probe=False)
    assert not (tmp_path / "new").exists()


def test_more_work_takes_longer_and_more_workers_less(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))  # every probe takes a second, however busy the machine
    monkeypatch.setattr(sys.modules["mithridate.experiments.plan"], "time", clock)
    net = recipe(model="convnet:width=2", epochs=5)
    attack = WitchesBrew(steps=200, surrogates=1)
    one = plan([trial(learner=net, attack=attack)]).minutes
    more = plan([trial(learner=net, attack=attack, seed=seed) for seed in range(20)], workers=1).minutes
    shared = plan([trial(learner=net, attack=attack, seed=seed) for seed in range(20)], workers=10).minutes
    assert one is not None
    assert more is not None
    assert shared is not None
    assert more > 3 * one
    assert shared < more / 3


def test_transfer_and_other_learners(tmp_path: Path) -> None:
    net = recipe(model="convnet:width=2", epochs=1)
    assert plan([trial(learner=net, pretrain=net, attack=WitchesBrew(steps=5))]).minutes
    assert plan([trial(learner=Plain())]).minutes is None


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds other things"):
        plan([trial(attack=Brighten())], tmp_path)


@pytest.mark.parametrize(("minutes", "words"), [(0.2, "a minute"), (50.0, "50 minutes"), (200.0, "3.3 hours")])
def test_times_in_words(minutes: float, words: str) -> None:
    made = Plan(trials=1, finished=0, poisons=1, poisons_made=0, shared_fits=1, poisoned_victims=1, minutes=minutes)
    assert str(made).endswith(f"roughly {words} to go")
