"""Start-up: what ``import mithridate`` adds to ``import torch``, and that the help text does not wait for torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.measure import Claim, Report, Row, Setup, Timing, environment, interleaved, median

EVERY_NAME = "import torch, mithridate\nfor name in mithridate.__all__: getattr(mithridate, name)"
HELP = "import sys; sys.argv = ['mithridate', '--help']; from mithridate.cli import main; main()"
STARTS = {
    "import torch": "import torch",
    "import torch, mithridate": "import torch, mithridate",
    "every public name": EVERY_NAME,
    "mithridate --help": HELP,
}


def run(setup: Setup) -> Report:
    """Start fresh interpreters, interleaved."""
    rounds = 1 if setup.small else 9
    found = interleaved({name: lambda code=code: _start(code) for name, code in STARTS.items()}, rounds, "cpu")
    rows = [
        Row(
            case="start-up",
            arm=name,
            value=median(times, "cpu"),
            unit="cpu seconds",
            wall_seconds=median(times, "wall"),
            cpu_seconds=median(times, "cpu"),
            rounds=rounds,
        )
        for name, times in found.items()
    ]
    claims = [
        _beyond("import mithridate", found, "import torch, mithridate", 0.3),
        _beyond("every public name of mithridate", found, "every public name", None),
        _help_without_torch(),
    ]
    return Report(
        name="startup",
        settings={"counted": "a fresh interpreter, its start included"},
        rows=rows,
        claims=claims,
        environment=environment("cpu"),
    )


def _start(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def _beyond(what: str, found: Mapping[str, list[Timing]], arm: str, at_most: float | None) -> Claim:
    extra = sorted(ours.cpu - torch.cpu for ours, torch in zip(found[arm], found["import torch"], strict=True))
    value = statistics.median(extra)
    return Claim(
        claim=f"{what} beyond import torch (cpu seconds)",
        value=value,
        low=extra[0],
        high=extra[-1],
        required="-" if at_most is None else f"at most {at_most:g} s",
        holds=at_most is None or value <= at_most,
    )


def _help_without_torch() -> Claim:
    """Counts the modules of torch that the help text imports."""
    count = "sum(name.split('.')[0] == 'torch' for name in sys.modules)"
    code = f"import atexit, sys\natexit.register(lambda: print({count}))\n{HELP}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = int(done.stdout.splitlines()[-1])
    return Claim(
        claim="torch modules imported by mithridate --help",
        value=modules,
        low=modules,
        high=modules,
        required="none",
        holds=modules == 0,
    )
