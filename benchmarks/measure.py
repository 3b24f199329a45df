"""Fair timing, and what every result carries: hardware, versions, n."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

import mithridate

Unit = Literal["wall", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a benchmark is run with."""

    device: str = "cpu"
    small: bool = False
    """Tiny sizes and one round: shows that it runs, measures nothing."""
    threads: int = 1
    models: tuple[str, ...] = ("convnet", "convnet-wide", "resnet18")

    @property
    def clock(self) -> Unit:
        """CPU seconds on a CPU, since other programs stretch the wall time; the wall on a GPU."""
        return "cpu" if self.device == "cpu" else "wall"

    def rounds(self, model: str) -> int:
        """Counted rounds: fewer for the network whose rounds are long."""
        return 1 if self.small else (5 if model == "resnet18" else 9)

    def spec(self, model: str) -> str:
        """Name of the network, narrow in the small form."""
        return f"{model}:width=4" if self.small else model


@dataclass(frozen=True)
class Timing:
    """Seconds of one run."""

    wall: float
    cpu: float
    """User and system time of this process and of the children it waited for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of one case: medians over the rounds."""

    case: str
    arm: str
    value: float
    unit: str
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    rounds: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A ratio beside what is asked of it: median of the rounds' own ratios, smallest and largest."""

    claim: str
    value: float
    low: float
    high: float
    required: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything one benchmark found."""

    name: str
    settings: Mapping[str, object]
    rows: Sequence[Row]
    claims: Sequence[Claim]
    environment: Mapping[str, object] = field(default_factory=dict)


def timed(work: Callable[[], object], device: str) -> Timing:
    """Run once and measure; on a GPU until its queue is empty."""
    _wait(device)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    _wait(device)
    return Timing(time.perf_counter() - wall, _cpu_seconds() - cpu)


def interleaved(arms: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[Timing]]:
    """Run the arms A B C, A B C, ... in this process, after one round that does not count."""
    found: dict[str, list[Timing]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, work in arms.items():
            timing = timed(work, device)
            if turn > 0:
                found[name].append(timing)
    return found


def median(timings: Sequence[Timing], clock: Unit) -> float:
    """Median seconds."""
    return statistics.median(getattr(timing, clock) for timing in timings)


def speedup(claim: str, slow: Sequence[Timing], fast: Sequence[Timing], clock: Unit, at_least: float | None) -> Claim:
    """How many times faster the second is; the two of one round are compared with each other."""
    ratios = sorted(getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast, strict=True))
    value = statistics.median(ratios)
    return Claim(
        claim=f"{claim} ({clock} time)",
        value=value,
        low=ratios[0],
        high=ratios[-1],
        required="-" if at_least is None else f"at least {at_least:g}x",
        holds=at_least is None or value >= at_least,
    )


def environment(device: str) -> dict[str, object]:
    """Hardware and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": bool(torch.cpu.get_capabilities().get("avx512_bf16")),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mithridate": mithridate.__version__,
        "platform": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def write(report: Report, folder: Path, setup: Setup) -> Path:
    """Write ``<name>-<device>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.name}-{setup.device.partition(':')[0]}.json"
    path.write_text(json.dumps(asdict(report) | {"setup": asdict(setup)}, indent=1) + "\n", encoding="utf-8")
    return path


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _cpu_name() -> str:
    """Model name with family and model number, which say more than a virtual machine's name does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = dict(reversed([tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line]))
    name = entries.get("model name", platform.machine())
    return f"{name} (family {entries.get('cpu family', '?')}, model {entries.get('model', '?')})"
