"""Fair timing, and what every result carries: hardware, versions, n."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

import mithridate
from benchmarks.ceiling import ceiling, format_of

Unit = Literal["wall", "cpu"]
Role = Literal["mithridate", "straightforward", "variant", "control"]
"""mithridate as a user runs it; what one writes first; another way by hand; something to compare both with."""
CEILING = "ceiling"
"""Name of the arm that multiplies large matrices."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a benchmark is run with."""

    device: str = "cpu"
    small: bool = False
    """Tiny sizes and one round: shows that it runs, measures nothing."""
    threads: int = 1
    models: tuple[str, ...] = ("convnet", "convnet-wide", "resnet18", "vgg11", "mobilenet_v2")
    seconds: float = 8.0
    """How long the counted rounds of one case may take; there are never fewer than 3 of them, nor more than 9."""

    @property
    def clock(self) -> Unit:
        """CPU seconds on a CPU, since other programs stretch the wall time; the wall on a GPU."""
        return "cpu" if self.device == "cpu" else "wall"

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 is the faster number format there."""
        return format_of(self.device) == torch.bfloat16

    @property
    def claims_bf16(self) -> bool:
        """Whether this is a CPU that computes bfloat16 faster: what is claimed of speed over float32 holds there."""
        return self.device == "cpu" and self.bf16

    def rounds(self, first: float) -> int:
        """Counted rounds of a case whose first, uncounted round took so many seconds."""
        return 1 if self.small else min(9, max(3, int(self.seconds / max(first, 1e-9))))

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
class Arm:
    """One way to do the work of a case."""

    name: str
    role: Role
    work: Callable[[], object]
    """A text that it returns becomes the row's note. It may raise: its row then says so."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of one case: medians over the rounds."""

    case: str
    arm: str
    value: float | None
    """In `unit`; None where the arm failed."""
    unit: str
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    rounds: int
    note: str = ""
    role: Role = "control"
    by_round: Sequence[float] = ()
    """Seconds of every counted round, on the clock of the case; entry i of all arms is the same round."""
    flops: float | None = None
    """Floating-point operations of one run, of convolutions and matrix products."""
    ceiling_share: float | None = None
    """Operations per second as a share of those of the large matrix product, median of the rounds' own shares."""


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


# --- timing ----------------------------------------------------------------------------------------------------------


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


def race(
    setup: Setup,
    case: str,
    arms: Sequence[Arm],
    *,
    unit: str,
    value: Callable[[float], float],
    flops: float | None = None,
    clock: Unit | None = None,
    once: bool = False,
) -> list[Row]:
    """Run the arms of a case in turns, with the ceiling among them where `flops` is given; one row for each.

    An arm that raises takes no further part and gets a row that says why.

    Args:
        setup: Device, rounds, default clock.
        case: What is done.
        arms: Ways to do it, of which one at most has the role "mithridate".
        unit: Of `value`, with the clock in it: "images per cpu second".
        value: Seconds of one run -> what the row shows.
        flops: Floating-point operations that one run needs, the same for every arm.
        clock: "wall" where work in parallel is the point; the setup's unless given.
        once: One counted round and none before it, for what takes minutes.
    """
    clock = setup.clock if clock is None else clock
    dtype = format_of(setup.device)
    multiply, operations = ceiling(setup.device, dtype, small=setup.small)
    extra = [] if flops is None else [Arm(name=CEILING, role="control", work=multiply)]
    found, notes, failed = _turns(setup, [*arms, *extra], once=once)
    top = [operations / getattr(timing, clock) for timing in found.get(CEILING, ())]
    rows = []
    for arm in arms:
        made = _row(case, arm, found.get(arm.name, []), clock, unit, value)
        note = failed.get(arm.name) or notes.get(arm.name, "")
        shares = [flops / s / t for s, t in zip(made.by_round, top, strict=False)] if flops else []
        share = statistics.median(shares) if shares else None
        rows.append(replace(made, note=note, flops=flops, ceiling_share=share))
    if top:
        ours = Arm(name=CEILING, role="control", work=multiply)
        made = _row(case, ours, found[CEILING], clock, f"GFLOP per {clock} second", lambda s: operations / s / 1e9)
        name = str(dtype).removeprefix("torch.")
        rows.append(replace(made, note=f"product of large {name} matrices", flops=operations, ceiling_share=1.0))
    return rows


def _turns(
    setup: Setup, arms: Sequence[Arm], *, once: bool
) -> tuple[dict[str, list[Timing]], dict[str, str], dict[str, str]]:
    """Timings, notes and failures by the name of the arm; the first round does not count unless there is only one."""
    found: dict[str, list[Timing]] = {arm.name: [] for arm in arms}
    notes: dict[str, str] = {}
    failed: dict[str, str] = {}
    start = time.perf_counter()

    def turn(*, counts: bool) -> None:
        for arm in arms:
            if arm.name in failed:
                continue
            try:
                timing = timed(lambda work=arm.work, name=arm.name: notes.update({name: _text(work())}), setup.device)
            except Exception as error:  # whatever it is: one arm must not end the benchmark
                failed[arm.name] = f"failed: {type(error).__name__}: {str(error).strip().split(chr(10))[0][:120]}"
                del found[arm.name]
                continue
            if counts:
                found[arm.name].append(timing)

    turn(counts=once)
    for _ in range(0 if once else setup.rounds(time.perf_counter() - start)):
        turn(counts=True)
    return found, notes, failed


def _text(result: object) -> str:
    return result if isinstance(result, str) else ""


def _row(case: str, arm: Arm, times: Sequence[Timing], clock: Unit, unit: str, value: Callable[[float], float]) -> Row:
    seconds = [getattr(timing, clock) for timing in times]
    return Row(
        case=case,
        arm=arm.name,
        role=arm.role,
        value=value(statistics.median(seconds)) if seconds else None,
        unit=unit,
        wall_seconds=median(times, "wall") if times else None,
        cpu_seconds=median(times, "cpu") if times else None,
        rounds=len(times),
        by_round=seconds,
    )


def median(timings: Sequence[Timing], clock: Unit) -> float:
    """Median seconds."""
    return statistics.median(getattr(timing, clock) for timing in timings)


# --- ratios and claims -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the rounds' own ratios."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Iterable[float], below: Iterable[float]) -> Ratio:
        """Of the entries of the two, pair by pair."""
        ratios = sorted(a / b for a, b in zip(above, below, strict=True))
        return cls(statistics.median(ratios), ratios[0], ratios[-1])


def row_of(rows: Iterable[Row], role: Role) -> Row | None:
    """The first row of that role that did not fail."""
    return next((row for row in rows if row.role == role and row.by_round), None)


def best_of(rows: Iterable[Row]) -> Row | None:
    """The fastest way found other than mithridate: smallest median time."""
    others = [row for row in rows if row.role in ("straightforward", "variant") and row.by_round]
    return min(others, key=lambda row: statistics.median(row.by_round), default=None)


def at_most(claim: str, row: Row, seconds: float) -> Claim:
    """The claim that one run of an arm takes no more than so many seconds, on the clock of its case."""
    spent = sorted(row.by_round)
    value = statistics.median(spent)
    required = f"at most {seconds:g} s"
    return Claim(claim=claim, value=value, low=spent[0], high=spent[-1], required=required, holds=value <= seconds)


def faster_than_straightforward(rows: Sequence[Row], at_least: float | None) -> list[Claim]:
    """The claim that mithridate is so many times as fast as what one writes first; none where that one failed.

    Args:
        rows: Of one case.
        at_least: What is asked; None: the ratio is shown and nothing asked.
    """
    plain = row_of(rows, "straightforward")
    return [] if plain is None else [_compared(rows, plain, f"times as fast as {plain.arm}", at_least)]


def near_the_best(rows: Sequence[Row], at_least: float | None = 0.9) -> list[Claim]:
    """The claim that mithridate has at least that share of the speed of the best way found in this run."""
    best = best_of(rows)
    return [] if best is None else [_compared(rows, best, f"speed over the best way found ({best.arm})", at_least)]


def _compared(rows: Sequence[Row], other: Row, text: str, at_least: float | None) -> Claim:
    """Mithridate's speed over another arm's; zero where mithridate's arm failed, so that no claim holds."""
    ours = row_of(rows, "mithridate")
    ratio = Ratio(0.0, 0.0, 0.0) if ours is None else Ratio.of(other.by_round, ours.by_round)
    return asked(f"{other.case}: {text}", ratio, at_least, "x")


def asked(claim: str, ratio: Ratio, at_least: float | None, unit: str = "") -> Claim:
    """A claim about a ratio, judged by its median."""
    return Claim(
        claim=claim,
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        required="-" if at_least is None else f"at least {at_least:g}{unit}",
        holds=at_least is None or ratio.value >= at_least,
    )


# --- what a result carries -------------------------------------------------------------------------------------------


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
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    entries = {name.strip(): text.strip() for name, text in reversed(pairs)}
    name = entries.get("model name", platform.machine())
    return f"{name} (family {entries.get('cpu family', '?')}, model {entries.get('model', '?')})"
