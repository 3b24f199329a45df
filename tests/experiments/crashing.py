"""A small study that is killed: as a script it works one off, `python -m tests.experiments.crashing FOLDER WHERE`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mithridate
from mithridate.core.balls import Linf
from mithridate.core.engines import engine
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.experiments.job import Job
from mithridate.experiments.study import Pair, load_results, run_study
from mithridate.experiments.table import table
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.threat import ThreatModel

ROOT = Path(__file__).resolve().parents[2]
RAW = ("trial", "outcome", "case", "data", "poison", "defense", "guarantees", "threads", "schema")
"""What of a result.json may not depend on where, when and how often it was made."""
LONG = 300.0
"""Seconds after which a test that waits for another process gives up."""


def small() -> list[Trial]:
    """Six trials that share clean models, surrogates and poisons."""
    victim = Recipe(model="convnet:width=4", epochs=1, batch_size=50, transforms=())
    shared: dict[str, Any] = {
        "data": Digits(train=100),
        "threat": ThreatModel(budget=0.05, ball=Linf(eps=8 / 255)),
        "learner": victim,
    }
    brew = WitchesBrew(steps=20, restarts=1, surrogates=1)
    return [
        Trial(**shared, attack=NoAttack(), victims=2),
        *(Trial(**shared, attack=brew, seed=seed, defenses=stack) for seed in (0, 1) for stack in ((), (Mixup(),))),
        Trial(**shared, attack=RandomNoise(), seed=0),
    ]


def raw(pairs: list[Pair]) -> bytes:
    """The raw outcomes, and the table without its times, as JSON."""
    found = {result["trial"]: {name: result[name] for name in RAW} for _, result in pairs}
    ordered = [pair for _, pair in sorted((pair[1]["trial"], pair) for pair in pairs)]
    return json.dumps([found, _timeless(table(ordered).to_json())], sort_keys=True).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key != "seconds"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """What tells whether a result was written again."""
    found = {}
    for path in folder.glob("trials/*/result.json"):
        stat = path.stat()
        found[path] = stat.st_ino, stat.st_mtime_ns
    return found


class Run:
    """This module as a script, in a session of its own; ready when it is about to work."""

    def __init__(self, folder: Path, where: str, log: Path | None = None) -> None:
        self.folder = folder
        paths = [str(ROOT), str(Path(mithridate.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "RUN_LOG": str(log or "")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(folder), where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first == "begun\n", self.process.communicate()[1]

    def until(self, moment: Callable[[], Any]) -> None:
        """Waits for a moment, or for the end."""
        end = time.monotonic() + LONG
        while not moment() and self.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Returns the processes in which trials run, of a pool or of Ray."""
        return [pid for pid in descendants(self.process.pid) if is_worker(pid)]

    def kill(self, whom: str, rng: random.Random) -> bool:
        """Kills the main process, its whole group, or one of its workers; tells whether there was something to kill."""
        if self.process.poll() is not None:
            return False
        if whom == "worker":
            workers = self.workers()
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(rng.choice(workers), signal.SIGKILL)
            return bool(workers)
        if whom == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        return True

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        _, self.error = self.process.communicate(timeout=LONG)
        return self.process.returncode

    def sweep(self) -> None:
        """Ends what a killed main process left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, last = [], [root]
    while last:
        last = [pid for pid, parent in parents.items() if parent in last]
        found += last
    return found


def is_worker(pid: int) -> bool:
    """Whether trials run in a process, of a pool or of Ray."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return "spawn_main" in command or (command.startswith("ray::") and "Agent" not in command)


def killed_at_random(folder: Path, where: str, kinds: tuple[str, ...], kills: int, seconds: float) -> list[str]:
    """Works the study off again and again, killing it at random times, until so many kills have hit it.

    Args:
        folder: Holds a results folder per time that the study was finished.
        where: As for `--workers`.
        kinds: Whom to kill.
        kills: How often.
        seconds: What a whole run takes.

    Returns:
        Whom it hit.
    """
    rng = random.Random(f"{where} {kinds}")
    hit: list[str] = []
    for round_ in range(10 * kills):
        home = folder / str(round_)
        finished: dict[Path, tuple[int, int]] = {}
        while True:
            run = Run(home, where)
            whom, moment = rng.choice(kinds), time.monotonic() + rng.random() * seconds
            run.until(partial(_is_time, run, whom, moment))
            if len(hit) < kills and run.kill(whom, rng):
                hit.append(whom)
            code = run.end()
            now = stamps(home)
            assert {path: now.get(path) for path in finished} == finished, "a finished trial was made again"
            finished = now
            assert len(load_results(home)) == len(now) if (home / "study.json").exists() else not now
            if code == 0:
                break
            assert code == -signal.SIGKILL, run.error
        run.sweep()
        assert len(now) == len(small())
        if len(hit) == kills:
            return hit
    raise AssertionError(f"only {len(hit)} of {kills} kills hit a run that was at work")


def _is_time(run: Run, whom: str, moment: float) -> bool:
    return time.monotonic() > moment and (whom != "worker" or bool(run.workers()))


def _log_runs(path: str) -> None:
    """Writes a line for every trial that this process runs."""
    run = Trial.run

    def logged(self: Trial, *arguments: Any, **settings: Any) -> Any:
        with Path(path).open("a") as log:
            log.write(f"{self.label()}\n")
        return run(self, *arguments, **settings)

    Trial.run = logged


def main(folder: str, where: str) -> None:
    torch.set_num_threads(1)
    if os.environ.get("RUN_LOG"):
        _log_runs(os.environ["RUN_LOG"])
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    trials: list[Job] = [*small()]
    run_study(trials, folder, map=engine(where), progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
