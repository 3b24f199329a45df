"""Trials that meet a full disk, and a script that may not write large files: `python -m ... FOLDER BYTES`."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass

from mithridate.core.training import Learner
from mithridate.experiments.study import run_study
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.task import Task
from tests.experiments.fakes import noise_trial, recipe, trial


@dataclass(frozen=True, kw_only=True)
class Full(Attack):
    """Meets a full disk."""

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        raise OSError(errno.ENOSPC, "No space left on device")


def meets_it() -> list[Trial]:
    """A control that fits, trials that do not."""
    return [trial(attack=NoAttack()), *(trial(attack=Full(), seed=seed) for seed in range(4))]


def too_large() -> list[Trial]:
    """Trials whose models are small, and one whose models are not."""
    large = trial(attack=NoAttack(), learner=recipe(model="convnet:width=16", epochs=1), seed=9)
    return [noise_trial(0), large, noise_trial(1)]


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    run_study(too_large(), sys.argv[1], progress=False)
