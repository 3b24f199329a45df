"""Witches' Brew: peak memory as the number of poisons grows, each measurement in a fresh process."""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import torch

from benchmarks.cases import in_ordinary_layers, prepared
from benchmarks.crafting import MODELS, brew_of
from benchmarks.measure import Claim, Report, Role, Row, Setup, environment
from benchmarks.reference.matching import Brewing, brew_plain
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import ThreatModel

CLEAR = Path("/proc/self/clear_refs")
ARMS: dict[str, Role] = {"plain fp32 NCHW": "straightforward", "mithridate": "mithridate"}


def run(setup: Setup) -> Report:
    """Peak memory with few and with many poisons."""
    few, many = (4, 8) if setup.small else (50, 1000)
    rows: list[Row] = []
    claims: list[Claim] = []
    for model in (name for name in MODELS if name in setup.models and (name != "resnet18" or setup.device != "cpu")):
        totals: dict[int, float] = {}
        for (arm, role), poisons in product(ARMS.items(), (few, many)):
            added, totals[poisons] = _probe(setup, model, arm, poisons)
            case, note = f"witches-brew on {model}, {poisons} poisons", f"{added:.0f} MB more than before the step"
            value, unit = totals[poisons], "MB at the peak"
            rows.append(Row(case=case, arm=arm, role=role, value=value, unit=unit, rounds=1, note=note))
        growth = totals[many] / totals[few]  # of the last arm, mithridate
        claims.append(
            Claim(
                claim=f"{model}: peak memory of {many} poisons over {few} poisons",
                value=growth,
                low=growth,
                high=growth,
                required="flat: at most 1.25x",
                holds=growth <= 1.25,
            )
        )
    settings = {"images": "32x32x3 synthetic", "counted": "VmHWM of a fresh process, one step; on a GPU: allocated"}
    return Report(
        name="crafting_memory", settings=settings, rows=rows, claims=claims, environment=environment(setup.device)
    )


def _probe(setup: Setup, model: str, arm: str, poisons: int) -> tuple[float, float]:
    """As `_measure_peak`, in a fresh process."""
    given = [setup.device, model, arm, str(poisons), str(setup.threads), *(["small"] if setup.small else [])]
    command = [sys.executable, "-m", "benchmarks.crafting_memory", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    added, total = json.loads(done.stdout.splitlines()[-1])
    return added, total


def _measure_peak(setup: Setup, model: str, arm: str, poisons: int) -> tuple[float, float]:
    """Megabytes that one step takes at its peak beyond what this process holds before it, and in all."""
    before, train = 0.0, 100 if setup.small else 10_000
    for count in (2, poisons):  # the first loads kernels and their buffers, and makes both measurements start alike
        task, surrogate = prepared(setup, model, ThreatModel(budget=count / train), train, epochs=0)
        before = _reset_peak(setup.device)
        if arm == "mithridate":
            WitchesBrew(steps=1, surrogates=1, micro_batch=50).craft(task, surrogate, seed=0)
        else:
            brew_plain(in_ordinary_layers(surrogate), brew_of(task), Brewing(steps=1))
    return _peak(setup.device) - before, _peak(setup.device)


def _reset_peak(device: str) -> float:
    """Forget earlier peaks, where the system can; return the megabytes in use now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept for later would hide what comes
        CLEAR.write_text("5", encoding="ascii")
    return _peak(device)


def _peak(device: str) -> float:
    """Largest memory since the reset in megabytes: resident on a CPU, allocated on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if not CLEAR.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _main() -> None:
    about = "one memory measurement; `python -m benchmarks crafting_memory` calls this"
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("device")
    parser.add_argument("model")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("poisons", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("small", nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    setup = Setup(device=given.device, small=given.small is not None, threads=given.threads)
    print(json.dumps(_measure_peak(setup, given.model, given.arm, given.poisons)))


if __name__ == "__main__":
    _main()
